"""rptest: strided objects of up to 16 KB are replaced, and as many are posted to the other thread (rpmalloc's benchmark)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.crowd import crowd
from realalloc.lab.loops.waits import LINE
from realalloc.lab.measure import Case, Turn, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, threads_name

NAME = "rptest"
SLOTS = 1000  # of a thread
PAIRS_A_LOOP = 98  # on average
MARKS = 2 * LINE


def cases(scope: Scope) -> Iterator[Case]:
    """Give one thread, and several."""
    sizes = streams.tents(8, 16000, 2000, scope.seed)
    for threads in scope.crowds():
        number = scope.count(1000 * PAIRS_A_LOOP, 4 * PAIRS_A_LOOP)
        make = functools.partial(_turn, threads=threads, sizes=sizes, seed=scope.seed)
        parameters = {"slots": SLOTS, "sizes": "8..16000", "seed": scope.seed}
        yield whole_rounds(NAME, threads_name(threads), number, make, parameters, threads=threads)


def _turn(p: Peer, *, threads: int, sizes: Any, seed: int) -> Turn:
    blocks = np.zeros((threads, SLOTS), np.int64)
    posts = np.zeros(threads * MARKS, np.int64)

    def job(k: int, dice: int, loops: int) -> int:
        return int(p.loops.correspond(p.how(k), k, threads, blocks[k], posts, sizes, dice + k, loops))

    def play(dice: int, loops: int) -> int:
        total = sum(crowd([functools.partial(job, k, dice, loops) for k in range(threads)]))
        for _ in range(2):  # what was posted after the other one had parted
            crowd([functools.partial(p.loops.part, p.how(k), k, blocks[k], posts) for k in range(threads)])
        return total

    play(0, 0)  # compiles
    return Turn(lambda n: sum(play(1000 * seed + 10 * half + 1, n // PAIRS_A_LOOP // 2) for half in range(2)))
