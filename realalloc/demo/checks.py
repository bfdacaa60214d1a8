"""The two ways to take a buffer measured alone, and what must hold when a demo ends.

Guarantees: ``check_end`` reports, it never raises: a damaged arena is a result too.
"""

from __future__ import annotations

import statistics
import time

from realalloc.arena import Arena
from realalloc.demo.reading import Take
from realalloc.demo.report import Checks
from realalloc.errors import CorruptionError
from realalloc.mempool import MemPool

ROUNDS = 7
ROUND_SECONDS = 0.01
MOST_CALLS = 2000


def fresh(nbytes: int) -> Take:
    """Make the naive way: a new bytearray for every read."""

    def take() -> memoryview:
        return memoryview(bytearray(nbytes))

    return take


def alone_ns(take: Take) -> float:
    """Return nanoseconds of one buffer taken and returned with nothing in between, loop included: a median, one thread."""
    once = _loop_seconds(take, 3) / 3
    calls = max(3, min(MOST_CALLS, int(ROUND_SECONDS / max(once, 1e-9))))
    return statistics.median(_loop_seconds(take, calls) for _ in range(ROUNDS)) / calls * 1e9


def _loop_seconds(take: Take, calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        with take():
            pass
    return time.perf_counter() - begun


def check_end(arena: Arena, pool: MemPool, *, digests: bool, aligned: bool) -> Checks:
    """Validate the arena as it is, then destroy the pool and look whether everything came back."""
    broken = []
    try:
        arena.validate()
    except CorruptionError as error:
        broken.append(str(error))
    valid = not broken
    whole = _whole(arena, pool)
    if not digests:
        broken.append("a digest differs from plain reading of a file that did not change")
    if not aligned:
        broken.append("a buffer of the pool does not begin on a page")
    return Checks(digests, aligned, valid, not whole, (*broken, *whole))


def _whole(arena: Arena, pool: MemPool) -> list[str]:
    try:
        pool.destroy()
        arena.trim()
        arena.validate()
    except (BufferError, CorruptionError) as error:
        return [str(error)]
    stats = arena.stats()
    left = {
        "leases": stats.leases,
        "objects": stats.live_objects,
        "blocks": stats.live_blocks,
        "areas": stats.live_areas,
        "allocated bytes": stats.allocated,
        "committed bytes": stats.committed,
    }
    return [f"{count} {what} left when everything was returned" for what, count in left.items() if count]
