"""Exported models run by sherpa-onnx, the runtime that they are made for. Needs no torch."""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from kdlib.errors import RecipeError, in_one_line
from kdlib.files import PathLike, content_digest, read_json, read_lines

PARTS = ("encoder", "decoder", "joiner")
SUBSAMPLING = 4  # as in kdlib.conformer, which needs torch
METHODS = ("greedy_search", "modified_beam_search")
RATES = (1000, 768000)  # samples a second that audio may have
NO_TEXT = ("<blk>", "<sos/eos>", "<unk>")  # as in kdlib.lang, which needs SentencePiece
MAX_BEAM = 1000
AGAIN = "export the model again (stage 9, with --force) or copy its folder anew"

_COUNT = (int, 1, 10 ** 12)
# What model.json must say: the type of each entry, and of a number the least and the most.
_ENTRIES = {"model": (str,), "parameters": _COUNT, "updates": (int, 0, 10 ** 12), "epoch": (int, 0, 10 ** 6),
            "avg": (int, 0, 10 ** 6), "chunk_size": (int, 1, 10 ** 4), "left_context": (int, 1, 10 ** 6),
            "sampling_rate": (int, *RATES), "num_filters": (int, 1, 1000), "low_freq": (float, 0, RATES[1] / 2),
            "high_freq": (float, -RATES[1] / 2, RATES[1] / 2), "vocab_size": (int, 3, 10 ** 6), "float32_bytes": _COUNT,
            "int8_bytes": _COUNT, "files": (dict,), "digest": (str,)}


def seal(folder: PathLike, about: Dict[str, Any]) -> Dict[str, Any]:
    """What is said of a model, and with it the digests that tell whether the folder is still as it was exported: under
    ``files`` of the content of each file that the runtime reads, under ``digest`` of all that is said."""
    names = ["tokens.txt", *_names(False), *_names(True)]
    about = {**about, "files": {name: content_digest(Path(folder) / name) for name in names}}
    return {**about, "digest": _digest(about)}


def _digest(about: Dict[str, Any]) -> str:
    said = json.dumps({key: value for key, value in about.items() if key != "digest"}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def read_model(folder: PathLike, int8: bool = False) -> Dict[str, Any]:
    """What ``model.json`` says of an exported folder whose files are there, whole and of one model.

    They are looked at here because sherpa-onnx ends the process, without a word to the user, over a file that it cannot
    take, and hears nonsense by the encoder of another training. Raises :class:`RecipeError` that names the file.
    """
    folder = Path(folder)
    about = read_json(folder / "model.json", AGAIN)
    _check_entries(folder / "model.json", about)
    for name in ["tokens.txt", *_names(int8)]:
        path = folder / name
        if not path.is_file():
            raise RecipeError(f"{path} is missing: {_other_kind(folder, int8) or AGAIN}")
        if content_digest(path) != about["files"].get(name):
            raise RecipeError(f"{path} is not the file of which model.json has the digest: it is damaged or another "
                              f"model's: {AGAIN}")
    tokens = read_lines(folder / "tokens.txt", AGAIN)
    if [line.rsplit(" ", 1)[-1] for line in tokens] != [str(number) for number in range(about["vocab_size"])]:
        raise RecipeError(f"{folder / 'tokens.txt'} does not have the model's {about['vocab_size']} tokens: {AGAIN}")
    return about


def _names(int8: bool) -> List[str]:
    return [f"{part}{'.int8' if int8 else ''}.onnx" for part in PARTS]


def _other_kind(folder: Path, int8: bool) -> Optional[str]:
    """What to do where a device was given the files of the other kind, as it may be; None where they are not there either."""
    if not all((folder / name).is_file() for name in _names(not int8)):
        return None
    return "the float32 files are there: leave --int8 out" if int8 else "the int8 files are there: give --int8"


def _check_entries(path: Path, about: Any) -> None:
    """A :class:`RecipeError` that names the entries of ``model.json`` that cannot be."""
    if not isinstance(about, dict):
        raise RecipeError(f"{path} does not describe an exported model: {AGAIN}")
    missing = [key for key in _ENTRIES if key not in about]
    if missing:
        raise RecipeError(f"{path} says nothing of {', '.join(missing)}, as if an earlier version had written it: {AGAIN}")
    wrong = unfit(about)
    if wrong:
        raise RecipeError(f"{path} does not describe an exported model ({wrong}): {AGAIN}")
    if about["digest"] != _digest(about):
        raise RecipeError(f"{path} is not as it was exported: {AGAIN}")


def unfit(about: Dict[str, Any]) -> str:
    """Those of the entries of ``model.json`` in ``about`` that no exported model can have, with their values; else ""."""
    wrong = [key for key in _ENTRIES if key in about and not _fits(about[key], _ENTRIES[key][0], _ENTRIES[key][1:])]
    if not wrong and "high_freq" in about:
        half = about["sampling_rate"] / 2
        high = about["high_freq"] + (0 if about["high_freq"] > 0 else half)
        wrong = [] if about["low_freq"] < high <= half else ["low_freq", "high_freq"]
    return ", ".join(f"{key}: {about[key]!r}"[:80] for key in wrong)


def _fits(value: Any, kind: type, limits: Sequence[float]) -> bool:
    if type(value) is not kind and not (kind is float and type(value) is int):  # a bool is no number here
        return False
    return not limits or limits[0] <= value <= limits[1]


def needed(module: str, package: str) -> Any:
    """A module that is needed here and that a device may lack; a :class:`RecipeError` says how to get it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: of a library that the package loads
        raise RecipeError(f"the package {package} cannot be imported ({error}): pip install {package}") from None


def check_path(folder: PathLike) -> None:
    """A :class:`RecipeError` where sherpa-onnx, and what writes ONNX, cannot take a folder's path: one that is not UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise RecipeError(f"the path {folder} is not UTF-8, as sherpa-onnx must have it: rename that folder, or take one "
                          "elsewhere for the model") from None


def chosen_beam(method: str, asked: Optional[int]) -> int:
    """How many hypotheses ``modified_beam_search`` keeps: as many as ``--beam`` asked for, else 4. A :class:`RecipeError` where
    another search was asked for some, which would not heed it."""
    if asked is not None and method != "modified_beam_search":
        raise RecipeError(f"--beam {asked} is of modified_beam_search, and this search is {method}: give --method "
                          "modified_beam_search too, or leave --beam out")
    return 4 if asked is None else asked


def make_recognizer(folder: PathLike, about: Dict[str, Any], int8: bool = False, method: str = METHODS[0],
                    beam: int = 4, num_threads: int = 1, endpoints: bool = False) -> Any:
    """sherpa-onnx's ``OnlineRecognizer`` of a folder that :func:`read_model` has looked at.

    ``endpoints``: let a second of silence after a word, twenty without any word, or five minutes end a segment, after
    which the caller goes on with a new stream; not for the counting of errors.
    """
    sherpa_onnx = needed("sherpa_onnx", "sherpa-onnx")
    for name, value, most in (("beam", beam, MAX_BEAM), ("threads", num_threads, os.cpu_count() or 1)):
        if not 1 <= value <= most:
            raise RecipeError(f"{name} is {value}: it may be from 1 to {most}" + (" here" if name == "threads" else ""))
    folder, suffix = Path(folder), ".int8" if int8 else ""
    check_path(folder)
    try:
        return sherpa_onnx.OnlineRecognizer.from_transducer(
            tokens=str(folder / "tokens.txt"), **{part: str(folder / f"{part}{suffix}.onnx") for part in PARTS},
            num_threads=num_threads, sample_rate=about["sampling_rate"], feature_dim=about["num_filters"],
            low_freq=about["low_freq"], high_freq=about["high_freq"], decoding_method=method, max_active_paths=beam,
            model_type="conformer", enable_endpoint_detection=endpoints, rule1_min_trailing_silence=20.0,
            rule2_min_trailing_silence=1.0, rule3_min_utterance_length=300.0)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"sherpa-onnx cannot run the model in {folder} ({in_one_line(error)}): {AGAIN}") from None


def decode_ready(recognizer: Any, stream: Any) -> bool:
    """Run the stream's next chunk, if there is one; whether there was. Raises :class:`RecipeError` where sherpa-onnx
    cannot run the model."""
    if not recognizer.is_ready(stream):
        return False
    try:
        recognizer.decode_stream(stream)
    except RuntimeError as error:
        raise RecipeError(f"sherpa-onnx cannot run the model ({in_one_line(error, 300)}): {AGAIN}") from None
    return True


def pieces(recognizer: Any, stream: Any) -> List[str]:
    """The text of each token of the stream so far, in which a space begins a word; of a token that is no text, as
    ``<sos/eos>``, nothing, as our own decoding has it.

    Of tokens, since the runtime's text of them lacks spaces: those between characters that it takes for Chinese, Hangul
    among them, and those before punctuation, with which a word may begin ('EM).
    """
    return ["" if token in NO_TEXT else token.replace("\u2581", " ") for token in recognizer.tokens(stream)]


def words(recognizer: Any, stream: Any) -> List[str]:
    """The words of the stream so far, as our own decoding divides them."""
    return "".join(pieces(recognizer, stream)).split()


def hear(recognizer: Any, about: Dict[str, Any], samples: np.ndarray) -> List[str]:
    """The words of audio that is there as a whole: (samples,) float32 at the model's rate."""
    rate, stream = about["sampling_rate"], recognizer.create_stream()
    stream.accept_waveform(rate, np.concatenate([samples, tail(about, rate)]))
    stream.input_finished()
    while decode_ready(recognizer, stream):
        pass
    return words(recognizer, stream)


def seems_byte_bpe(tokens: Sequence[str]) -> bool:
    """Whether sherpa-onnx takes the tokens for bytes written as letters: where the highest byte of all, but for a first
    ``\u2581`` of each, is exactly 0xC6, with which such letters as the Azerbaijani \u018f begin."""
    return max(byte for token in tokens for byte in token.removeprefix("\u2581").encode()) == 0xC6


def tail(about: Dict[str, Any], rate: int) -> np.ndarray:
    """The silence that must follow the audio: a chunk runs only when more than its frames are ready, so that without it
    the last words would be cut. Samples of ``rate`` Hz, float32."""
    return np.zeros(int((SUBSAMPLING * about["chunk_size"] + 4) * 0.01 * rate) + 1, dtype=np.float32)
