"""Mean and t-interval, the only statistics that tables and verdicts stand on."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided t-interval; `low` and `high` are None for fewer than two values."""

    n: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None = None
    """Two-sided p of the t-test against the centre that was asked for; None where equal values allow none."""

    @property
    def half(self) -> float | None:
        """Half of the interval's width: what stands behind the plus-minus sign."""
        return None if self.mean is None or self.high is None else self.high - self.mean


def interval(values: Iterable[float], centre: float = 0.0, level: float = LEVEL) -> Interval:
    """Student's t-interval of the mean; values that are not finite are left out and lower `n`.

    `scipy.special` rather than `scipy.stats`, which takes a second to import; a test holds both equal.

    >>> found = interval([1.0, 2.0, 3.0])
    >>> found.n, found.mean, round(found.high, 3)
    (3, 2.0, 4.484)
    >>> interval([1.0])
    Interval(n=1, mean=1.0, low=None, high=None, p=None)
    """
    kept = [value for value in values if math.isfinite(value)]
    n = len(kept)
    if n < 2:
        return Interval(n, kept[0] if kept else None, None, None)
    mean, error = fmean(kept), stdev(kept) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean - centre) / error)) if error else None
    return Interval(n, mean, mean - half, mean + half, p)
