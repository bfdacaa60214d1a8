"""What the system says about this process: resident set, page faults, CPU time, threads, files. The only file that imports
``psutil``.

Guarantees: a sampler sees the resident set when it starts, every ``interval`` seconds and when it stops, so that its
``peak`` is never below either end. A peak that is shorter than the interval can be missed. What a ``ProcessSampler`` keeps
is bounded, however long it runs: when there are too many rows, every second one goes, and from then on half as many come.
May not: know what the process is doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import psutil

INTERVAL_SECONDS = 0.01
MOST_ROWS = 4096


@functools.cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def rss() -> int:
    """Return the resident set of this process in bytes; in a forked child, the child's."""
    return int(_process(os.getpid()).memory_info().rss)


def trim_heap() -> bool:
    """Give the C heap's free pages back, so that what follows does not profit from what went before; glibc only."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        return True
    return False


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of the process since it began, every thread counted."""

    user_seconds: float
    system_seconds: float
    minor_faults: int
    major_faults: int

    @classmethod
    def now(cls) -> Self:
        """Read the totals."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(used.ru_utime, used.ru_stime, used.ru_minflt, used.ru_majflt)

    def since(self, before: Usage) -> Usage:
        """Return what was used since ``before``."""
        return Usage(
            self.user_seconds - before.user_seconds,
            self.system_seconds - before.system_seconds,
            self.minor_faults - before.minor_faults,
            self.major_faults - before.major_faults,
        )


class RssSampler:
    """Watches the resident set from a thread, as a context manager: ``start``, ``peak``, ``end``, ``samples``.

    With ``keep``, ``seen`` has (seconds since it began, bytes) of every look.
    """

    def __init__(self, interval: float = INTERVAL_SECONDS, *, keep: bool = False) -> None:
        """Watch every ``interval`` seconds; ValueError unless it is above zero."""
        if not interval > 0:
            raise ValueError(f"interval must be above 0 seconds, not {interval!r}")
        self.start = self.peak = self.end = 0
        self.samples = 0
        self.seen: list[tuple[float, int]] = []
        self._remembers = keep
        self._started = 0.0
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _look(self) -> int:
        seen = rss()
        self.peak = max(self.peak, seen)
        self.samples += 1
        if self._remembers:
            self.seen.append((time.monotonic() - self._started, seen))
        return seen

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    @property
    def growth(self) -> int:
        """Bytes by which the peak was above the start."""
        return self.peak - self.start

    def __enter__(self) -> Self:
        """Begin; a sampler that is used again begins anew."""
        if self._thread is not None:
            raise RuntimeError("the sampler is running")
        self._stop.clear()
        self.peak = self.samples = 0
        self.seen = []
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="realalloc-rss", daemon=True)
        self._thread.start()
        self.start = self.end = self._look()  # after the thread began: its own stack is not the caller's growth
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and look a last time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.end = self._look()


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the process: bytes, and counts. Faults are totals since the process began."""

    rss: int
    uss: int  # of it, what no other process shares: what would be freed if this one ended
    pss: int  # shared pages divided among those who share them
    minor_faults: int
    major_faults: int
    threads: int
    fds: int

    @classmethod
    def now(cls) -> Self:
        """Look; some hundred microseconds, as the kernel walks the page tables."""
        process, used = _process(os.getpid()), Usage.now()
        memory = process.memory_full_info()
        counts = used.minor_faults, used.major_faults, process.num_threads(), process.num_fds()
        return cls(int(memory.rss), int(memory.uss), int(memory.pss), *counts)


class ProcessSampler(RssSampler):
    """Keeps a row of :class:`Seen` and of the caller's own numbers every so many seconds, all on one time axis.

    ``rows``: (seconds since the sampler started, numbers by name). The resident set is looked at more often, for ``peak``.
    """

    def __init__(
        self, interval: float, also: Callable[[], dict[str, float]] | None = None, most_rows: int = MOST_ROWS
    ) -> None:
        """Keep a row every ``interval`` seconds, at most ``most_rows``; ``also`` is called in the sampler's thread."""
        super().__init__(min(interval, INTERVAL_SECONDS) if interval > 0 else interval)
        self.rows: list[tuple[float, dict[str, float]]] = []
        self._every = interval
        self._also = also or dict
        self._most = max(2, most_rows)
        self._begun = self._due = 0.0

    def __enter__(self) -> Self:
        """Begin; rows of an earlier use are forgotten."""
        if self._thread is None:
            self.rows = []
            self._begun = self._due = time.perf_counter()
        return super().__enter__()

    def _watch(self) -> None:
        self._keep()
        super()._watch()
        self._keep()

    def _look(self) -> int:
        if threading.current_thread() is self._thread and time.perf_counter() >= self._due:
            self._keep()
        return super()._look()

    def _keep(self) -> None:
        now = time.perf_counter()
        self._due = max(self._due + self._every, now)
        self.rows.append((now - self._begun, {**asdict(Seen.now()), **self._also()}))
        if len(self.rows) > self._most:
            self.rows = self.rows[::2]
            self._every *= 2
