"""Signals at a steady rate: system calls of threads are interrupted, and the main thread's work raises between any two
bytecodes.

Guarantees: outside of :meth:`Pelting.under_fire` the handler only counts. ``under_fire`` returns normally however often the
handler raised inside. What ``SIGALRM`` and the hook for unraisable exceptions were before is put back at the end.
May not: be used but in the main thread, as Python allows handlers only there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SHORTEST_SECONDS, LONGEST_SECONDS = 2e-5, 2e-3


class Pelted(BaseException):
    """What the handler raises; no error."""


class Pelting:
    """A context manager that owns SIGALRM."""

    def __init__(self, seed: int) -> None:
        """Prepare; the handler is not installed yet."""
        self.signals = 0  # that the handler saw
        self.raised = 0
        self._armed = False
        self._dice = random.Random(seed)  # noqa: S311  # no secret
        self._libc = ctypes.CDLL(None)
        self._before: Any = None
        self._timer = (0.0, 0.0)
        self._begun = 0.0
        self._hook: Any = None

    def __enter__(self) -> Self:
        """Install the handler."""
        self._timer = signal.setitimer(signal.ITIMER_REAL, 0)
        self._begun = time.monotonic()
        self._before = signal.signal(signal.SIGALRM, self._handle)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the timer and put the old handler back."""
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        left, interval = self._timer
        if left > 0:  # somebody's alarm was on; it comes late rather than never
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - self._begun)), interval)
        sys.unraisablehook = self._hook

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.signals += 1
        if self._armed:
            self._armed = False
            self.raised += 1
            raise Pelted

    def _unraisable(self, found: Any) -> None:
        if not isinstance(found.exc_value, Pelted):  # it may come while the collector runs somebody's __del__
            self._hook(found)

    def interrupt(self, native_id: int) -> None:
        """Interrupt a thread by its system's name, in a system call or not; a thread that has ended is no error."""
        with contextlib.suppress(AttributeError):  # tgkill has been in glibc since 2.30
            self._libc.tgkill(os.getpid(), native_id, signal.SIGALRM)

    def under_fire(self, act: Callable[[], object]) -> bool:
        """Call ``act`` while a signal comes within two milliseconds, and tell whether it raised."""
        hit = False
        try:
            signal.setitimer(signal.ITIMER_REAL, self._dice.uniform(SHORTEST_SECONDS, LONGEST_SECONDS))
            self._armed = True
            act()
            self._armed = False
        except Pelted:
            hit = True
        except BaseException:
            self._armed = False
            raise
        while True:
            try:
                self._armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Pelted:  # it came between the last bytecode of act and the first one here
                hit = True
                continue
            return hit
