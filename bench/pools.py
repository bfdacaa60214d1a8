"""Pools: taking and returning an element that is there, and handing one over between two threads."""

from __future__ import annotations

import queue
import threading
import time
import timeit
from collections import deque

import realalloc as ra
from bench.measure import Result, interleave
from realalloc.mm.layout import P_WAITERS

SIZE = 4096


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
                    time.sleep(0)  # until the other waits: each round is a hand-off
                del buf
            ended[0] += 1

        handed = interleave(
            {"pool of one": _pair(hold), "threading.Condition": _pair(_condition())},
            200 if smoke else 5000,
            3 if smoke else 11,
        )
        one.validate()
        one.destroy()
        pool.destroy()
        arena.validate()
    targets = {"memoryview(bytearray(4096))": 0.5, "queue.Queue": 1 / 8, "deque, lock, counters": 1 / 4}
    return [
        Result("element of a pool: take and return", "ns", alone, "pool.alloc()", targets),
        Result("hand-off of the only element, two threads", "ns", handed, "pool of one", {"threading.Condition": 2.0}),
    ]


def _bound(made: LockedDeque) -> dict[str, object]:
    return {"get": made.get, "put": made.put}
