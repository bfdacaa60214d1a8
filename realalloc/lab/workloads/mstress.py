"""mstress: threads of one iteration allocate, keep, exchange and free; all words are written and checked (mimalloc)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, check, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, threads_name

NAME = "mstress"
TABLE = 1000  # objects that threads exchange
YOUNG = 20_000  # of thread 0 in an iteration; half as many stay; the next thread has twice as much
OBJECTS = YOUNG * 3 // 2  # of thread 0
ITERATIONS = 4


def cases(scope: Scope) -> Iterator[Case]:
    """Give one thread, and several."""
    for threads in scope.crowds():
        number = scope.count(ITERATIONS * OBJECTS * _shares(threads))
        make = functools.partial(_turn, threads=threads, seed=scope.seed)
        parameters = {"exchanged": TABLE, "seed": scope.seed}
        # The first words hold addresses: what the loops return, the words written, is compared instead.
        yield whole_rounds(NAME, threads_name(threads), number, make, parameters, threads=threads)


def _shares(threads: int) -> int:
    """Return how much all threads make where thread 0 makes one: 1 + 2 + ..."""
    return threads * (threads + 1) // 2


def _turn(p: Peer, *, threads: int, seed: int) -> Turn:
    table = np.zeros(TABLE, np.int64)

    def job(k: int, turn: int, share: int) -> int:
        young = (k + 1) * share * 2 // 3
        return int(p.loops.stress(p.how(k), 1000 * seed + 100 * turn + k, young, young // 2, table))

    def run(number: int) -> int:
        turns = max(number // (OBJECTS * _shares(threads)), 1)
        share, total = number // turns // _shares(threads), 0  # of thread 0
        for turn in range(turns):
            total += sum(crowd([functools.partial(job, k, turn, share) for k in range(threads)]))
            check(p.loops.clear(p.how(), table, int(turn < turns - 1)))
        return total

    check(p.loops.stress(p.how(), 1, 0, 0, table))
    check(p.loops.clear(p.how(), table, 0))
    return Turn(run)
