"""Threads of workloads: two or more that stay, one a processor, or fresh ones that end with their job.

Guarantees: an exception in a thread or Ctrl-C is raised where the work was asked for, and that only when every thread is done:
the memory that one of them works on is given back next. Loops that wait for each other run only after all of them were
compiled: whoever asks runs them once with nothing to do. Nobody begins before all are there (:mod:`realalloc.lab.gate`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from realalloc.closing import Closing
from realalloc.lab.gate import Gate
from realalloc.lab.interrupts import deferred
from realalloc.lab.measure import check

Job = Callable[[], int]


def pin(cpu: int) -> None:
    """Keep this thread on a processor, where that is allowed."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {cpu})


def _cpu(thread: int) -> int:
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[thread % len(cpus)]


def _after(gate: Gate, thread: int, job: Job) -> int:
    gate.arrive(thread)
    return job()


class Workers(Closing):
    """Threads that stay, so that an allocator's threads are warm in every turn but the first. A context manager."""

    def __init__(self, threads: int = 2) -> None:
        """Start none yet: an executor starts its thread with the first job."""
        self.pools = [ThreadPoolExecutor(1, "lab", pin, (_cpu(k),)) for k in range(threads)]

    def run(self, *jobs: Job) -> list[int]:
        """Run a job in each thread; wait for all, return what they return. ValueError for more jobs than threads."""
        if len(jobs) > len(self.pools):
            raise ValueError(f"{len(jobs)} jobs for {len(self.pools)} threads")
        with deferred():
            gate = Gate(len(jobs))
            waiting: list[Future[int]] = []
            try:
                for k, (pool, job) in enumerate(zip(self.pools, jobs, strict=False)):
                    waiting.append(pool.submit(functools.partial(_after, gate, k, job)))
            finally:
                if len(waiting) < len(jobs):
                    gate.open()
                for future in waiting:
                    future.exception()  # waits, and does not raise
            gate.passed()
        return [check(future.result()) for future in waiting]

    def close(self) -> None:
        """End the threads."""
        for pool in self.pools:
            pool.shutdown()


def crowd(jobs: Sequence[Job]) -> list[int]:
    """Run each job in a thread of its own that ends with it; return what they return."""
    found = [0] * len(jobs)
    failures: list[BaseException] = []

    def life(k: int) -> None:
        pin(_cpu(k))
        try:
            found[k] = check(_after(gate, k, jobs[k]))
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            failures.append(error)

    alive: list[threading.Thread] = []
    with deferred():
        gate = Gate(len(jobs))
        try:
            for k in range(len(jobs)):
                thread = threading.Thread(target=life, args=(k,))
                thread.start()
                alive.append(thread)
        finally:
            if len(alive) < len(jobs):
                gate.open()
            for thread in alive:
                thread.join()
        gate.passed()
    if failures:
        raise failures[0]
    return found
