"""Bootstrap intervals and p-values: their coverage on made-up systems, and the cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from kdlib.errors import RecipeError
from kdlib.significance import RESAMPLES, paired_p_value, wer_interval


def test_an_interval_is_the_binomial_one_where_words_err_alone():
    generator = np.random.default_rng(1)
    words = np.ones(4000, dtype=int)
    errors = generator.binomial(1, 0.1, 4000)
    low, high = wer_interval(errors, words)
    want = stats.norm.interval(0.95, 100 * errors.mean(), 100 * errors.std() / 4000 ** 0.5)
    assert (low, high) == pytest.approx(want, abs=0.06)
    narrow = wer_interval(errors, words, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    inside = 0
    for seed in range(60):
        words = generator.integers(2, 9, 300)
        errors = generator.binomial(words, generator.beta(1, 9, 300))  # utterances that are easy and hard
        low, high = wer_interval(errors, words, seed=seed)
        inside += low <= 10.0 <= high
    assert inside >= 52  # of 57 expected


def test_equal_systems_are_equal_and_different_ones_differ():
    generator = np.random.default_rng(3)
    words = generator.integers(2, 9, 400)
    errors = generator.binomial(words, 0.1)
    assert paired_p_value(errors, errors, words) == 1.0
    worse = np.minimum(errors + generator.binomial(1, 0.2, 400), words)
    assert paired_p_value(errors, worse, words) == paired_p_value(worse, errors, words) == 1 / RESAMPLES


def test_p_agrees_with_the_matched_pairs_test():
    """For many utterances, the normal theory of Gillick and Cox 1989 says the same."""
    generator = np.random.default_rng(4)
    words = np.full(800, 6)
    for shift in (0.11, 0.115, 0.12):
        one, other = generator.binomial(words, 0.1), generator.binomial(words, shift)
        difference = one - other
        z = difference.mean() / (difference.std() / 800 ** 0.5)
        assert paired_p_value(one, other, words) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.03)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(RecipeError, match="no"):
        wer_interval(np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(RecipeError, match="not decoded on the same utterances"):
        paired_p_value(np.ones(3, int), np.ones(4, int), np.ones(3, int))
