"""The cases of ``bench.numpy_arrays``, as one child runs them: ``python -m bench.numpy_cases --child [--arena]``.

A case is made once a size and then timed in turns: nanoseconds a repetition, and page faults a repetition.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.allocators import answer, install_arena

Work = Callable[[], object]
LIVE = 64  # arrays of a queue


def expression(nbytes: int) -> Work:
    """``a*2 + b*3 - a``."""
    a = np.ones(max(1, nbytes // 8))
    b = a + 1
    return lambda: a * 2 + b * 3 - a


def expression_floor(nbytes: int) -> Work:
    """The same in the two buffers that NumPy needs when it reuses temporaries, allocated once."""
    a = np.ones(max(1, nbytes // 8))
    b = a + 1
    first, second = np.ones_like(a), np.ones_like(a)

    def work() -> None:
        np.multiply(a, 2, out=first)
        np.multiply(b, 3, out=second)
        np.add(first, second, out=first)
        np.subtract(first, a, out=first)

    return work


def empty(nbytes: int) -> Work:
    """``np.empty``, never touched."""
    return lambda: np.empty(nbytes, np.uint8)


def zeros(nbytes: int) -> Work:
    """``np.zeros``, never touched."""
    return lambda: np.zeros(nbytes, np.uint8)


def zeros_filled(nbytes: int) -> Work:
    """``np.zeros``, all of it written, as programs do that asked for zeros to add to them."""
    return lambda: np.zeros(nbytes, np.uint8).fill(1)


def queue(nbytes: int) -> Work:
    """A queue of live arrays, of which the oldest dies for each new one; a byte of each page is touched."""
    live: deque[Any] = deque(maxlen=LIVE)

    def step() -> None:
        fresh = np.empty(nbytes, np.uint8)
        fresh[::4096] = 1
        live.append(fresh)

    for _ in range(LIVE):
        step()
    return step


def queue_floor(nbytes: int) -> Work:
    """The touching alone."""
    there = itertools.cycle([np.ones(nbytes, np.uint8) for _ in range(LIVE)])

    def step() -> None:
        next(there)[::4096] = 1

    return step


CASES: dict[str, Callable[[int], Work]] = {
    case.__name__: case for case in (expression, expression_floor, empty, zeros, zeros_filled, queue, queue_floor)
}


class Runner:
    """Keeps the case at hand between its turns."""

    def __init__(self) -> None:
        self.work: Work | None = None

    def respond(self, case: str, nbytes: int, number: int) -> dict[str, float]:
        """Time ``number`` repetitions of a case, the same in each question."""
        if self.work is None:
            self.work = CASES[case](nbytes)
            self.work()
        work = self.work
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter_ns()
        for _ in range(number):
            work()
        spent = time.perf_counter_ns() - begin
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        return {"ns": spent / number, "faults": faults / number}


if __name__ == "__main__":
    if "--arena" in sys.argv:
        install_arena()
    answer(Runner().respond)
