"""What may lie around a pool's element: a type (instances of a struct over its memory), and a note of who has it.

Both are layers over the memoryview that is the lease; neither changes when it goes back.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PACKAGE = __name__.partition(".")[0]


class Struct:
    """A ctypes Structure, Union or array, or a NumPy dtype."""

    def __init__(self, given: Any) -> None:
        """TypeError if it is neither."""
        if isinstance(given, type) and issubclass(given, (ctypes.Structure, ctypes.Union, ctypes.Array)):
            self._class: Any = given
            self._dtype: Any = None
            self.nbytes, self.align, self.name = ctypes.sizeof(given), ctypes.alignment(given), given.__name__
        else:
            try:
                self._dtype = np.dtype(given)
            except TypeError:
                raise TypeError(f"struct must be a ctypes.Structure or a NumPy dtype, not {given!r}") from None
            if self._dtype.hasobject:
                raise TypeError("struct: a dtype of Python objects cannot live in an arena")
            self._class = None
            self.nbytes, self.align, self.name = self._dtype.itemsize, max(1, self._dtype.alignment), "record"
        if self.nbytes == 0:
            raise ValueError("struct: its size is 0")

    def over(self, view: memoryview) -> Any:
        """Return an instance over a view; it keeps the view. For a dtype, an array of shape ``()``."""
        if self._class is not None:
            return self._class.from_buffer(view)
        return np.ndarray((), self._dtype, view)

    def maker(self, ctor: Callable[[Any], object]) -> Callable[[memoryview], object]:
        """Return the constructor of a cache: ``ctor`` with an instance."""

        def make(view: memoryview) -> None:
            ctor(self.over(view))

        return make

    def view_of(self, instance: Any) -> memoryview | None:
        """Return the view under an instance; None if that is not one of ours."""
        if self._class is not None:
            kept = instance._objects if type(instance) is self._class else None
            found = next(iter(kept.values()), None) if isinstance(kept, dict) else kept
        else:
            found = instance.base if isinstance(instance, np.ndarray) else None
        return found if isinstance(found, memoryview) else None


class Holder(NamedTuple):
    """Who has an element."""

    where: str  # file:line of the code that asked
    seconds: float
    thread: str


class _Note(NamedTuple):
    where: str
    since: float
    thread: str


def caller() -> str:
    """Return file:line of the nearest code outside this package."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"


class Tracker:
    """Notes by element, forgotten when its handle dies."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self._notes: dict[int, tuple[Any, _Note]] = {}

    def note(self, view: memoryview) -> None:
        """Note that the caller takes an element."""
        key = id(view)
        notes = self._notes

        def forget(_reference: Any) -> None:
            notes.pop(key, None)

        notes[key] = weakref.ref(view, forget), _Note(caller(), time.monotonic(), threading.current_thread().name)

    def holders(self) -> list[Holder]:
        """Return who has elements, the longest-held first. A handle that was released is nobody's."""
        now = time.monotonic()
        found = [(reference(), note) for reference, note in list(self._notes.values())]
        return sorted(
            (
                Holder(note.where, now - note.since, note.thread)
                for view, note in found
                if view is not None and _lives(view)
            ),
            key=lambda holder: -holder.seconds,
        )

    def summary(self) -> str:
        """Say it in one line."""
        return summary(self.holders())


def summary(holders: list[Holder]) -> str:
    """Say who holds how many for how long, in one line."""
    counts = Counter(holder.where for holder in holders)
    longest = {holder.where: holder.seconds for holder in reversed(holders)}
    parts = [f"{count} by {where} for up to {longest[where]:.3g} s" for where, count in counts.most_common(3)]
    return f"; {len(holders)} held: {', '.join(parts)}" if parts else "; nobody holds any"


def _lives(view: memoryview) -> bool:
    try:
        return view.obj is not None
    except ValueError:
        return False
