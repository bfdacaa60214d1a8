"""Threads of workloads: two or more that stay, one a processor, or fresh ones that end with their job.

Guarantees: an exception in a thread or Ctrl-C is raised where the work was asked for, and that only when every thread is done:
the memory that one of them works on is given back next. Loops that wait for each other run only after all of them were
compiled: whoever asks runs them once with nothing to do.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from realalloc.closing import Closing
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
            waiting = [pool.submit(job) for pool, job in zip(self.pools, jobs, strict=False)]
            for future in waiting:
                future.exception()  # waits, and does not raise
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
            found[k] = check(jobs[k]())
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            failures.append(error)

    alive = [threading.Thread(target=life, args=(k,)) for k in range(len(jobs))]
    with deferred():
        for thread in alive:
            thread.start()
        for thread in alive:
            thread.join()
    if failures:
        raise failures[0]
    return found
