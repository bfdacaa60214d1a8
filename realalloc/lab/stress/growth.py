"""Does a series grow? A slope that outliers cannot bend, with its confidence interval.

The slope is Theil and Sen's: the median of the slopes of all pairs of points. Its interval is Kendall's: from the variance
of S, the number of rising less falling pairs, one counts how many of the sorted slopes lie on each side. Samples of a
process resemble those just before them, which makes plain intervals too narrow: the variance is corrected for the
autocorrelation of the ranks (Hamed and Rao, 1998), and never made smaller.

Guarantee: monotone transformations of time aside, nothing is assumed of the noise's distribution. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CONFIDENCE: Final = 0.95
MOST_POINTS: Final = 400  # means of equal stretches, above that: all pairs of 400 points are 80 000
LEAST_POINTS: Final = 12

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slope:
    """Units of the series a second: the median of all pairs, and its confidence interval."""

    value: float
    low: float
    high: float
    points: int


def slope_of(seconds: Any, values: Any, confidence: float = CONFIDENCE) -> Slope:
    """Estimate the slope of ``values`` over ``seconds``, arrays of one length; ValueError for fewer than 12 finite points."""
    times, heights = np.asarray(seconds, np.float64), np.asarray(values, np.float64)
    good = np.isfinite(times) & np.isfinite(heights)
    times, heights = _thin(times[good]), _thin(heights[good])
    n = len(times)
    if n < LEAST_POINTS:
        raise ValueError(f"a slope needs at least {LEAST_POINTS} points, not {n}")
    before, after = np.triu_indices(n, 1)
    gaps = times[after] - times[before]
    slopes = np.sort((heights[after] - heights[before])[gaps > 0] / gaps[gaps > 0])
    middle = float(np.median(slopes))
    spread = math.sqrt(_variance_of_s(heights, times, middle))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    low = int(np.clip(math.floor((len(slopes) - reach) / 2), 0, len(slopes) - 1))
    high = int(np.clip(math.ceil((len(slopes) + reach) / 2), 0, len(slopes) - 1))
    return Slope(middle, float(slopes[low]), float(slopes[high]), n)


def _thin(values: Floats) -> Floats:
    """Return means of equal stretches, at most ``MOST_POINTS``."""
    if len(values) <= MOST_POINTS:
        return values
    each = -(-len(values) // MOST_POINTS)
    thinned: Floats = values[: len(values) // each * each].reshape(-1, each).mean(axis=1)
    return thinned


def _variance_of_s(heights: Floats, times: Floats, slope: float) -> float:
    n = len(heights)
    plain = n * (n - 1) * (2 * n + 5) / 18
    ranks = np.argsort(np.argsort(heights - slope * times, kind="stable")).astype(np.float64)
    centred = ranks - ranks.mean()
    total = float(centred @ centred)
    if total == 0:
        return plain
    bound = NormalDist().inv_cdf(0.975) / math.sqrt(n)  # autocorrelations below it are noise
    extra = 0.0
    for lag in range(1, n - 3):
        rho = float(centred[:-lag] @ centred[lag:]) / total
        if rho > bound:
            extra += (n - lag) * (n - lag - 1) * (n - lag - 2) * rho
    return plain * (1 + 2 / (n * (n - 1) * (n - 2)) * extra)
