"""Pressure: how long allocations of an arena have stalled for want of memory, and an fd that tells when it gets too long.

As the kernel's /proc/pressure/memory: ``some`` and ``full``, averages over 10, 60 and 300 seconds and a total; triggers as
those that are written into that file. What counts as a stall: :mod:`realalloc.mm.pressure`.
Guarantees: after a trigger's close nobody writes to its fd.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from realalloc.closing import Closing
from realalloc.mm import layout
from realalloc.mm.jit import Words
from realalloc.mm.pressure import AVERAGE_SHIFT, add_trigger, remove_trigger, update_pressure
from realalloc.records import Record

if TYPE_CHECKING:
    from realalloc.arena import Arena

KINDS: Final = ("some", "full")
MIN_WINDOW_S: Final = 0.05  # the kernel's is 0.5
MAX_WINDOW_S: Final = 10.0
MIN_STALL_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Stall(Record):
    """Share of the time in percent, over the last 10, 60 and 300 seconds, and all of it in ns."""

    avg10: float
    avg60: float
    avg300: float
    total_ns: int


@dataclass(frozen=True, slots=True)
class Pressure(Record):
    """How long allocations have stalled."""

    some: Stall  # at least one thread was held up
    full: Stall  # nobody could have had fresh pages
    reclaims: int  # times that memory was taken back, before a request was refused or served

    def __str__(self) -> str:
        """Spell it as /proc/pressure/memory does; totals in microseconds."""
        lines = []
        for kind, stall in (("some", self.some), ("full", self.full)):
            averages = f"avg10={stall.avg10:.2f} avg60={stall.avg60:.2f} avg300={stall.avg300:.2f}"
            lines.append(f"{kind} {averages} total={stall.total_ns // 1000}\n")
        return "".join(lines)


def read(words: Words) -> Pressure:
    """Read the pressure of an arena now."""
    update_pressure(words, time.monotonic_ns())
    field = [int(value) for value in words[layout.PRESSURE : layout.PRESSURE + layout.PSI_TRIGGERS]]

    def stall(full: int, total: int) -> Stall:
        at = layout.PSI_AVERAGES + 3 * full
        averages = [100 * value / (1 << AVERAGE_SHIFT) for value in field[at : at + 3]]
        return Stall(averages[0], averages[1], averages[2], total)

    full = field[layout.PSI_FULL_NS]
    return Pressure(
        some=stall(0, full + field[layout.PSI_SOME_NS]), full=stall(1, full), reclaims=field[layout.PSI_RECLAIMS]
    )


def _seconds(value: Any, what: str, low: float, high: float) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{what} must be {low:g} to {high:g} seconds, not {value}")
    return int(value * 1e9)


class PressureTrigger(Closing):
    """An fd that becomes readable when allocations have stalled for ``stall`` seconds within ``window``, once a window.

    Watch :meth:`fileno` in an event loop and call :meth:`clear` when it is readable, or :meth:`wait`. Ends with
    :meth:`close`, its ``with`` block, or the arena; in a fork's child it never fires.
    """

    def __init__(self, arena: Arena, kind: str, stall: float, window: float) -> None:
        """Check the arguments and set it."""
        if kind not in KINDS:
            raise ValueError(f"kind must be 'some' or 'full', not {kind!r}")
        window_ns = _seconds(window, "window", MIN_WINDOW_S, MAX_WINDOW_S)
        stall_ns = _seconds(stall, "stall", MIN_STALL_S, window)
        words = arena.words
        self._pid = os.getpid()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._words: Words | None = words
        self._number = int(add_trigger(words, self._fd, int(kind == "full"), stall_ns, window_ns))
        if self._number < 0:
            self.close()
            raise ValueError(f"an arena has at most {layout.TRIGGERS} triggers")

    def fileno(self) -> int:
        """Return the fd; ValueError after close."""
        if self._words is None:
            raise ValueError("the trigger is closed")
        return self._fd

    def clear(self) -> int:
        """Make the fd unreadable again; return how often it fired since the last time."""
        if self._pid == os.getpid():  # a fork's child would take what is the parent's
            with contextlib.suppress(BlockingIOError):
                return os.eventfd_read(self.fileno())
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until it fires; False after ``timeout`` seconds."""
        if self._pid != os.getpid():
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(0, timeout * 1000))) and self.clear() > 0

    def close(self) -> None:
        """Take it away and close the fd. Idempotent."""
        words, self._words = self._words, None
        if words is not None:
            if self._number >= 0:
                remove_trigger(words, self._number, self._fd)
            os.close(self._fd)

    def __del__(self) -> None:
        """Close what nobody closed."""
        if getattr(self, "_words", None) is not None and not sys.is_finalizing():  # the process takes the fd along
            self.close()
