"""Bootstrap intervals and p-values: their coverage on made-up systems, and the cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from kdlib.errors import RecipeError
from kdlib.significance import RESAMPLES, p_value_over_seeds, paired_p_value, wer_interval


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


def test_draws_that_tell_nothing_speak_for_both():
    """Of two utterances that contradict each other a quarter of the draws is for each system, half for neither."""
    assert paired_p_value([1, 0], [0, 1], [1, 1]) == 1.0


def test_every_utterance_is_drawn_and_one_without_words_has_a_rate():
    assert wer_interval([0, 0, 0, 4], [4, 4, 4, 4])[1] > 0.0 < wer_interval([4, 0, 0, 0], [4, 4, 4, 4])[1]
    assert np.isfinite(wer_interval([1, 1], [0, 5])).all()  # a quarter of the draws is of the first alone
    intervals = {wer_interval([0, 1, 0, 2, 0, 3, 1], [5, 4, 6, 3, 2, 7, 3], level=0.9, seed=seed) for seed in range(3)}
    assert len(intervals) > 1  # other seeds draw others


def test_p_agrees_with_the_matched_pairs_test():
    """For many utterances, the normal theory of Gillick and Cox 1989 says the same."""
    generator = np.random.default_rng(4)
    words = np.full(800, 6)
    for shift in (0.11, 0.115, 0.12):
        one, other = generator.binomial(words, 0.1), generator.binomial(words, shift)
        difference = one - other
        z = difference.mean() / (difference.std() / 800 ** 0.5)
        assert paired_p_value(one, other, words) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.03)


@pytest.mark.parametrize("differing", [1, 2, 4, 5, 9])
def test_few_differing_utterances_show_no_more_than_a_sign_test(differing):
    words, errors = np.full(400, 5), np.zeros(400, int)
    other = errors.copy()
    other[:differing] = 1
    exact = stats.binomtest(0, differing).pvalue
    assert paired_p_value(errors, other, words) == pytest.approx(exact)


def test_p_over_seeds_is_that_of_a_paired_t_test():
    one, other = [2.0, 2.5, 3.1, 2.2], [2.4, 2.6, 3.9, 2.3]
    assert p_value_over_seeds(np.subtract(one, other)) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert p_value_over_seeds([0.0, 0.0]) == 1.0
    # Equal differences, here but for rounding, are chance where errors are few, and no certainty.
    for unknown in ([0.3], [0.0], [-0.5, -0.5], [1.1 - 1.0, 6.1 - 6.0, 7.3 - 7.2]):
        assert np.isnan(p_value_over_seeds(unknown))


def test_p_over_seeds_is_small_as_often_as_it_says_where_seeds_differ():
    """Two systems that are equally good but for the luck of each training: the p of the models at hand finds a difference
    in most of them, the p over seeds in one of twenty."""
    generator = np.random.default_rng(6)
    words, found, models = np.full(300, 6), 0, 0
    for _ in range(200):
        totals = np.zeros((2, 300), int)
        rates = []
        for system in range(2):
            luck = generator.uniform(0.05, 0.15, size=3)  # a training's rate of errors
            errors = generator.binomial(words, luck[:, None], size=(3, 300))
            totals[system] = errors.sum(0)
            rates.append(100 * errors.sum(1) / words.sum())
        found += p_value_over_seeds(np.subtract(*rates)) < 0.05
        z = np.subtract(*totals).mean() / (np.subtract(*totals).std() / 300 ** 0.5)
        models += 2 * stats.norm.sf(abs(z)) < 0.05  # as the bootstrap, by the test above, and faster
    assert 2 <= found <= 20 and models > 100


def test_what_cannot_be_compared_is_said():
    with pytest.raises(RecipeError, match="needs reference words and there are none"):
        wer_interval(np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(RecipeError, match="not decoded on the same utterances"):
        paired_p_value(np.ones(3, int), np.ones(4, int), np.ones(3, int))
