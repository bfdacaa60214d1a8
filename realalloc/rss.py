"""What the system says about this process: resident set, page faults, CPU time. The only file that imports ``psutil``.

Guarantees: a sampler sees the resident set when it starts, every ``interval`` seconds and when it stops, so that its
``peak`` is never below either end. A peak that is shorter than the interval can be missed.
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
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

INTERVAL_SECONDS = 0.01


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
        self._keep = keep
        self._begun = 0.0
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _look(self) -> int:
        seen = rss()
        self.peak = max(self.peak, seen)
        self.samples += 1
        if self._keep:
            self.seen.append((time.monotonic() - self._begun, seen))
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
        self._begun = time.monotonic()
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
