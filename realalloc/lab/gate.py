"""The gate of a crowd: its threads wait for each other there, and what that took is not the workload's time.

To start a thread of Python, or to wake one, takes 40 microseconds to some milliseconds, of an allocator's turn of three. So
the clock of a turn (:mod:`realalloc.lab.measure`) takes off what passed between asking for the threads and the arrival of the
last: with two, neither works before both do.
Guarantees: ``arrive`` returns once every thread has arrived, or ``open`` was called, as one could not be started.
"""

from __future__ import annotations

import functools
import time

import numpy as np
from numba import njit

from realalloc.lab.loops.waits import LINE, wait_above
from realalloc.mm.atomic import atomic_store
from realalloc.mm.jit import Words

_waited = [0]  # ns, of all gates so far; crowds are asked for by one thread at a time


def waited_ns() -> int:
    """Return how long, in ns, crowds of this process have taken to arrive."""
    return _waited[0]


@njit(nogil=True)
def _meet(marks: Words, thread: int, threads: int) -> int:
    atomic_store(marks, LINE * thread, 1)
    for other in range(threads):
        wait_above(marks, LINE * other, 1)
    return 0


@functools.cache
def _compiled() -> int:
    """Compile before anybody waits."""
    return int(_meet(np.zeros(LINE, np.int64), 0, 1))


class Gate:
    """Where ``threads`` threads meet, once."""

    def __init__(self, threads: int) -> None:
        """Begin to count: the threads are asked for now."""
        _compiled()
        self._marks = np.zeros(LINE * max(threads, 1), np.int64)
        self._arrived = [0] * threads
        self._asked = time.perf_counter_ns()

    def arrive(self, thread: int) -> None:
        """Wait, in one of the threads, for the others."""
        self._arrived[thread] = time.perf_counter_ns()
        _meet(self._marks, thread, len(self._arrived))

    def open(self) -> None:
        """Let everybody through who came or will come."""
        self._marks[:] = 1

    def passed(self) -> None:
        """Count what the meeting took; after it, in the thread that asked."""
        _waited[0] += max(max(self._arrived, default=0) - self._asked, 0)
