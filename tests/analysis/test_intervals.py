"""Intervals against SciPy's statistics, and worked by hand."""

import math

import pytest
from scipy import stats

from lmim.analysis.intervals import interval


def test_interval_is_the_t_interval() -> None:
    """Wrong intervals would turn noise into findings."""
    values = [6.7, 7.5, 7.1, 9.0]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    found = interval(values)
    assert found.mean == pytest.approx(7.575)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_interval_by_plain_numbers() -> None:
    """Mean 2, standard error 1/sqrt(3), t quantile 4.30265 for two degrees of freedom."""
    found = interval([1.0, 2.0, 3.0])
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_equal_values_have_no_p() -> None:
    """A p of zero would call certain what no spread was seen of."""
    found = interval([2.0, 2.0, 2.0])
    assert (found.mean, found.low, found.high, found.p) == (2.0, 2.0, 2.0, None)
