"""fragments: what stays resident: fill, free nine tenths in random order, free the rest, go on with one pair a millisecond.

Not a row of nanoseconds: its numbers are the resident set after each step, in a process of its own (``lab/resident.py``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from realalloc.lab import streams
from realalloc.lab.measure import check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "fragments"
SETS: Final = {"400k x 16..4096": 400_000, "64 x 4M": 64}
SURVIVORS: Final = 10  # one object in so many is freed last
SECONDS: Final = 5.0  # of life after everything was freed
PAUSE_SECONDS: Final = 0.001


class Step(NamedTuple):
    """A part of the workload; the resident set is read after it."""

    name: str
    run: Callable[[], object]


def steps(p: Peer, case: str, scope: Scope) -> list[Step]:
    """Make the steps of a case; harness arrays are touched and loops compiled here, before anybody looks at memory."""
    count = scope.count(SETS[case], 64)
    sizes = np.full(count, 4 << 20, np.int32)
    if case.endswith("16..4096"):
        sizes = streams.log_uniform(16, 4096, count, scope.seed)
    every, mixed = np.arange(count, dtype=np.int32), streams.order("shuffled", count, scope.seed)
    slots, asked = np.concatenate([every, mixed]), np.concatenate([sizes, np.full(count, -1, np.int32)])
    blocks = np.ones(count, np.int64)
    check(p.loops.replay_full(p.how(), blocks, slots, asked, 0, 0))
    check(p.loops.pairs(p.how(), 64, 1, 1))
    tenth = 2 * count - count // SURVIVORS
    play = functools.partial(_play, p, blocks, slots, asked)
    return [
        Step("filled", functools.partial(play, 0, count)),
        Step("a tenth left", functools.partial(play, count, tenth)),
        Step("freed", functools.partial(play, tenth, 2 * count)),
        Step(f"{SECONDS:g} s later", functools.partial(_live_on, p, SECONDS * min(1.0, 5 * scope.scale))),
    ]


def _play(p: Peer, blocks: Any, slots: Any, asked: Any, begin: int, end: int) -> None:
    check(p.loops.replay_full(p.how(), blocks, slots, asked, begin, end))


def _live_on(p: Peer, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        check(p.loops.pairs(p.how(), 64, 1, 1))
        time.sleep(PAUSE_SECONDS)
