"""Rank correlation and overlap of top areas: by hand, beside SciPy, and where they mean nothing."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from camkit_export.similarity import rank_correlation, top_area_overlap


def test_rank_correlation_by_hand():
    one = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
    other = np.array([[10.0, 20.0, 300.0, 4000.0], [9.0, 8.0, 7.0, -6.0], [1.0, 2.0, 4.0, 3.0]])
    # of the third: 1 - 6 * (0 + 0 + 1 + 1) / (4 * (16 - 1))
    np.testing.assert_allclose(rank_correlation(one, other), [1, -1, 0.8])


def test_rank_correlation_equals_scipys_with_ties():
    random = np.random.RandomState(0)
    one, other = (random.randint(0, 5, (6, 7, 4)).astype(np.float64) for _ in range(2))
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlation(one, other), expected)


def test_rank_correlation_of_nothing_to_rank():
    rising = np.arange(4.0).reshape(1, 2, 2)
    assert np.isnan(rank_correlation(rising, np.ones((1, 2, 2))))
    assert np.isnan(rank_correlation(rising, rising * np.nan))


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 9, 8], 1),  # the same two values
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 9, 7, 8], 1 / 3),  # one of two in common
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 0),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 2], 1),  # zeros are no area
        ([0, 1, 2, 3, 4, 5, 6, 8, 8, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2 / 3),  # ties belong to it
        ([5, 5, 5, 5, 5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5, 5, 5, 5, 5], np.nan),
    ],
)
def test_overlap_of_top_areas(one, other, overlap):
    shaped = (np.array(values, dtype=np.float32).reshape(1, 2, 5) for values in (one, other))
    np.testing.assert_allclose(top_area_overlap(*shaped), [overlap])
