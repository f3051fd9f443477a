"""Bootstrap intervals: cases by hand, and how often they hold the true mean."""

import math

import numpy as np
import pytest

from camkit.statistics import bootstrap


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
