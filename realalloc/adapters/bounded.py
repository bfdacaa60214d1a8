"""A counting budget: what an adapter may have out at once.

A pool whose reserve is empty asks its backing allocator before it waits, unless it was made with ``order="reserve-only"``; an
adapter does not choose the order of the pool that it is given. Whoever takes from a budget first, and never takes more
elements than the pool's ``min_nr``, is always served from the reserve, whatever the order.
Guarantee: a request for several is served whole or not at all, so two half-served takers never wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from realalloc.sizes import as_int, as_timeout


def time_left(deadline: float | None) -> float | None:
    """Return the seconds until ``deadline`` (of ``time.monotonic``), as many as the system can wait; None for ever."""
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)


def wait_until(condition: threading.Condition, predicate: Callable[[], Any], seconds: float | None) -> bool:
    """Wait, with the condition's lock, until the predicate holds; False when ``seconds``, which may be infinite, are over."""
    return bool(condition.wait_for(predicate, None if seconds is None else min(seconds, threading.TIMEOUT_MAX)))


class Budget:
    """``total`` equal things; threads wait for some of them."""

    def __init__(self, total: int, what: str) -> None:
        """Have all of them; ``what`` names them in errors. ValueError below 1."""
        self.total = as_int(total, "total", 1)
        self._what = what
        self._free = self.total
        self._returned = threading.Condition()

    @property
    def free(self) -> int:
        """How many could be taken now."""
        return self._free

    def take(self, count: int, timeout_seconds: float | None = None) -> None:
        """Take ``count``, waiting for ever if ``timeout_seconds`` is None; TimeoutError, with none taken, when it runs out.

        ValueError if there are not so many.
        """
        if count > self.total:
            raise ValueError(f"{count} of {self.total} {self._what} can never be had")
        seconds = as_timeout(timeout_seconds)
        with self._returned:
            if not wait_until(self._returned, lambda: self._free >= count, seconds):
                raise TimeoutError(
                    f"{self._free} of {self.total} {self._what} free after {seconds} s, {count} were wanted"
                )
            self._free -= count

    def give(self, count: int) -> None:
        """Return ``count``; ValueError if more come back than went."""
        with self._returned:
            if self._free + count > self.total:
                raise ValueError(f"{count} {self._what} come back, {self.total - self._free} are out")
            self._free += count
            self._returned.notify_all()
