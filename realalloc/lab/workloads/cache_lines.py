"""cache-lines: false sharing (Hoard's cache-scratch and cache-thrash): whether small objects of two threads lie in one line.

scratch: each thread frees one of two neighbours first, and may get it back; thrash: it only allocates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, WorkDiffers, check, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "cache-lines"
WRITES = 10_000  # to each object


def cases(scope: Scope) -> Iterator[Case]:
    """Give both; nothing where there is one thread."""
    if scope.threads < 2:
        return
    for name in ("scratch", "thrash"):
        number = scope.count(600 * WRITES, WRITES) // WRITES * WRITES
        make = functools.partial(_turn, passive=name == "scratch")
        parameters = {"writes": WRITES}
        yield whole_rounds(NAME, name, number, make, parameters, operation="write", threads=2)


def _turn(p: Peer, *, passive: bool) -> Turn:
    first, eight = np.arange(2, dtype=np.int32), np.full(2, 8, np.int32)

    def run(number: int) -> int:
        blocks = np.zeros(2, np.int64)
        if passive:
            check(p.loops.replace(p.how(), blocks, first, eight, 0, 2))
        repeats = number // WRITES
        sums = crowd([functools.partial(p.loops.scratch, p.how(k), blocks[k], repeats, WRITES) for k in range(2)])
        if sums != [repeats * WRITES] * 2:
            raise WorkDiffers("cache-lines: writes were lost")
        return sum(sums)

    check(p.loops.scratch(p.how(), 0, 0, 0))
    return Turn(run)
