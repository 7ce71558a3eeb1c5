"""A teacher, the chain of students made from it and their baselines, compared from their decoding summaries.

A *summary* is what decoding leaves behind: a dict with ``model``, ``parameters`` (deployed ones), ``updates``,
``epoch``, ``avg``, ``method``, ``max_sym_per_frame``, ``chunk_ms``, ``left_context_ms``, ``seconds`` and, under
``test_sets``, for each test set ``wer`` (per cent), ``errors``, ``words``, ``ins``, ``del``, ``sub``, ``utterances``,
and ``errors_by_utterance`` and ``words_by_utterance``, lists in the order of the ids, and perhaps
``errors_by_take`` and ``words_by_take`` (see :func:`kdlib.scoring.read_takes`), which the bootstrap then draws in place of
utterances, and ``latency`` (see :class:`kdlib.latency.LatencyMeter`). A test set in Chinese or Japanese also has
``characters``: the same figures counted over characters, whose ``wer`` is the character error rate (CER); models are
compared by these. ``beam`` is there where the search has one. An optional ``step`` names the step of a run.sh that decoded,
an optional ``training`` holds what is known of the training (``seconds``, ``torch``, ...).
"""

import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from kdlib.errors import RecipeError
from kdlib.files import PathLike, read_json
from kdlib.report import format_relative, relative_change
from kdlib.significance import RESAMPLES, paired_p_value, wer_interval

Summary = Mapping[str, Any]

CER_NOTE = ("CER counts errors over characters, each Chinese or Japanese one on its own and a word in Latin letters as one. "
            "The WER beside it counts over what stands between spaces: in transcripts without spaces, the part of the "
            "utterances that have an error.")

# What must be the same for two word error rates to be compared.
SETTINGS = ("method", "max_sym_per_frame", "chunk_ms", "left_context_ms")
# Batches are bucketed anew in every epoch, so trainings of equally many epochs differ by a few updates.
UPDATES_TOLERANCE = 0.02
_COUNTS = ("wer", "errors", "words", "ins", "del", "sub", "utterances")
_BY_UTTERANCE = ("errors_by_utterance", "words_by_utterance")
_BY_TAKE = ("errors_by_take", "words_by_take")


def summary_problem(summary: Any, model: str) -> Optional[str]:
    """What keeps ``summary`` from being one of ``model``, to be read after the name of its file; None when it is."""
    if not isinstance(summary, dict) or not isinstance(summary.get("test_sets"), dict) or not summary["test_sets"]:
        return "is not a decoding summary"
    if summary.get("model") != model:
        return f"belongs to model {summary.get('model')!r}, not to {model!r}"
    for key in ("parameters", "updates", "epoch", "avg", *SETTINGS):
        if key not in summary:
            return f"has no {key}"
    for key in ("parameters", "updates", "chunk_ms", "left_context_ms"):
        if not is_number(summary[key]):
            return f"has no number as {key}"
    if summary["parameters"] <= 0:
        return f"counts {summary['parameters']} parameters"
    for name, test in summary["test_sets"].items():
        for counted in (test, headline(test)) if isinstance(test, dict) else (test,):
            for key in _COUNTS:
                if not isinstance(counted, dict) or not is_number(counted.get(key)):
                    return f"has no number {key} for test set {name}"
            for key, total in zip((*_BY_UTTERANCE, *(_BY_TAKE if _BY_TAKE[0] in counted else ())), ("errors", "words") * 2):
                counts = counted.get(key)
                if not isinstance(counts, list) or not all(is_number(n) for n in counts) or sum(counts) != counted[total]:
                    return f"has no {key} that add up to the {total} of test set {name}"
    return None


def headline(test: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of a test set that models are compared by: those over characters where it has them, else over words."""
    return test.get("characters", test)


def count_lists(test: Mapping[str, Any]) -> Tuple[str, str]:
    """Under which keys of a headline are the errors and words of what the bootstrap draws: takes that several utterances
    share are drawn themselves, since utterances would pass for independent that are not."""
    return _BY_TAKE if _BY_TAKE[0] in test else _BY_UTTERANCE


def paired_p(test: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The p-value of a paired bootstrap of two headlines of one test set."""
    errors, words = count_lists(test)
    return paired_p_value(test[errors], other.get(errors, ()), test[words])


def drawn_over(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """What the bootstrap draws of these test sets, in words."""
    kinds = {test.get("drawn", "takes" if _BY_TAKE[0] in headline(test) else "utterances") for test in tests.values()}
    return " or ".join("takes (recorded words, which several utterances share)" if kind == "takes" else kind
                       for kind in sorted(kinds, reverse=True))


def rate_name(test: Mapping[str, Any]) -> str:
    """What the headline's rate is called."""
    return test.get("rate", "CER" if "characters" in test else "WER")


def rate_names(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """The headline rates of these test sets."""
    return " and ".join(sorted({rate_name(test) for test in tests.values()}))


def full_rate_name(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """What the headline rates of these test sets are called together, in words."""
    names = {rate_name(test) for test in tests.values()}
    return {"CER": "character error rate", "WER": "word error rate"}[names.pop()] if len(names) == 1 else "error rate"


def read_summary(path: PathLike, model: str, remedy: str) -> Dict[str, Any]:
    """The decoding summary of ``model``; a :class:`RecipeError` names what is wrong with the file, and ``remedy``."""
    summary = read_json(path, remedy)
    problem = summary_problem(summary, model)
    if problem:
        raise RecipeError(f"{path} {problem}: {remedy}")
    return summary


def reference_words(summary: Summary) -> Dict[str, List[int]]:
    """How many words each utterance of each test set has: error rates over other words cannot be compared."""
    return {name: headline(test)["words_by_utterance"] for name, test in summary["test_sets"].items()}


def compare(summaries: Mapping[str, Summary], chain: Sequence[str], baselines: Sequence[str],
            matched: Mapping[str, Sequence[str]], target: Optional[float]) -> Dict[str, Any]:
    """Compare all models with the first of ``chain``, the teacher; returns a dict ready for JSON.

    ``summaries`` is in the order of the rows; ``chain`` is the teacher and its students, the last one the smallest;
    ``baselines`` have the last student's size; ``matched`` gives for some of them the part of the chain that they shall
    have as many updates as, together (within ``UPDATES_TOLERANCE``); ``target`` is the compression aimed at, in per cent
    of the teacher's parameters, None where it was none in per cent.
    The result's ``rows`` keep all figures of the summaries; ``warnings`` are sentences on what makes the comparison
    unfair or the target unmet. All summaries must hold the same test sets.
    """
    teacher, students = summaries[chain[0]], chain[1:]
    rows = [{
        "model": model,
        "parameters": summary["parameters"],
        "percent_of_teacher": 100.0 * summary["parameters"] / teacher["parameters"],
        "updates": summary["updates"],
        **{key: summary[key] for key in ("epoch", "avg", *SETTINGS)},
        "beam": summary.get("beam"),
        "decode_seconds": summary.get("seconds"),
        "training": dict(summary.get("training", {})),
        "test_sets": {name: _figures(summary["test_sets"][name], test) for name, test in teacher["test_sets"].items()},
    } for model, summary in summaries.items()]
    return {
        **{key: teacher[key] for key in SETTINGS},
        "beam": teacher.get("beam"),
        "target_compression": target,
        "reached_compression": 100.0 - 100.0 * summaries[chain[-1]]["parameters"] / teacher["parameters"],
        "stages": len(students),
        "stage_updates": sum(summaries[student]["updates"] for student in students),
        "matched": {model: list(part) for model, part in matched.items() if _as_many_updates(summaries, model, part)},
        "test_sets": list(teacher["test_sets"]),
        "warnings": _warnings(summaries, chain, baselines, matched, target),
        "rows": rows,
        "differences": [_difference(summaries, chain[-1], other) for other in (chain[0], *baselines)],
    }


def _figures(test: Mapping[str, Any], teacher: Mapping[str, Any]) -> Dict[str, Any]:
    """A test set's figures of one model, with their interval and what they are beside the teacher's."""
    errors, words = (headline(test)[key] for key in count_lists(headline(test)))
    figures = {key: value for key, value in test.items() if key not in _BY_UTTERANCE + _BY_TAKE}
    if "characters" in test:
        figures["characters"] = {key: value for key, value in test["characters"].items() if key not in _BY_UTTERANCE}
    return {
        **figures,
        "drawn": "takes" if count_lists(headline(test)) == _BY_TAKE else "utterances",
        "interval": wer_interval(errors, words),
        "relative": relative_change(_rate(test), _rate(teacher)),
        "p_teacher": paired_p(headline(test), headline(teacher)),
    }


def _difference(summaries: Mapping[str, Summary], model: str, other: str) -> Dict[str, Any]:
    """Two models on each test set: the difference of their error rates and its p-value."""
    tests = {name: (test, summaries[other]["test_sets"][name]) for name, test in summaries[model]["test_sets"].items()}
    return {"model": model, "other": other, "test_sets": {
        name: {"difference": _rate(ours) - _rate(theirs), "p": paired_p(headline(ours), headline(theirs))}
        for name, (ours, theirs) in tests.items()}}


def _rate(test: Mapping[str, Any]) -> float:
    """Per cent, as the counts have it: what a summary says of it is rounded."""
    return 100.0 * headline(test)["errors"] / headline(test)["words"]


def format_p(p: float) -> str:
    """A p-value with as many digits as a bootstrap gives; nothing for nan."""
    if math.isnan(p):
        return ""
    least = 1 / RESAMPLES
    if p <= least:
        return f"<{2 * least:g}"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}"


def table(comparison: Mapping[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of the table of :func:`compare`: one row a model, four columns a test set, and the word error rate
    where another one leads."""
    header = ["Model", "Params", "% of teacher", "Updates"]
    for name, test in comparison["rows"][0]["test_sets"].items():
        header += [f"{rate_name(test)} {name}", "95%", "rel.", "p"] + [f"WER {name}"] * ("characters" in test)
    rows = []
    for row in comparison["rows"]:
        cells = [row["model"], f"{row['parameters']:,}", f"{row['percent_of_teacher']:.1f}", f"{row['updates']:,}"]
        for name in comparison["test_sets"]:
            test = row["test_sets"][name]
            low, high = test["interval"]
            p = "" if row is comparison["rows"][0] else format_p(test["p_teacher"])
            cells += [f"{headline(test)['wer']:.2f}", f"{low:.1f}-{high:.1f}" if low < high else "",
                      format_relative(test["relative"]), p]
            if "characters" in test:
                cells.append(f"{test['wer']:.2f}")
        rows.append(cells)
    return header, rows


def differences_table(comparison: Mapping[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells: the last stage beside the teacher and each baseline."""
    header = ["Compared"]
    for name in comparison["test_sets"]:
        header += [f"{name}", "p"]
    rows = []
    for row in comparison["differences"]:
        cells = [f"{row['model']} - {row['other']}"]
        for name in comparison["test_sets"]:
            test = row["test_sets"][name]
            cells += [f"{test['difference']:+.2f}", format_p(test["p"])]
        rows.append(cells)
    return header, rows


def errors_table(comparison: Mapping[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells: what the errors of each model are, on each test set."""
    names = comparison["test_sets"]
    return (["Model", *(f"{kind} {name}" for name in names for kind in ("insertions", "deletions", "substitutions"))],
            [[row["model"], *(f"{headline(row['test_sets'][name])[kind]:,}" for name in names
                              for kind in ("ins", "del", "sub"))] for row in comparison["rows"]])


def has_latency(summary: Summary) -> bool:
    """Whether the latency of each test set was measured."""
    return all("latency" in test for test in summary["test_sets"].values())


def latency_table(summaries: Sequence[Summary]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells: how late each model is on each test set."""
    header = ["Model"]
    for name in summaries[0]["test_sets"]:
        header += [f"Delay {name}", "90%", "first token"]
    rows = []
    for summary in summaries:
        cells = [summary["model"]]
        for test in summary["test_sets"].values():
            cells += [_milliseconds(test["latency"][key]) for key in ("delay_ms", "delay_p90_ms", "first_token_ms")]
        rows.append(cells)
    return header, rows


def _milliseconds(value: Optional[float]) -> str:
    return "-" if value is None else f"{round(value)}"  # an int: -0.4 is 0, not -0


def latency_legend(chunk_ms: float) -> str:
    """A sentence that says what the figures of :func:`latency_table` are."""
    heard = f"frame's chunk of {chunk_ms:g} ms is whole" if chunk_ms else "utterance has ended"
    return ("In milliseconds. Delay: from the end of a word to the frame that emitted it, mean and 90th percentile over "
            "the words recognised rightly; a word ends where the teacher, given the whole utterance, emits it on its best "
            "path through the transcript (`local/align.py`). First token: from the beginning of the audio to when it can "
            f"be shown. To the delay comes the wait until the {heard}.")


def ablation_table(arms: Mapping[str, Summary]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of models that are compared with the first of them; with their emission delays, where measured."""
    first = next(iter(arms))
    test_sets = list(arms[first]["test_sets"])
    timed = all(map(has_latency, arms.values()))
    rows = []
    for name, summary in arms.items():
        cells = [name, f"{summary['parameters']:,}", f"{summary['updates']:,}"]
        against = _difference(arms, name, first)["test_sets"]
        for test_set in test_sets:
            beside = "" if name == first else (f" ({against[test_set]['difference']:+.2f}, "
                                               f"p {format_p(against[test_set]['p'])})")
            cells.append(f"{headline(summary['test_sets'][test_set])['wer']:.2f}{beside}")
            if timed:
                latency = summary["test_sets"][test_set]["latency"]
                cells.append(f"{_milliseconds(latency['delay_ms'])} / {_milliseconds(latency['delay_p90_ms'])}")
        rows.append(cells)
    columns = [column for name, test in arms[first]["test_sets"].items()
               for column in [f"{rate_name(test)} {name}", *(["delay / 90%"] if timed else [])]]
    return ["Arm", "Params", "Updates", *columns], rows


def legend(comparison: Mapping[str, Any]) -> List[str]:
    """Sentences that say how the figures of :func:`table` were come by."""
    cap, beam, target = comparison["max_sym_per_frame"], comparison.get("beam"), comparison["target_compression"]
    tests = comparison["rows"][0]["test_sets"]
    words = "; ".join(f"{name} {headline(test)['words']:,} in {test['utterances']:,} utterances"
                      for name, test in tests.items())
    rates = rate_names(tests)
    left = comparison["left_context_ms"]
    left = f"{left:g} ms of left context" if left >= 0 else "all that came before"
    heard = f"chunks of {comparison['chunk_ms']:g} ms with {left}" if comparison["chunk_ms"] else "each utterance as a whole"
    units = "characters" if rates == "CER" else "words" if rates == "WER" else "words or characters"
    return [
        f"{rates} in per cent, with its bootstrap interval of 95% over {drawn_over(tests)} (none where no draw differs); "
        "rel. is the change against the teacher, p that of a paired bootstrap against it (two-sided, one training each: it "
        f"knows nothing of other seeds). Reference {units}: {words}.",
        *([CER_NOTE] if "CER" in rates else []),
        f"Decoding: {comparison['method']}{f' with a beam of {beam}' if beam else ''}, "
        + (f"at most {cap} symbol{'s' if cap != 1 else ''} a frame, " if cap else "no cap on the symbols a frame, ")
        + f"{heard}.",
        "Params: encoder, predictor and joiner, as deployed; heads that only training uses are left out.",
        f"Updates: of that model alone. The last stage rests on {comparison['stage_updates']:,} updates, those of every "
        f"stage up to it, and on the teacher's {comparison['rows'][0]['updates']:,}."
        + "".join(f" {model} has as many as {_part(part)}." for model, part in comparison["matched"].items()),
        f"Compression: the last stage is {_floor(comparison['reached_compression'])}% smaller than the teacher"
        + (f" (target {target:g}%)." if target is not None else "."),
    ]


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _warnings(summaries: Mapping[str, Summary], chain: Sequence[str], baselines: Sequence[str],
              matched: Mapping[str, Sequence[str]], target: Optional[float]) -> List[str]:
    warnings = []
    teacher, last = summaries[chain[0]], summaries[chain[-1]]
    reached = 100.0 - 100.0 * last["parameters"] / teacher["parameters"]
    if target is not None and reached < target - 1e-9:
        warnings.append(f"the last stage is {_floor(reached)}% smaller than the teacher; the target is {target:g}%.")
    for model, part in matched.items():
        if not _as_many_updates(summaries, model, part):
            together = sum(summaries[other]["updates"] for other in part)
            warnings.append(f"{model} had {summaries[model]['updates']:,} updates and {_part(part)} had {together:,}; the "
                            "comparison is not matched.")
    for model in baselines:
        if summaries[model]["parameters"] != last["parameters"]:
            warnings.append(f"{model} has {summaries[model]['parameters']:,} parameters and {chain[-1]} has "
                            f"{last['parameters']:,}; baselines must have its size.")
    for model, summary in summaries.items():
        bad = summary.get("training", {}).get("bad_updates", 0)
        if bad:
            warnings.append(f"{model} left out {bad:,} of its {summary['updates']:,} updates, whose gradients were not finite.")
        other = decoded_otherwise(summary, teacher)
        if other:
            warnings.append(f"{model} was decoded otherwise than the teacher: {other}.")
    return warnings


def _as_many_updates(summaries: Mapping[str, Summary], model: str, part: Sequence[str]) -> bool:
    together = sum(summaries[other]["updates"] for other in part)
    return abs(summaries[model]["updates"] - together) <= UPDATES_TOLERANCE * together


def _part(chain: Sequence[str]) -> str:
    """Models that follow each other, in words."""
    return chain[0] if len(chain) == 1 else f"{chain[0]} to {chain[-1]} together"


def decoded_otherwise(summary: Summary, reference: Summary) -> str:
    """Which settings of its decoding differ from the other's, in words; empty where none does."""
    return ", ".join(f"{key} {summary.get(key)} instead of {reference.get(key)}" for key in (*SETTINGS, "beam")
                     if summary.get(key) != reference.get(key))


def _floor(percent: float) -> str:
    """One decimal, rounded down: 59.96 must not be shown as the 60.0 that it misses."""
    # The addend undoes the noise of float arithmetic below a whole tenth.
    return f"{math.floor(10 * percent + 1e-9) / 10:.1f}"
