"""How far a word error rate can be trusted: bootstrap over utterances, of one system and of two on the same test set.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

N utterances; their errors and reference words are int arrays (N,) in one order.
"""

from typing import Iterator, Sequence, Tuple

import numpy as np

from kdlib.errors import RecipeError

RESAMPLES = 10_000


def _resampled(seed: int, *columns: np.ndarray) -> Iterator[Tuple[np.ndarray, ...]]:
    """The columns' sums over utterances drawn with replacement, some hundred draws at a time, RESAMPLES in all."""
    generator = np.random.default_rng(seed)
    count = len(columns[0])
    at_once = max(1, min(RESAMPLES, 2**22 // count))
    for first in range(0, RESAMPLES, at_once):
        draws = generator.integers(0, count, size=(min(at_once, RESAMPLES - first), count), dtype=np.int32)
        yield tuple(column[draws].sum(1) for column in columns)


def _check(words: np.ndarray, *errors: np.ndarray) -> None:
    if len(words) == 0 or words.sum() == 0:
        raise RecipeError("a word error rate needs reference words and there are none")
    if any(len(column) != len(words) for column in errors):
        raise RecipeError("the systems to be compared were not decoded on the same utterances: decode again")


def wer_interval(errors: np.ndarray, words: np.ndarray, level: float = 0.95, seed: int = 0) -> Tuple[float, float]:
    """The percentile bootstrap interval of a word error rate, in per cent.

    Args:
        errors, words: of each utterance.
        level: the part of the resampled rates that lies inside.
    Raises:
        RecipeError: there is no reference word.
    """
    errors, words = np.asarray(errors), np.asarray(words)
    _check(words, errors)
    rates = np.concatenate([100.0 * e / np.maximum(w, 1) for e, w in _resampled(seed, errors, words)])
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(errors: np.ndarray, other_errors: np.ndarray, words: np.ndarray, seed: int = 0) -> float:
    """The two-sided p-value of "both systems are equally good", by the paired bootstrap.

    Both are resampled with the same utterances; p is twice the part of the resamples in which the difference of the
    errors is zero or lies on the other side of zero than most do. It is never below 1 / RESAMPLES, which the
    bootstrap could not tell from zero, nor below 2 / 2^k, k being the utterances that tell the systems apart: that is how
    often k fair coins all fall on one side, and the bootstrap, which draws from these k alone, would give less.

    Args:
        errors, other_errors: of each utterance, by the two systems; words: reference words of each utterance.
    Raises:
        RecipeError: there is no reference word, or the systems did not decode the same utterances.
    """
    errors, other_errors, words = np.asarray(errors), np.asarray(other_errors), np.asarray(words)
    _check(words, errors, other_errors)
    worse, better = 0, 0
    for (difference,) in _resampled(seed, errors - other_errors):
        worse += int((difference >= 0).sum())
        better += int((difference <= 0).sum())
    least = max(1 / RESAMPLES, 2.0 ** (1 - np.count_nonzero(errors != other_errors)))
    return float(min(1.0, max(2 * min(worse, better) / RESAMPLES, least)))


def p_value_over_seeds(differences: Sequence[float]) -> float:
    """The two-sided p-value of "trained from other seeds, both are equally good": Student's t of the seeds' differences.

    Unlike :func:`paired_p_value`, which is about the models at hand, it counts the seeds, so that three of them show only
    what all three agree on.

    Args:
        differences: of the two systems' word error rates, one a seed.
    Returns:
        nan for fewer than two seeds, and where all differences are the same, as those of few errors may be by chance: t
        is without bounds then and says nothing. 1.0 where no seed tells the systems apart.
    """
    from scipy import stats  # half a second, which whoever compares two models need not wait

    if not np.any(differences):
        return 1.0 if len(differences) > 1 else float("nan")
    if len(differences) < 2 or np.ptp(differences) < 1e-9:  # percentages, equal but for rounding
        return float("nan")
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
