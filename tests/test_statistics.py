"""Bootstrap intervals: cases by hand, and how often they hold the true mean."""

import math

import numpy as np
import pytest

from camkit.statistics import bootstrap, bootstrap_together


def test_what_is_not_judged_does_not_count():
    found = bootstrap([1.0, math.nan, 3.0])
    assert (found.value, found.count) == (2.0, 2)
    assert (found.low, found.high) == (1.0, 3.0)  # each of the four samples of two has a quarter of the weight


def test_no_values_and_one_value():
    empty = bootstrap([math.nan])
    assert (math.isnan(empty.value), empty.count) == (True, 0)
    one = bootstrap([5.0])
    assert (one.value, one.low, one.high, one.count) == (5.0, 5.0, 5.0, 1)


def test_a_seed_repeats_the_interval_and_another_does_not():
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_an_interval_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(2).normal(size=400)
    found = bootstrap(values, draws=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    random = np.random.default_rng(5)
    held = sum((found := bootstrap(random.uniform(size=60), draws=500)).low <= 0.5 <= found.high for _ in range(300))
    assert 0.90 <= held / 300 <= 0.98


def test_other_statistics():
    found = bootstrap([0.0, 0.0, 1.0], lambda values: np.median(values, axis=-1))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 1.0)


def test_series_are_drawn_together():
    """Of two series that differ by 1 at every sample the difference of means is 1 in every draw."""
    first = np.random.default_rng(0).normal(size=50)
    series = np.stack([first, first - 1])

    def difference(values):
        means = values.mean(axis=1)
        return np.array([means[0] - means[1], means[1]])

    apart, own = bootstrap_together(series, difference)
    assert (apart.value, apart.low, apart.high) == pytest.approx((1, 1, 1))
    alone = bootstrap(first - 1)
    assert own.value == pytest.approx(alone.value)
    assert (own.low, own.high) == pytest.approx((alone.low, alone.high), abs=0.05)
    assert own.low < own.value < own.high


def test_series_count_what_is_judged_and_repeat_with_a_seed():
    values = np.array([[[0.0, 1.0], [np.nan, np.nan], [1.0, np.nan]], [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]])

    def mean(values):
        return np.nansum(values, axis=(1, 2)) / np.maximum(np.isfinite(values).sum(axis=(1, 2)), 1)

    found = bootstrap_together(values, mean, seed=3)
    assert [one.count for one in found] == [2, 3]
    assert found == bootstrap_together(values, mean, seed=3)
    many = np.random.default_rng(0).normal(size=(1, 20, 2))
    assert bootstrap_together(many, mean, seed=3) != bootstrap_together(many, mean, seed=4)
    unknown = bootstrap_together(np.full((1, 2), np.nan), lambda values: values.mean(axis=1))[0]
    assert unknown.count == 0
    assert np.isnan([unknown.value, unknown.low, unknown.high]).all()
