"""What test programs of other allocators do: xmalloc, mstress, cache-scratch, rptest, alloc-test, malloc-large, mleak.

ns of the wall per allocation and free of one thread unless said. Every peer has to return the same sums.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench import streams
from bench.crowds import COUNT, DEPTH, HAND, STREAM, WAITING
from bench.measure import Result, Turn
from bench.peers import Peer, Plan, check, row
from bench.threads import MARKS, Workers, pin

SLOTS = 1 << 18  # of alloc-test, all threads together
TABLE = 1000  # objects that threads of mstress and mleak exchange
YOUNG = 20_000  # of thread 0 in an iteration of mstress; half as many stay; the next thread has twice as much
LETTERS = 1000  # slots of a thread of rptest
PAIRS_A_LOOP = 98  # of rptest, on average
WRITES = 10_000  # to each object of cache-scratch
LARGE = 20  # buffers
WAVE = 10  # threads of mleak that live at once


class Case(NamedTuple):
    """A row: how a peer's turn is made, and how many operations it has."""

    name: str
    most: float | None
    number: int
    make: Callable[..., Turn]
    given: tuple[Any, ...] = ()
    threads: int = 1


class Same:
    """A sum that the first peer finds, and everyone after it has to find."""

    def __init__(self) -> None:
        self.sums: dict[object, int] = {}

    def __call__(self, what: object, value: int) -> None:
        """Compare."""
        if self.sums.setdefault(what, value) != value:
            raise AssertionError(f"{what}: {value} was found instead of {self.sums[what]}")


def crowd(jobs: list[Callable[[], int]]) -> list[int]:
    """Run each job in a thread of its own that ends with it; return what they return."""
    found = [0] * len(jobs)
    failures: list[BaseException] = []
    cpus = sorted(os.sched_getaffinity(0))

    def life(k: int) -> None:
        pin(cpus[k % len(cpus)])
        try:
            found[k] = check(jobs[k]())
        except BaseException as error:
            failures.append(error)

    alive = [threading.Thread(target=life, args=(k,)) for k in range(len(jobs))]
    for thread in alive:
        thread.start()
    for thread in alive:
        thread.join()
    if failures:
        raise failures[0]
    return found


def xmalloc(p: Peer, workers: Workers, sizes: np.ndarray) -> Turn:
    """Let one thread allocate batches and the other one free them."""
    stack = np.zeros(WAITING + DEPTH, np.int64)
    found = np.zeros(1, np.int64)

    def free(batches: int) -> None:
        found[0] = check(p.loops.take_in(p.how, stack, batches))

    def run(number: int) -> None:
        batches = number // HAND
        workers.run(lambda: check(p.loops.hand_out(p.how, sizes, stack, batches)), lambda: free(batches))
        number = batches * HAND
        if found[0] != number * (number - 1) // 2 or stack[COUNT]:
            raise AssertionError("xmalloc: objects were lost")

    run(0)  # compiles
    return Turn(run)


def mstress(p: Peer, same: Same, threads: int) -> Turn:
    """Let threads that live for one iteration allocate, keep, exchange and free all."""
    table = np.zeros(TABLE, np.int64)

    def iterate(k: int, turn: int, number: int) -> Callable[[], int]:
        young = (k + 1) * number * 2 // 3
        return lambda: p.loops.stress(p.how, 100 * turn + k, young, young // 2, table)

    def run(number: int) -> None:
        turns = max(number // (YOUNG * 3 // 2 * threads), 1)
        for turn in range(turns):
            share = number // turns // threads  # of thread 0
            same(("mstress", turn), sum(crowd([iterate(k, turn, share) for k in range(threads)])))
            check(p.loops.clear(p.how, table, int(turn < turns - 1)))

    check(p.loops.stress(p.how, 1, 0, 0, table))
    check(p.loops.clear(p.how, table, 0))
    return Turn(run)


def scratch(p: Peer, passive: bool) -> Turn:
    """Write to small objects side by side; passive: after each thread has freed one of two that were neighbours."""

    def run(number: int) -> None:
        blocks = np.zeros(2, np.int64)
        if passive:
            check(p.loops.replace(p.how, blocks, np.arange(2, dtype=np.int32), np.full(2, 8, np.int32), 0, 2))
        repeats = max(number // WRITES, 1)
        sums = crowd([lambda k=k: p.loops.scratch(p.how, blocks[k], repeats, WRITES) for k in range(2)])
        if sums != [repeats * WRITES] * 2:
            raise AssertionError("cache-scratch: writes were lost")

    check(p.loops.scratch(p.how, 0, 0, 0))
    return Turn(run)


def rptest(p: Peer, same: Same, threads: int, sizes: np.ndarray) -> Turn:
    """Replace strided objects, and post as many to each other."""
    blocks = np.zeros((threads, LETTERS), np.int64)
    posts = np.zeros(threads * MARKS, np.int64)

    def play(seed: int, loops: int) -> int:
        jobs = [
            lambda k=k: p.loops.correspond(p.how, k, threads, blocks[k], posts, sizes, seed + k, loops)
            for k in range(threads)
        ]
        total = sum(crowd(jobs))
        for _ in range(2):  # what was posted after the other one had parted
            crowd([lambda k=k: p.loops.part(p.how, k, blocks[k], posts) for k in range(threads)])
        return total

    def run(number: int) -> None:
        for round_ in range(2):
            same(("rptest", round_), play(10 * round_ + 1, number // PAIRS_A_LOOP // 2))

    play(0, 0)
    return Turn(run)


def alloc_test(p: Peer, same: Same, threads: int, slots: np.ndarray, sizes: np.ndarray) -> Turn:
    """Fill empty slots, read and free full ones, most often in a few places; half of the slots are full at first."""
    places = SLOTS // threads
    blocks = np.zeros((threads, places), np.int64)
    held = np.zeros((threads, places), np.int32)
    half = np.arange(0, places, 2, dtype=np.int32)

    def toggle(k: int, slots: np.ndarray, number: int) -> int:
        return p.loops.toggle(p.how, blocks[k], held[k], slots, sizes, 0, number)

    def run(number: int) -> None:
        same("alloc-test", sum(crowd([lambda k=k: toggle(k, slots, number) for k in range(threads)])))

    def build() -> None:
        for k in range(threads):
            check(toggle(k, half, min(len(half), len(sizes))))

    def finish() -> None:
        for part in blocks:
            p.loops.drain(p.how, part)

    return Turn(run, build, finish)


def large(p: Peer, same: Same, slots: np.ndarray, sizes: np.ndarray) -> Turn:
    """Replace large buffers, all of which are zeroed."""
    blocks = np.zeros(LARGE, np.int64)
    held = np.zeros(LARGE, np.int32)
    every = np.arange(LARGE, dtype=np.int32)

    def build() -> None:
        check(p.loops.zero(p.how, blocks, held, every, sizes, 0, LARGE))

    return Turn(
        lambda n: same("large", check(p.loops.zero(p.how, blocks, held, slots, sizes, LARGE, LARGE + n))),
        build,
        lambda: p.loops.drain(p.how, blocks),
    )


def mleak(p: Peer) -> Turn:
    """Let threads that leave one object behind and free one begin and end."""
    table = np.zeros(TABLE, np.int64)

    def run(number: int) -> None:
        done = 0
        for first in range(0, number, WAVE):
            done += sum(crowd([lambda k=k: p.loops.leak(p.how, table, k % TABLE) for k in range(first, first + WAVE)]))
        if done != number:
            raise AssertionError("mleak: threads were lost")

    run(WAVE)
    return Turn(run, close=lambda: p.loops.drain(p.how, table))


def cases(plan: Plan, workers: Workers | None) -> Iterator[Case]:
    """Give all rows of this file; with two threads only if there are workers."""
    pareto = streams.pareto(SLOTS, plan.count(300_000))
    ruler = streams.ruler(max(plan.count(300_000), SLOTS // 2))
    same = {name: Same() for name in ("mstress 1", "mstress 2", "rptest 1", "rptest 2", "alloc-test 1", "alloc-test 2")}
    if workers:
        number = plan.count(100 * HAND, HAND)
        yield Case("xmalloc 64", 1.2, number, xmalloc, (workers, np.full(STREAM, 64, np.int32)), 2)
        yield Case("xmalloc mix", 1.2, number, xmalloc, (workers, streams.xmalloc(STREAM)), 2)
    for threads in (1, 2) if workers else (1,):
        number = plan.count(4 * threads * YOUNG * 3 // 2)
        yield Case(
            f"mstress, {_threads(threads)}", None, number, mstress, (same[f"mstress {threads}"], threads), threads
        )
    if workers:
        number = plan.count(600 * WRITES, WRITES)
        yield Case("cache-scratch, per write", None, number, scratch, (True,), 2)
        yield Case("cache-thrash, per write", None, number, scratch, (False,), 2)
    for threads in (1, 2) if workers else (1,):
        given = (same[f"rptest {threads}"], threads, streams.tents(8, 16000, 2000))
        yield Case(f"rptest, {_threads(threads)}", None, plan.count(1000 * PAIRS_A_LOOP), rptest, given, threads)
    for threads in (1, 2) if workers else (1,):
        name = f"alloc-test, {_threads(threads)}, per operation"
        given = (same[f"alloc-test {threads}"], threads, pareto // threads, ruler)
        yield Case(name, None, len(pareto), alloc_test, given, threads)
    number = plan.count(40, 2)
    slots, sizes = streams.slots(LARGE, LARGE + number), streams.uniform(5 << 17, 25 << 17, LARGE + number) * 8
    yield Case("large 5M..25M, zeroed", None, number, large, (Same(), slots, sizes))
    yield Case("mleak, per thread", None, plan.count(500, WAVE), mleak)


def _threads(threads: int) -> str:
    return f"{threads} thread{'s'[: threads - 1]}"


def programs(plan: Plan) -> Iterator[Result]:
    """Run the rows."""
    workers = Workers() if len(os.sched_getaffinity(0)) > 1 else None
    try:
        for case in cases(plan, workers):
            if plan.wants(case.name):
                yield row(plan, case.name, case.most, case.number, case.make, case.given, harness=False)
    finally:
        if workers:
            workers.close()
