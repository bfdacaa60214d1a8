"""Elements of one bounded mempool for the connections of one event loop: taken at once, or awaited.

``ElementQueue.take`` never waits, ``ElementQueue.element`` does, in the pool's own queue: in order of arrival with whoever
else waits there, threads and other loops too, and before anybody who only takes; a cancelled wait loses nothing.
The pool must be made with ``order="reserve-only"``: any other would ask the arena before it lets anybody wait, and grow.
One queue belongs to one loop and is used on its thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from realalloc.mempool import MemPool


class ElementQueue:
    """The elements of ``pool`` for one loop. ValueError if the pool is not bounded."""

    __slots__ = ("hand", "pool", "take")

    def __init__(self, pool: MemPool) -> None:
        if not pool.is_bounded:
            raise ValueError(f'{pool!r} is not bounded: make it with order="reserve-only"')
        self.pool = pool
        self.hand: memoryview | None = None  # an element to receive into that nothing was received into yet
        # Returns an element; None if the reserve is empty, or others wait for one already.
        self.take: Callable[[], memoryview | None] = pool._poll

    async def element(self) -> memoryview:
        """Return an element; wait for one if need be."""
        self.hand = None
        buf: memoryview = await self.pool.alloc_async()
        return buf

    @property
    def waiting(self) -> int:
        """How many wait for an element of the pool."""
        return self.pool.stats().waiters
