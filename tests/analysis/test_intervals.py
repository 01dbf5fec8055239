"""Intervals against SciPy's statistics, and worked by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import quad

from lmim.analysis.intervals import PRIOR, critical, holm, interval, log_e, seeds_to_decide, smallest_effect


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


def mixture(n: int, t: float) -> float:
    """The e-value by its definition: the noncentral t's density, averaged over effects, by the central."""
    scale = math.sqrt(PRIOR)

    def weighted(effect: float) -> float:
        density = float(stats.nct.pdf(t, n - 1, effect * math.sqrt(n)))
        return float(stats.norm.pdf(effect, scale=scale)) * density

    whole, _ = quad(weighted, -6 * scale, 6 * scale, points=[t / math.sqrt(n)], limit=200)
    return whole / float(stats.t.pdf(t, n - 1))


@pytest.mark.parametrize(("n", "t"), [(2, 1.0), (3, 0.0), (3, -4.0), (5, 2.5), (8, 5.0)])
def test_the_evidence_is_the_mixtures(n: int, t: float) -> None:
    """A slip in the closed form would make every sequential verdict too bold or too shy."""
    assert math.exp(log_e(n, t)) == pytest.approx(mixture(n, t), rel=1e-4)


def test_evidence_by_plain_numbers() -> None:
    """n = 3, t = 2: the spread is 25, u is 2, so e = 25**-0.5 * (3 / 1.08)**1.5 = 0.9259."""
    assert math.exp(log_e(3, 2.0)) == pytest.approx(0.2 * (3 / 1.08) ** 1.5)


@pytest.mark.parametrize("n", [3, 4, 12, 100])
def test_the_sequence_is_where_the_evidence_is_20(n: int) -> None:
    """An interval and a p that disagree would say of one claim both supported and undecided."""
    assert math.exp(log_e(n, critical(n, sequential=True))) == pytest.approx(20)
    values = [1.0 + math.sin(k) for k in range(n)]
    found = interval(values, sequential=True)
    assert found.low is not None
    assert found.p is not None
    assert (found.low > 0) == (found.p < 0.05)
    assert interval(values, found.low, sequential=True).p == pytest.approx(0.05)


def test_two_values_bound_nothing() -> None:
    """Two values agree by chance however far they are from zero: a bound of them would not hold."""
    found = interval([5.0, 5.001], sequential=True)
    assert (found.n, found.low, found.high) == (2, None, None)
    assert found.p is not None
    assert found.p > 0.05
    assert smallest_effect(found) is None
    assert interval([2.0, 2.0, 2.0], sequential=True).p is None


# Looking after every value


def excluded(effect: float, looks: int, sequential: bool, runs: int = 20_000) -> NDArray[np.bool_]:
    """Runs by looks 2, 3, ...: whether the interval is off zero where the mean is `effect` deviations."""
    values = np.random.default_rng(looks).standard_normal((runs, looks)) + effect
    n = np.arange(1, looks + 1)
    mean = values.cumsum(1) / n
    squares = np.square(values).cumsum(1) - n * np.square(mean)
    error = np.sqrt(squares[:, 1:] / (n[1:] - 1) / n[1:])
    reach = np.array([critical(int(k), sequential=sequential) for k in n[1:]])
    return np.asarray(np.abs(mean[:, 1:]) > reach * error)


def test_looking_at_every_seed_is_allowed() -> None:
    """Else a sweep that adds seeds until its claims are decided finds what is not there."""
    assert excluded(0.0, 30, sequential=True).any(1).mean() <= 0.05
    assert excluded(0.0, 12, sequential=True).any(1).mean() <= 0.05
    # what the t-interval would make of the same: three runs in ten
    assert 0.27 < excluded(0.0, 30, sequential=False).any(1).mean() < 0.32


def test_the_sequence_covers_wherever_one_stops() -> None:
    """Else the interval that is shown at the end of such a sweep misses the difference too often."""
    off = excluded(0.0, 30, sequential=True)
    decided = excluded(1.0, 30, sequential=True)  # another question's answer says when to stop
    stop = np.where(decided.any(1), decided.argmax(1), 28)
    assert off[np.arange(len(off)), stop].mean() <= 0.05
    worst = off.argmax(1)  # and so does whoever wants to see it fail
    assert off[np.arange(len(off)), worst].mean() <= 0.05


@pytest.mark.parametrize(("effect", "power", "mean"), [(1, 0.45, 10.5), (2, 0.98, 6.4), (5, 1.0, 4.0)])
def test_what_the_sequence_finds_by_twelve_seeds(effect: float, power: float, mean: float) -> None:
    """An interval that holds but decides nothing would make every sweep train all seeds that it may."""
    found = excluded(effect, 12, sequential=True)
    assert found.any(1).mean() >= power
    used = np.where(found.any(1), found.argmax(1) + 2, 12)
    assert used.mean() < mean


# What is needed, and what several claims cost


def test_seeds_to_decide_are_those_with_which_it_is_decided() -> None:
    """Else one trains as many seeds as were asked for, and the claim is as open as it was."""
    for sequential in (False, True):
        found = interval([0.0, 1.0, 2.0, -0.5], sequential=sequential)
        assert found.mean is not None
        assert found.deviation is not None
        n = seeds_to_decide(found)
        assert n is not None
        halves = [critical(k, sequential=sequential) * found.deviation / math.sqrt(k) for k in (n - 1, n)]
        assert halves[1] < found.mean <= halves[0]
    assert seeds_to_decide(interval([1.0])) is None


def test_the_smallest_effect_is_found_in_four_of_five_runs() -> None:
    """Else a reader takes what these seeds could not have seen for what is not there."""
    for sequential in (False, True):
        found = interval([-1.0, 0.0, 1.0, 0.0, 0.5, -0.5], sequential=sequential)
        effect = smallest_effect(found)
        assert effect is not None
        assert found.deviation is not None
        last = excluded(effect / found.deviation, 6, sequential=sequential)[:, -1]
        assert last.mean() == pytest.approx(0.8, abs=0.01)


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04, which are no less than the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
