"""Runs of one recipe from several seeds, pooled and compared; of each run the summaries of :mod:`kdlib.comparison`."""

import math
import statistics
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from kdlib.comparison import (UPDATES_TOLERANCE, Summary, count_lists, decoded_otherwise, format_p, headline, paired_p,
                              rate_name)
from kdlib.errors import RecipeError
from kdlib.report import format_relative, relative_change
from kdlib.significance import p_value_over_seeds


def pool_seeds(runs: Sequence[Mapping[str, Summary]]) -> Dict[str, Dict[str, Any]]:
    """The same models trained from several seeds, as if the test sets had been read once by each.

    ``runs`` holds the summaries of each seed by model. A model of the result has ``parameters``, ``updates`` (the first
    seed's) and, for each test set, ``rate`` (the name of its headline's), ``wers`` (one a seed), and
    ``errors_by_utterance`` and ``words_by_utterance`` (or those by take), summed over the seeds. A bootstrap of them
    is about these trained models: it does not know how other seeds would have come out.
    Raises :class:`RecipeError` where the runs do not hold the same models, of the same size, trained as long, averaged over as
    many epochs and decoded in the same way on the same test sets, or where two of them are one.
    """
    pooled: Dict[str, Dict[str, Any]] = {}
    first = {name: headline(test) for name, test in next(iter(runs[0].values()))["test_sets"].items()}
    for number, run in enumerate(runs, start=1):
        if list(run) != list(runs[0]):
            raise _no_seeds(f"run {number} holds the models {', '.join(run)}; the first one {', '.join(runs[0])}")
        for model, summary in run.items():
            into = pooled.setdefault(model, {"parameters": summary["parameters"], "updates": summary["updates"],
                                             "test_sets": {}})
            if into["parameters"] != summary["parameters"]:
                raise _no_seeds(f"{model} has {summary['parameters']:,} parameters in run {number} and "
                                f"{into['parameters']:,} in the first one")
            if abs(into["updates"] - summary["updates"]) > UPDATES_TOLERANCE * into["updates"]:
                raise _no_seeds(f"{model} was trained for {summary['updates']:,} updates in run {number} and for "
                                f"{into['updates']:,} in the first one: that is more than another seed")
            if summary["avg"] != runs[0][model]["avg"]:
                raise _no_seeds(f"{model} is the mean of {_epochs(summary['avg'])} in run {number} and of "
                                f"{_epochs(runs[0][model]['avg'])} in the first one")
            other = decoded_otherwise(summary, runs[0][model])
            if other:
                raise _no_seeds(f"{model} was decoded otherwise in run {number} than in the first one: {other}")
            for name, whole in summary["test_sets"].items():
                test = headline(whole)
                keys = count_lists(first.get(name, test))
                if name not in first or test.get(keys[1]) != first[name][keys[1]]:
                    raise _no_seeds(f"{model} was decoded on another {name} in run {number} than the first model in "
                                    "the first one")
                sums = into["test_sets"].setdefault(name, {"wers": [], "rate": rate_name(whole),
                                                           **{key: [0] * len(test[key]) for key in keys}})
                # Not the rounded rate: equal differences would differ by what was rounded, and seem to agree for certain.
                sums["wers"].append(100.0 * test["errors"] / test["words"])
                for key in keys:
                    sums[key] = [a + b for a, b in zip(sums[key], test[key])]
            if any(len(test["wers"]) != number for test in into["test_sets"].values()):
                raise _no_seeds(f"{model} was decoded on other test sets in run {number} than in the first one")
        for earlier, same in enumerate(runs[:number - 1], start=1):
            if all(_same_training(run[model], same[model]) for model in run):
                raise _no_seeds(f"runs {earlier} and {number} do not differ in any model: they are one run, or two of one "
                                "seed")
    return pooled


def _no_seeds(what: str) -> RecipeError:
    return RecipeError(f"{what}: give runs of one recipe that differ in training.seed alone")


def _same_training(one: Summary, other: Summary) -> bool:
    """By their weights, where both tell a digest of these; else by their errors, which may be the same by chance."""
    weights = [summary.get("training", {}).get("weights") for summary in (one, other)]
    return weights[0] == weights[1] if all(weights) else one["test_sets"] == other["test_sets"]


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def seeds_table(pooled: Mapping[str, Mapping[str, Any]]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of pooled seeds: mean and standard deviation, and p against the first model and the last
    stage."""
    models = list(pooled)
    teacher = pooled[models[0]]
    last = [model for model in models if model.startswith("stage")][-1]
    header = ["Model", "Params", "% of teacher", "Updates"]
    for name, test in teacher["test_sets"].items():
        header += [f"{rate_name(test)} {name}", "sd", "each", "rel.", "p teacher", f"p {last}"]
    rows = []
    for model, row in pooled.items():
        cells = [model, f"{row['parameters']:,}", f"{100 * row['parameters'] / teacher['parameters']:.1f}",
                 f"{row['updates']:,}"]
        for name, reference in teacher["test_sets"].items():
            test = row["test_sets"][name]
            errors, words = (test[key] for key in count_lists(test))
            mean = 100 * sum(errors) / sum(words)
            base = 100 * sum(reference[count_lists(reference)[0]]) / sum(words)
            spread = statistics.stdev(test["wers"]) if len(test["wers"]) > 1 else math.nan
            cells += [f"{mean:.2f}", "" if math.isnan(spread) else f"{spread:.2f}",
                      " ".join(f"{wer:.2f}" for wer in test["wers"]),
                      format_relative(relative_change(mean, base))]
            cells += ["" if other == model else
                      format_p(paired_p(test, pooled[other]["test_sets"][name]))
                      for other in (models[0], last)]
        rows.append(cells)
    return header, rows


def seed_differences_table(pooled: Mapping[str, Mapping[str, Any]]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of pooled seeds: the last stage beside the teacher and each baseline, in each seed."""
    first, *others = pooled
    last = [model for model in pooled if model.startswith("stage")][-1]
    header = ["Compared"]
    for name in pooled[first]["test_sets"]:
        header += [name, "each", "p models", "p seeds"]
    rows = []
    for other in [first, *(model for model in others if not model.startswith("stage"))]:
        cells = [f"{last} - {other}"]
        for name in pooled[first]["test_sets"]:
            test, theirs = (pooled[model]["test_sets"][name] for model in (last, other))
            each = [ours - their for ours, their in zip(test["wers"], theirs["wers"])]
            cells += [f"{statistics.mean(each):+.2f}", " ".join(f"{one:+.2f}" for one in each),
                      format_p(paired_p(test, theirs)), format_p(p_value_over_seeds(each))]
        rows.append(cells)
    return header, rows
