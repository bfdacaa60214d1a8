"""A median of rounds, and how sure it is."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000


@functools.lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of rounds, with a bootstrap confidence interval (95 %) of it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Any, seed: int = 1) -> Self:
        """Resample rounds with replacement and take the medians' percentiles (Efron); one round has no width.

        ValueError without any round; a round that is no finite number makes all three NaN.
        """
        values = np.asarray(rounds, np.float64)
        if not len(values):
            raise ValueError("no rounds, no median")
        if not np.isfinite(values).all():
            return cls(math.nan, math.nan, math.nan)
        tail = (1 - CONFIDENCE) / 2 * 100
        low, high = np.percentile(np.median(values[_draws(len(values), seed)], axis=1), (tail, 100 - tail))
        return cls(float(np.median(values)), float(low), float(high))

    def holds(self, value: float) -> bool:
        """Say whether ``value`` lies within the interval."""
        return self.low <= value <= self.high

    @property
    def per_second(self) -> Self:
        """What nanoseconds of one operation are in operations a second."""
        low, middle, high = (1e9 / ns if ns > 0 else math.nan for ns in (self.high, self.value, self.low))
        return type(self)(middle, low, high)
