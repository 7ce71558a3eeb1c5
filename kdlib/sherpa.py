"""Exported models run by sherpa-onnx, the runtime that they are made for. Needs no torch."""

from pathlib import Path
from typing import Any, Dict

import numpy as np

from kdlib.errors import RecipeError
from kdlib.files import PathLike, read_json

PARTS = ("encoder", "decoder", "joiner")
SUBSAMPLING = 4  # as in kdlib.conformer, which needs torch
METHODS = ("greedy_search", "modified_beam_search")
AGAIN = "export the model again (stage 9) or copy its folder anew"


def describe_files(folder: PathLike) -> Dict[str, int]:
    """Bytes of each file that the runtime reads, as ``model.json`` keeps them."""
    names = ["tokens.txt", *(f"{part}{suffix}.onnx" for part in PARTS for suffix in ("", ".int8"))]
    return {name: (Path(folder) / name).stat().st_size for name in names}


def read_model(folder: PathLike, int8: bool = False) -> Dict[str, Any]:
    """What ``model.json`` says of an exported folder whose files are there, whole and of one model.

    They are looked at here because sherpa-onnx ends the process, without a word to the user, over a file that it cannot
    take.
    """
    folder = Path(folder)
    about = read_json(folder / "model.json", AGAIN)
    keys = {"model": str, "vocab_size": int, "sampling_rate": int, "num_filters": int, "chunk_size": int, "files": dict}
    wrong = [key for key, kind in keys.items() if not isinstance(about, dict) or not isinstance(about.get(key), kind)]
    if wrong:
        raise RecipeError(f"{folder / 'model.json'} does not describe an exported model (no {', '.join(wrong)}): {AGAIN}")
    for name in ["tokens.txt", *(f"{part}{'.int8' if int8 else ''}.onnx" for part in PARTS)]:
        path, size = folder / name, about["files"].get(name)
        if not path.is_file():
            raise RecipeError(f"{path} is missing: {AGAIN}")
        if path.stat().st_size != size:
            raise RecipeError(f"{path} has {path.stat().st_size} bytes, model.json says {size}: it is damaged or another "
                              f"model's: {AGAIN}")
    tokens = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    if [line.rsplit(" ", 1)[-1] for line in tokens] != [str(number) for number in range(about["vocab_size"])]:
        raise RecipeError(f"{folder / 'tokens.txt'} does not have the model's {about['vocab_size']} tokens: {AGAIN}")
    return about


def make_recognizer(folder: PathLike, about: Dict[str, Any], int8: bool = False, method: str = METHODS[0],
                    beam: int = 4, num_threads: int = 1, endpoints: bool = False) -> Any:
    """sherpa-onnx's ``OnlineRecognizer`` of a folder that :func:`read_model` has looked at.

    ``endpoints``: let a second of silence after a word, twenty without any word, or five minutes end a segment, after
    which the caller goes on with a new stream; not for the counting of errors.
    """
    import sherpa_onnx

    folder, suffix = Path(folder), ".int8" if int8 else ""
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"), **{part: str(folder / f"{part}{suffix}.onnx") for part in PARTS},
        num_threads=num_threads, sample_rate=about["sampling_rate"], feature_dim=about["num_filters"],
        low_freq=about["low_freq"], high_freq=about["high_freq"], decoding_method=method, max_active_paths=beam,
        model_type="conformer", enable_endpoint_detection=endpoints, rule1_min_trailing_silence=20.0,
        rule2_min_trailing_silence=1.0, rule3_min_utterance_length=300.0)


def tail(about: Dict[str, Any], rate: int) -> np.ndarray:
    """The silence that must follow the audio: a chunk runs only when more than its frames are ready, so that without it
    the last words would be cut. Samples of ``rate`` Hz, float32."""
    return np.zeros(int((SUBSAMPLING * about["chunk_size"] + 4) * 0.01 * rate) + 1, dtype=np.float32)
