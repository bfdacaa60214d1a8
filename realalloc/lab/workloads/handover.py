"""handover: objects that one thread allocates and another frees: a ring, batches that are swapped, slots that both use.

The harness row is the channel alone, with objects that are there already; it is subtracted from everybody, round by round.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from realalloc.lab import streams
from realalloc.lab.loops.basic import BATCH, GROUP, RING, TABLE
from realalloc.lab.loops.crowds import STREAM
from realalloc.lab.loops.waits import LINE
from realalloc.lab.measure import Case, Turn
from realalloc.lab.peers import Peer
from realalloc.lab.workloads.scope import Scope

NAME = "handover"
MARKS = 2 * LINE


def cases(scope: Scope) -> Iterator[Case]:
    """Give the three forms; nothing where there is one thread."""
    if scope.threads < 2:
        return
    same, mix = np.full(STREAM, 64, np.int32), streams.mix(STREAM, scope.seed)
    number = scope.count(150_016, 2048) // GROUP * GROUP
    for name, sizes in (("64", same), ("mix", mix)):
        yield _case(scope, f"producer/consumer {name}", number, _produce, sizes=sizes)
    number = scope.count(100_000, BATCH) // BATCH * BATCH
    for name, sizes in (("64", same), ("mix", mix)):
        yield _case(scope, f"swap {BATCH} x {name}", number, _swap, sizes=sizes)
    number = scope.count(100_000)
    slots = [streams.slots(TABLE, number, scope.seed + 10 + k) for k in range(2)]
    drawn = [streams.uniform(16, 512, number, scope.seed + 20 + k) for k in range(2)]
    yield _case(scope, f"shared {TABLE} slots x 16..511", number, _share, slots=slots, sizes=drawn)


def _case(scope: Scope, name: str, number: int, make: Any, **given: Any) -> Case:
    made = functools.partial(make, scope=scope, **given)
    return Case(NAME, name, number, made, {"seed": scope.seed}, threads=2, subtracted=True)


def _produce(p: Peer, *, scope: Scope, sizes: Any) -> Turn:
    ring, marks = np.zeros(RING, np.int64), np.zeros(MARKS, np.int64)

    def run(number: int) -> int:
        produce = functools.partial(p.loops.produce, p.how(0), sizes, ring, marks, number)
        return sum(scope.workers.run(produce, lambda: p.loops.consume(p.how(1), ring, marks, number)))

    run(0)  # compiles: a loop that waits for one that is being compiled would spin
    return Turn(run, prepare=lambda: marks.fill(0))


def _swap(p: Peer, *, scope: Scope, sizes: Any) -> Turn:
    buffers, marks = np.zeros(4 * BATCH, np.int64), np.zeros(MARKS, np.int64)

    def job(me: int, rounds: int) -> int:
        return int(p.loops.swap(p.how(me), me, sizes, buffers, marks, rounds))

    def run(number: int) -> int:
        return sum(scope.workers.run(*[functools.partial(job, me, number // BATCH) for me in range(2)]))

    run(0)
    return Turn(run, prepare=lambda: marks.fill(0))


def _share(p: Peer, *, scope: Scope, slots: list[Any], sizes: list[Any]) -> Turn:
    table = np.zeros(TABLE, np.int64)

    def job(me: int, number: int) -> int:
        return int(p.loops.share(p.how(me), table, slots[me], sizes[me], number))

    def run(number: int) -> int:
        return sum(scope.workers.run(*[functools.partial(job, me, number) for me in range(2)]))

    run(0)
    return Turn(run, close=lambda: p.loops.drain(p.how(0), table))
