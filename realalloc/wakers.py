"""How an event loop learns that its requests were granted: an eventfd for each pool and loop, watched while somebody waits.

The grantor writes to the eventfd with the arena lock held; who gives the last request up, with that lock, closes it
afterwards. So nobody writes to a file descriptor that has become somebody else's.
A loop that is closed under its tasks never runs them again: only the loop keeps them, not the pool, so that they are
collected with it and give their requests up.
Requests of a loop are granted in the order in which it made them, so a look ends at the first that was not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import weakref
from typing import Any, Protocol


class Grants(Protocol):
    """What a waker asks."""

    def is_granted(self, request: int) -> bool:
        """Tell whether a request need not wait any longer."""


class Waker:
    """The sleepers of one loop at one pool. Used by the thread of that loop alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Grants) -> None:
        """Watch."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop = loop
        self._pool = pool
        self._turns = itertools.count()
        # By turn, the oldest first: request, and the future of who sleeps.
        self._sleepers: dict[int, tuple[int, weakref.ref[asyncio.Future[None]] | None]] = {}
        loop.add_reader(self.fd, self._ready)

    def enter(self) -> int:
        """Name a sleeper."""
        turn = next(self._turns)
        self._sleepers[turn] = 0, None
        return turn

    def again(self, turn: int) -> None:
        """Put a sleeper behind the others: it queued only now."""
        self._sleepers[turn] = self._sleepers.pop(turn)

    def leave(self, turn: int) -> bool:
        """Forget a sleeper; True if that was the last one, and the eventfd is closed."""
        self._sleepers.pop(turn, None)
        if self._sleepers:
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed: it watches nothing any more
            self._loop.remove_reader(self.fd)
        os.close(self.fd)
        return True

    async def sleep(self, turn: int, request: int, seconds: float) -> None:
        """Sleep until the request was granted, or for ``seconds``."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._sleepers[turn] = request, weakref.ref(future)  # the timer keeps it, as long as the loop is open
        timer = self._loop.call_later(seconds, self._wake, future)
        try:
            if request and self._pool.is_granted(request):
                return
            await future
        finally:
            timer.cancel()
            self._sleepers[turn] = request, None

    @staticmethod
    def _wake(future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_result(None)

    def _ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        for request, sleeper in list(self._sleepers.values()):
            if request and not self._pool.is_granted(request):
                break
            future = sleeper() if request and sleeper is not None else None
            if future is not None:
                self._wake(future)
