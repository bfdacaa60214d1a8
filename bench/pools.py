"""Pools: taking and returning an element that is there, handing one over between two threads, and how long who waits.

A hand-off is one only if the other already waits, so who has the element gives up its core until it does. Both contestants run
on one core as well: there nothing but their own work counts, on two it is how long the system takes to wake a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import statistics
import threading
import time
import timeit
from collections import deque
from collections.abc import Iterator

import realalloc as ra
from bench.measure import Result, interleave
from realalloc.mm.layout import P_WAITERS

SIZE = 4096
SOAK = 1_000_000  # hand-offs in one piece
QUEUE = 6  # threads that wait in turn

_yield = ctypes.CDLL(None).sched_yield  # time.sleep(0) sleeps for the timer's slack, 50 us


class LockedDeque:
    """The pool that people write: a deque, a lock, counters."""

    def __init__(self, count: int) -> None:
        """Fill it."""
        self._free = deque(bytearray(SIZE) for _ in range(count))
        self._lock = threading.Lock()
        self.gets = self.puts = 0

    def get(self) -> bytearray:
        """Take one."""
        with self._lock:
            self.gets += 1
            return self._free.popleft()

    def put(self, buf: bytearray) -> None:
        """Return one."""
        with self._lock:
            self.puts += 1
            self._free.append(buf)


TWICE = {"threading.Condition": 2.0}


def _loop(statement: str, **names: object):
    timer = timeit.Timer(statement, globals=names)
    return lambda number: timer.timeit(number)


def _pair(work):
    """Time two threads that both do ``work(number)``."""

    def run(number: int) -> float:
        ready = threading.Barrier(3)

        def begin() -> None:
            ready.wait()
            work(number // 2)

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        ready.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    return run


def _condition():
    """Hand a token to and fro by a bare condition."""
    changed = threading.Condition()
    turn = [0, 0]  # whose turn, threads that have begun

    def work(number: int) -> None:
        with changed:
            me = turn[1] % 2
            turn[1] += 1
            for _ in range(number):
                while turn[0] != me:
                    changed.wait()
                turn[0] = 1 - me
                changed.notify()

    return work


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Run on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def in_turn(alloc, turns: int) -> dict[str, float]:
    """Let threads take the only element over and over; return the mean of all waits and the longest, in microseconds.

    The longest of a thread's waits is mostly when the system did not run somebody before it in the queue: so the median of
    the longest in each hundredth of the run is compared.
    """
    waits: list[list[float]] = [[] for _ in range(QUEUE)]
    ready = threading.Barrier(QUEUE)

    def work(mine: list[float]) -> None:
        ready.wait()
        for _ in range(turns):
            began = time.perf_counter()
            buf = alloc()
            mine.append(time.perf_counter() - began)
            _yield()  # the others come and queue
            del buf

    threads = [threading.Thread(target=work, args=(mine,)) for mine in waits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    step = max(1, turns // 100)
    most = [max(max(mine[k : k + step]) for mine in waits) for k in range(0, turns, step)]
    return {
        "longest": statistics.median(most) * 1e6,
        "mean": statistics.fmean(wait for mine in waits for wait in mine) * 1e6,
    }


def pools(*, smoke: bool) -> list[Result]:
    """Uncontended, and the hand-off of the only element."""
    with ra.Arena("64MiB") as arena:
        pool = arena.mempool(16, size=SIZE)
        one = arena.mempool(1, size=SIZE)
        one.fail_alloc()
        ready: queue.Queue = queue.Queue()
        for _ in range(16):
            ready.put(bytearray(SIZE))
        alone = interleave(
            {
                "pool.alloc()": _loop("alloc()", alloc=pool.alloc),
                "queue.Queue": _loop("put(get())", get=ready.get, put=ready.put),
                "deque, lock, counters": _loop("put(get())", **_bound(LockedDeque(16))),
                "memoryview(bytearray(4096))": _loop("memoryview(bytearray(4096))"),
            },
            2000 if smoke else 100_000,
            3 if smoke else 21,
        )

        words, waiters = arena.words, one.at + P_WAITERS
        ended = [0]

        def hold(number: int) -> None:
            for _ in range(number):
                buf = one.alloc()
                while words[waiters] == 0 and ended[0] % 2 == 0:
                    _yield()
                del buf
            ended[0] += 1

        rivals = {"pool of one": _pair(hold), "threading.Condition": _pair(_condition())}
        number, rounds = (200, 3) if smoke else (5000, 11)
        with one_core():
            close = interleave(rivals, number, rounds)
        apart = interleave(rivals, number, rounds)
        _pair(hold)(1000 if smoke else SOAK)
        one.validate()
        stats = one.stats()
        longest = {f"hand-offs that took 5 s, of {stats.gets_wait}": stats.wait_max_ns // 5_000_000_000}
        waits = in_turn(one.alloc, 50 if smoke else 2000)
        one.destroy()
        pool.destroy()
        arena.validate()
    targets = {"memoryview(bytearray(4096))": 0.5, "queue.Queue": 1 / 8, "deque, lock, counters": 1 / 4}
    return [
        Result("element of a pool: take and return", "ns", alone, "pool.alloc()", targets),
        Result("hand-off of the only element, two threads on one core", "ns", close, "pool of one", TWICE),
        Result("hand-off of the only element, two threads", "ns", apart, "pool of one", TWICE, longest),
        Result(f"wait in turn, {QUEUE} threads, one element", "us", waits, "longest", {"mean": 3.0}),
    ]


def _bound(made: LockedDeque) -> dict[str, object]:
    return {"get": made.get, "put": made.put}
