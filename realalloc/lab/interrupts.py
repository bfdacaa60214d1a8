"""Ctrl-C between turns of a measurement, not within: threads may be in machine code, on memory that is about to be given back.

Guarantees: inside of ``deferred`` an interrupt is only noted; it is delivered, to whoever handled it before, where
``checkpoint`` is called, or when the block ends, however it does. The second one is delivered at once: something hangs.
May not: be needed off the main thread, which is the only one that signals are handled on; there it does nothing.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Checkpoint = Callable[[], None]


@contextlib.contextmanager
def deferred() -> Iterator[Checkpoint]:
    """Hold interrupts back; give ``checkpoint``, which delivers one that came meanwhile."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) > 1:
            came.clear()
            handler(signum, frame)

    def checkpoint() -> None:
        if came:
            handler(came.pop(), None)

    signal.signal(signal.SIGINT, note)
    try:
        yield checkpoint
    finally:
        signal.signal(signal.SIGINT, handler)
        checkpoint()
