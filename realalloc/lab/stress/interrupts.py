"""Ctrl-C that ends a run and breaks nothing off.

An exception would come between any two bytecodes of the main thread; in a callback of a fork or of the collector it would be
printed and lost. So the first SIGINT only calls a function, and the second raises KeyboardInterrupt, as without this file.

Guarantees: the handler that was there is put back. It is replaced only in the main thread, and only where it was Python's own.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """A context manager; ``seen`` says whether Ctrl-C came."""

    def __init__(self, stop: Callable[[], object]) -> None:
        """Prepare to call ``stop``."""
        self.seen = False
        self._stop = stop
        self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            signal.default_int_handler(number, frame)
        self.seen = True
        self._stop()

    def __enter__(self) -> Self:
        """Install the handler."""
        if threading.current_thread() is threading.main_thread():
            self._installed = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the old handler back."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
