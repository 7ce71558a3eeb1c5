"""What the scripts that decode have in common: their options, and what they leave behind."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from lhotse import CutSet

from kdlib.config import DecodeConfig, TrainConfig, load_config
from kdlib.conformer import FRAME_MS
from kdlib.cuts import load_cuts
from kdlib.decoding import Hypothesis
from kdlib.errors import RecipeError
from kdlib.files import PathLike, read_json
from kdlib.lang import Lang
from kdlib.latency import LatencyMeter
from kdlib.scoring import describe_errors, read_takes, write_results
from kdlib.sherpa import chosen_beam

STEP = "RECIPE_STEP"  # a variable of the environment in which local/stage_stamp.py runs the steps of a run.sh
TRIED = ("epoch", "avg", "method", "beam", "chunk_size", "left_context")  # options that no run.sh gives


class TestSet(NamedTuple):
    """A test set's name, its cuts, and what measures its latency, if anything does."""

    name: str
    cuts: CutSet
    meter: Optional[LatencyMeter]


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Which model, which test sets, and how: of ``local/decode.py`` and ``local/streaming_decode.py``."""
    parser.add_argument("--exp", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--fbank", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--config", type=Path, required=True, help="conf/decode.yaml")
    parser.add_argument("--test-sets", required=True, help="names, separated by spaces")
    parser.add_argument("--epoch", type=int, help="the epoch to decode with; the last one unless given")
    parser.add_argument("--avg", type=int, help="epochs to average; as the training's config says unless given")
    parser.add_argument("--method", help="greedy_search, modified_beam_search or, with k2, fast_beam_search; "
                        "as the config says unless given")
    parser.add_argument("--beam", type=int, help="hypotheses of modified_beam_search; as the config says unless given")
    parser.add_argument("--chunk-size", type=int, help="frames of 40 ms; the model's unless given")
    parser.add_argument("--left-context", type=int, help="frames of 40 ms before the chunk; the "
                        "model's unless given; below 0, in local/decode.py alone: all there are")
    parser.add_argument("--alignment", type=Path, help="folder of local/align.py: measure the latency too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/decode.yaml")


def named_test_sets(words: str) -> List[str]:
    """The names that ``--test-sets`` gives; a :class:`RecipeError` where it gives none."""
    names = words.split()
    if not names:
        raise RecipeError("--test-sets names none: give it the names after cuts_ in the folder of the cuts")
    return names


def decoding_config(args: argparse.Namespace) -> DecodeConfig:
    """The config file, changed by the options; a :class:`RecipeError` names what is wrong."""
    if args.chunk_size is not None and args.chunk_size < 0:
        raise RecipeError(f"--chunk-size {args.chunk_size}: give frames of 40 ms, or 0 for full context")
    config = load_config(DecodeConfig, args.config, args.overrides)
    options = {name: value for name in ("epoch", "avg", "method", "beam") if (value := getattr(args, name)) is not None}
    try:
        config = replace(config, **options)
    except RecipeError as error:
        raise RecipeError(f"command line: {error}") from None
    chosen_beam(config.method, args.beam)
    return config


def check_search(config: DecodeConfig, trained: TrainConfig, exp: PathLike) -> None:
    """A :class:`RecipeError` where the search asks for more tokens a frame than the model in ``exp`` has learnt to say."""
    if config.method == "greedy_search" and config.max_sym_per_frame > 1 and trained.loss.rnnt_type == "modified":
        raise RecipeError(f"max_sym_per_frame is {config.max_sym_per_frame}, and {exp} was trained with loss.rnnt_type "
                          "modified, one token a frame: in the same frame it would say that token again. Leave it at 1")


def load_test_sets(args: argparse.Namespace, lang: Lang, chunk_size: int) -> List[TestSet]:
    """All of the test sets, before the first is decoded: what is missing of the last is said at once.

    ``chunk_size`` is the one of the decoding, for the latency; 0 for full context.
    """
    return [TestSet(name, load_cuts(args.fbank / f"cuts_{name}.jsonl.gz"), None if args.alignment is None else
                    LatencyMeter(args.alignment / f"cuts_{name}.jsonl.gz", lang, chunk_size))
            for name in named_test_sets(args.test_sets)]


def own_suffix(folder: PathLike, suffix: str) -> str:
    """What ends the names of a decoding's files: ``suffix``, which names the settings; of a call by hand with a mark where a
    step of a run.sh has decoded into ``folder``, so that the step's files stay: the cuts may be others of the same name."""
    by_hand = STEP not in os.environ and _own_summary(folder).get("step")
    return f"{suffix}-by-hand" if by_hand else suffix


def summary_path(folder: PathLike, names: Sequence[str], suffix: str, tried: bool) -> Path:
    """Where a decoding's summary belongs: tables and model cards are made from ``summary.json``, which is for the recipe's
    own settings; what else is tried gets a file of its own name. What a step of a run.sh wrote, nothing else replaces.

    Args:
        names: of the test sets; by hand, others than those of the ``summary.json`` that is there are a trial.
        suffix: of :func:`own_suffix`.
        tried: whether a call by hand would be a trial; a step of a run.sh never is.
    """
    own = Path(folder) / "summary.json"
    if STEP in os.environ:
        return own
    known = _own_summary(folder)
    if not tried and list(known.get("test_sets", names)) == list(names) and not known.get("step"):
        return own
    return own.with_name(f"summary-{'-'.join(names)}-{suffix}.json")


def _own_summary(folder: PathLike) -> Dict[str, Any]:
    """The ``summary.json`` that is there; empty where none is."""
    path = Path(folder) / "summary.json"
    known = read_json(path, "delete it") if path.exists() else {}
    return known if isinstance(known, dict) else {}


def search_setting(config: DecodeConfig) -> str:
    """The search's part of the names of files."""
    options = {"greedy_search": f"-max-sym-{config.max_sym_per_frame}", "modified_beam_search": f"-beam-{config.beam}"}
    return config.method + options.get(config.method, "")


def decoding_summary(model: Mapping[str, Any], config: DecodeConfig, chunk_size: int, left_context: int) -> Dict[str, Any]:
    """The beginning of a decoding summary (see :mod:`kdlib.comparison`), for the test sets to be added.

    ``model`` has ``model`` (its name), ``parameters``, ``updates``, ``epoch`` and ``avg``. ``step`` says which step of a
    run.sh decoded, None: a call by hand.
    """
    return {**{key: model[key] for key in ("model", "parameters", "updates", "epoch", "avg")},
            "step": os.environ.get(STEP), "method": config.method,
            "max_sym_per_frame": config.max_sym_per_frame if config.method == "greedy_search" else 1,
            "beam": config.beam if config.method == "modified_beam_search" else None,
            "chunk_ms": chunk_size * FRAME_MS, "left_context_ms": left_context * FRAME_MS, "test_sets": {}}


def write_test_set(model: str, folder: Path, test: TestSet, setting: str, suffix: str, lang: Lang,
                   results: List[Tuple[str, str, Hypothesis]]) -> Dict[str, Any]:
    """Write a decoded test set's files and print its error rates; return what the summary keeps of it.

    Args:
        model: its name, for the lines that are printed.
        folder, setting, suffix: as of :func:`kdlib.scoring.write_results`.
        results: (utterance id, transcript, best hypothesis) of each cut that was decoded.
    """
    name, cuts, meter = test
    counts = write_results(folder, name, setting, suffix, [
        (id_, text.split(), lang.decode(list(hypothesis.tokens)).split()) for id_, text, hypothesis in results],
        read_takes(cuts))
    print(f"{model} {name}: {describe_errors(counts)} -> {folder}/errs-{name}-{suffix}.txt")
    if meter is not None:
        for id_, _, hypothesis in results:
            meter.add(id_, hypothesis)
        latency = counts["latency"] = meter.summary()
        if latency["words"]:
            print(f"{model} {name}: words emitted {latency['delay_ms']:.0f} ms after their end (90th percentile "
                  f"{latency['delay_p90_ms']:.0f} ms), first token shown after {latency['first_token_ms']:.0f} ms")
    return counts
