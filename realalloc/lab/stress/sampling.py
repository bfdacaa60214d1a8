"""What psutil and the arena say, joined on one time axis, as the series that are judged and drawn.

Guarantee: all series of a run have the same seconds. Sizes are bytes, rates are for each second since the row before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from realalloc.lab.series import Series
from realalloc.lab.stress.site import Site, fragmentation

MEMORY = ("rss", "uss", "pss", "committed", "allocated", "free", "largest_free")
COUNTS = ("threads", "fds", "waiters", "leases")
TOTALS = ("verified", "minor_faults", "major_faults")  # drawn as rates
Rows = Sequence[tuple[float, dict[str, float]]]


def arena_numbers(site: Site, verified: Callable[[], int]) -> Callable[[], dict[str, float]]:
    """Make what a sampler asks beside the system's numbers."""

    def look() -> dict[str, float]:
        stats = site.arena.stats()
        largest = min(stats.largest_free, stats.free)
        return {
            "committed": stats.committed,
            "allocated": stats.allocated,
            "free": stats.free,
            "largest_free": largest,
            "fragmentation": fragmentation(stats.free, largest),
            "leases": stats.leases,
            "waiters": site.waiters(),
            "verified": verified(),
        }

    return look


def as_series(rows: Rows) -> dict[str, Series]:
    """Turn rows into series: ``memory`` (bytes), ``fragmentation`` (share), ``counts``, ``rates`` (per second)."""
    seconds = tuple(at for at, _ in rows)

    def columns(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
        return {name: tuple(float(row[name]) for _, row in rows) for name in names}

    return {
        "memory": Series(seconds, columns(MEMORY)),
        "fragmentation": Series(seconds, columns(("fragmentation",)), "share"),
        "counts": Series(seconds, columns(COUNTS), "count"),
        "rates": Series(seconds, {name: _rate(rows, name) for name in TOTALS}, "per second"),
    }


def _rate(rows: Rows, name: str) -> tuple[float, ...]:
    found = [float("nan")] if rows else []
    for (before, old), (now, new) in pairwise(rows):
        found.append((new[name] - old[name]) / (now - before) if now > before else float("nan"))
    return tuple(found)
