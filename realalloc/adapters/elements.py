"""Elements of one mempool for the connections of one event loop: taken at once, or awaited first come, first served.

``ElementQueue.take`` never waits and never makes the pool grow: it hands out what is in the reserve. ``ElementQueue.element``
waits. Whoever waits is served in the order of asking, before anybody who only takes; a cancelled wait loses nothing.
Elements come back when their last view dies, wherever that is, and nobody tells this loop; ``returned`` is the hint of those
who know, and while somebody waits the reserve is looked at every ``POLL_SECONDS`` as well.
One queue belongs to one loop and is used on its thread only; the pool may be shared with anybody.
"""

from __future__ import annotations

import asyncio
from collections import deque

from realalloc.errors import OutOfMemory
from realalloc.mempool import MemPool

POLL_SECONDS = 0.002


class ElementQueue:
    """The elements of ``pool`` for one loop."""

    __slots__ = ("_alloc", "_poll", "_waiters", "hand", "pool")

    def __init__(self, pool: MemPool) -> None:
        self.pool = pool
        self.hand: memoryview | None = None  # an element to receive into that nothing was received into yet
        self._alloc = pool.alloc_preallocated
        self._waiters: deque[asyncio.Future[memoryview]] = deque()
        self._poll: asyncio.Handle | None = None

    def take(self) -> memoryview | None:
        """Return an element; None if the reserve is empty, or others wait for one already."""
        if self._waiters:
            return None
        return self._reserve()

    def _reserve(self) -> memoryview | None:
        try:
            buf: memoryview = self._alloc()
        except OutOfMemory:
            return None
        return buf

    async def element(self) -> memoryview:
        """Return an element; wait for one if need be. All that an awaitable ``pool.alloc_async()`` has to replace."""
        self.hand = None
        buf = self.take()
        if buf is not None:
            return buf
        future: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        self._look_again(POLL_SECONDS)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # served and cancelled in the same turn of the loop
                future.result().release()
                self.returned()
            raise

    @property
    def waiting(self) -> int:
        """How many wait for an element."""
        return sum(not future.done() for future in self._waiters)

    def returned(self) -> None:
        """Hint that an element came back, or will when this callback of the loop ends."""
        if self._waiters:
            self._look_again(0)

    def drop_hand(self) -> None:
        """Give the element in hand back."""
        self.hand = None
        self.returned()

    def _look_again(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._poll is not None:
            if seconds:
                return
            self._poll.cancel()
        self._poll = loop.call_later(seconds, self._serve) if seconds else loop.call_soon(self._serve)

    def _serve(self) -> None:
        self._poll = None
        waiters = self._waiters
        while waiters:
            if waiters[0].done():  # cancelled
                waiters.popleft()
                continue
            buf = self._reserve()
            if buf is None:
                self._look_again(POLL_SECONDS)
                return
            waiters.popleft().set_result(buf)
