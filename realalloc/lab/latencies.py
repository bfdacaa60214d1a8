"""How long single operations took: counts in buckets, and the percentiles and curves that they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
POINTS_A_DECADE: Final = 24  # of a curve of latencies, a decade being 90 to 99 %


def percentile_name(percentile: float) -> str:
    """Spell a percentile: ``p99.9``, ``max``."""
    return "max" if percentile >= 100 else f"p{percentile:g}"


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one kind of operation took, each time it was timed.

    ``buckets``: (largest ns that falls into it, how many), ascending, none empty. ``overhead_ns``: what one reading of the
    clock adds to every operation, not subtracted from the buckets. One operation ``in_every`` was timed.
    """

    operation: str  # "alloc", "free", "step"
    buckets: tuple[tuple[float, int], ...]
    overhead_ns: float
    in_every: int = 1

    @property
    def count(self) -> int:
        """How many operations were timed."""
        return sum(count for _, count in self.buckets)

    def at(self, percentile: float) -> float:
        """Return the ns that so many percent of all operations did not exceed."""
        if not self.buckets:
            return 0.0
        wanted, seen = max(1, int(np.ceil(self.count * percentile / 100))), 0
        for nanoseconds, count in self.buckets:
            seen += count
            if seen >= wanted:
                return nanoseconds
        return self.buckets[-1][0]

    def percentiles(self) -> dict[str, float]:
        """Return the usual ones by name."""
        return {percentile_name(p): self.at(p) for p in PERCENTILES}

    def curve(self) -> tuple[list[float], list[float]]:
        """Return (tails, ns) of the distribution, where tail = -log10(1 - share): 0 is 0 %, 1 is 90 %, 2 is 99 %.

        The last point is the slowest operation, at the share of all but itself: 1 - 1 / count.
        """
        if not self.buckets:
            return [], []
        last = math.log10(self.count)
        tails = np.unique(np.append(np.arange(0, last, 1 / POINTS_A_DECADE), last))
        ends = np.cumsum([count for _, count in self.buckets])  # bucket k holds the ranks in (ends[k - 1], ends[k]]
        ranks = np.maximum(1, np.ceil((1 - 10.0**-tails) * self.count - 1e-6))
        ranks[-1] = self.count
        found = np.searchsorted(ends, ranks)
        return tails.tolist(), [self.buckets[k][0] for k in found]
