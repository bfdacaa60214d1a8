"""A mempool over a user's own ``alloc_fn(pool_data, gfp)`` and ``free_fn(element)``, for any Python object.

The contract of :mod:`realalloc.mempool`, with a list and a condition instead of words and a futex. Neither function is ever
called with the lock held. An ``alloc_fn`` that raises or returns None has failed, and the reserve is used.
Invariant: curr_nr + out + missing >= capacity = max(1, min_nr), and 0 <= curr_nr <= capacity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from realalloc.errors import CorruptionError, InvalidFree, OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_KERNEL, GFP_NOWAIT, gfp_names
from realalloc.sizes import as_gfp, as_int, as_timeout

SLICE_SECONDS = 5.0


class ObjectPool:
    """A pool of objects made by ``alloc_fn``; make it with :meth:`realalloc.Arena.mempool`."""

    def __init__(
        self,
        min_nr: int,
        alloc_fn: Callable[[Any, int], Any],
        free_fn: Callable[[Any], object],
        pool_data: Any,
        *,
        alloc_first: bool,
    ) -> None:
        """Fill the reserve; OutOfMemory, with everything given back, if ``alloc_fn`` fails."""
        self.min_nr = min_nr
        self._alloc_fn = alloc_fn
        self._free_fn = free_fn
        self._data = pool_data
        self._alloc_first = alloc_first
        self._returned = threading.Condition()
        self._elements: list[Any] = []
        self._out: dict[int, Any] = {}
        self._destroyed = False
        for _ in range(self._capacity):
            try:
                element = self._make(GFP_KERNEL)
            except BaseException:
                self._drain()
                raise
            if element is None:
                self._drain()
                raise OutOfMemory(f"mempool({min_nr}): alloc_fn failed while the reserve was filled")
            self._elements.append(element)

    @property
    def _capacity(self) -> int:
        return max(1, self.min_nr)

    @property
    def curr_nr(self) -> int:
        """Elements in the reserve now."""
        return len(self._elements)

    @property
    def is_saturated(self) -> bool:
        """Whether the reserve is full."""
        return self.curr_nr >= self.min_nr

    def _make(self, gfp: int) -> Any:
        try:
            return self._alloc_fn(self._data, gfp)
        except Exception:  # noqa: BLE001  # a failed alloc_fn falls back to the reserve, whatever it raised
            return None

    def _drain(self) -> None:
        while self._elements:
            self._free_fn(self._elements.pop())

    def _check_alive(self) -> None:
        if self._destroyed:
            raise ValueError("the pool was destroyed")

    def _pop(self) -> Any:
        with self._returned:
            self._check_alive()
            if not self._elements:
                return None
            element = self._elements.pop()
            self._out[id(element)] = element
            return element

    def _fresh(self, gfp: int) -> Any:
        element = self._make(gfp)
        if element is not None:
            with self._returned:
                self._out[id(element)] = element
        return element

    def _attempt(self, gfp: int) -> Any:
        self._check_alive()
        if self._alloc_first:
            element = self._fresh(gfp & ~GFP_DIRECT_RECLAIM)
            return element if element is not None else self._pop()
        element = self._pop()
        return element if element is not None else self._fresh(gfp)

    def alloc(self, gfp: int = GFP_KERNEL, timeout: float | None = None) -> Any:
        """Return an element; wait for one if the flags allow it. TimeoutError, OutOfMemory as in ``MemPool.alloc``."""
        flags = as_gfp(gfp)
        seconds = as_timeout(timeout)
        element = self._attempt(flags)
        if element is not None:
            return element
        if not flags & GFP_DIRECT_RECLAIM:
            raise OutOfMemory(f"{self!r}: empty, and {gfp_names(flags)} may not wait")
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            element = self._attempt(flags)
            if element is not None:
                return element
            left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"{self!r}: no element came back within {seconds} s")
            with self._returned:
                if not self._elements and not self._destroyed:
                    self._returned.wait(left)

    def alloc_preallocated(self) -> Any:
        """Return an element of the reserve; OutOfMemory if it is empty."""
        element = self._pop()
        if element is None:
            raise OutOfMemory(f"{self!r}: the reserve is empty")
        return element

    def free(self, element: Any) -> None:
        """Return an element: to the reserve first, else to ``free_fn``. InvalidFree if it is not out."""
        if element is None:
            return
        with self._returned:
            if self._out.get(id(element)) is not element:
                raise InvalidFree("pool.free: not an element of this pool that is out")
            del self._out[id(element)]
            if len(self._elements) < self._capacity:
                self._elements.append(element)
                self._returned.notify_all()
                return
        self._free_fn(element)

    def resize(self, min_nr: int) -> None:
        """Change ``min_nr``; surplus elements go to ``free_fn``, missing ones are made now or returned later."""
        self._check_alive()
        self.min_nr = as_int(min_nr, "min_nr")
        surplus = []
        with self._returned:
            while len(self._elements) > self._capacity:
                surplus.append(self._elements.pop())
        for element in surplus:
            self._free_fn(element)
        while len(self._elements) + len(self._out) < self._capacity:
            element = self._make(GFP_KERNEL & GFP_NOWAIT)
            if element is None:
                return
            with self._returned:
                self._elements.append(element)
                self._returned.notify_all()

    def validate(self) -> None:
        """Check the invariant at the head of this file."""
        with self._returned:
            if len(self._elements) > self._capacity or any(id(e) in self._out for e in self._elements):
                raise CorruptionError("mempool: a reserved element is out, or the reserve overflows")

    def destroy(self) -> None:
        """Give the reserve to ``free_fn``; BufferError, with nothing changed, while elements are out."""
        with self._returned:
            self._check_alive()
            if self._out:
                raise BufferError(f"the pool still has {len(self._out)} elements out")
            self._destroyed = True
            self._returned.notify_all()
        self._drain()

    def __repr__(self) -> str:
        """Show use and limit."""
        return f"<ObjectPool {self.curr_nr}/{self.min_nr} in reserve, {len(self._out)} out>"
