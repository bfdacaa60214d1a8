"""larson: a server's life (Larson and Krishnan): threads of one generation replace objects of their predecessors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.crowd import crowd
from realalloc.lab.measure import Case, Turn, check
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope, threads_name

NAME = "larson"
SLOTS = 5000
GENERATIONS = 4


def cases(scope: Scope) -> Iterator[Case]:
    """Give one thread, and several."""
    for threads in scope.crowds():
        number = scope.count(300_000) // GENERATIONS * GENERATIONS
        slots, sizes = streams.slots(SLOTS, number, scope.seed), streams.uniform(8, 1000, number, scope.seed + 1)
        make = functools.partial(_turn, threads=threads, slots=slots, sizes=sizes, seed=scope.seed)
        parameters = {"slots": SLOTS, "generations": GENERATIONS, "sizes": "8..999", "seed": scope.seed}
        yield Case(NAME, threads_name(threads), number, make, parameters, threads=threads, harness=False)


def _turn(p: Peer, *, threads: int, slots: Any, sizes: Any, seed: int) -> Turn:
    blocks = [np.zeros(SLOTS, np.int64) for _ in range(threads)]
    everything = np.zeros(threads * SLOTS, np.int64)
    every = np.arange(len(everything), dtype=np.int32)
    check(p.loops.replace(p.how(), blocks[0], slots, sizes, 0, 0))  # compiles

    def build() -> None:
        check(p.loops.replace(p.how(), everything, every, np.resize(sizes, len(every)), 0, len(every)))
        mixed = np.random.default_rng(seed).permutation(everything)
        for k in range(threads):
            blocks[k][:] = mixed[k * SLOTS : (k + 1) * SLOTS]

    def job(k: int, begin: int, end: int) -> int:
        return int(p.loops.replace(p.how(k), blocks[k], slots, sizes, begin, end))

    def run(number: int) -> int:
        each, total = number // GENERATIONS, 0
        for turn in range(GENERATIONS):
            total += sum(crowd([functools.partial(job, k, turn * each, (turn + 1) * each) for k in range(threads)]))
        return total

    def finish() -> None:
        for part in blocks:
            p.loops.drain(p.how(), part)
        everything.fill(0)

    return Turn(run, build, finish)
