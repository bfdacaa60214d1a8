"""alloc-test: slots are filled, or read and freed, a few of them most often; all bytes are written (node-dot-cpp)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, check, whole_rounds
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, threads_name

NAME = "alloc-test"
SLOTS = 1 << 18  # all threads together; half of them are full at first


def cases(scope: Scope) -> Iterator[Case]:
    """Give one thread, and several."""
    places = scope.count(SLOTS, 1024)
    number = scope.count(300_000)
    slots = streams.pareto(places, number, scope.seed)
    sizes = streams.ruler(max(number, places // 2), scope.seed)
    for threads in scope.crowds():
        each = places // threads
        mine = np.minimum(slots // threads, each - 1)  # the last ones are too many where threads do not divide them
        make = functools.partial(_turn, threads=threads, places=each, slots=mine, sizes=sizes)
        parameters = {"slots": places, "sizes": "5..1024, halving", "seed": scope.seed}
        yield whole_rounds(
            NAME, threads_name(threads), number, make, parameters, operation="alloc or free", threads=threads
        )


def _turn(p: Peer, *, threads: int, places: int, slots: Any, sizes: Any) -> Turn:
    blocks = np.zeros((threads, places), np.int64)
    held = np.zeros((threads, places), np.int32)
    half = np.arange(0, places, 2, dtype=np.int32)

    def toggle(k: int, which: Any, number: int) -> int:
        return int(p.loops.toggle(p.how(k), blocks[k], held[k], which, sizes, 0, number))

    def build() -> None:
        for k in range(threads):
            check(toggle(k, half, min(len(half), len(sizes))))

    def finish() -> None:
        for part in blocks:
            p.loops.drain(p.how(), part)

    return Turn(lambda n: sum(crowd([functools.partial(toggle, k, slots, n) for k in range(threads)])), build, finish)
