"""Asking a pool for elements and waiting for them: blocking, awaiting, one or many. What both kinds of pool share.

A request queues in the arena (:mod:`realalloc.mm.waiters`), in order of arrival, whoever waits and however: a thread sleeps
on its own request's word, without the GIL, in slices of at most five seconds, as in the kernel, since the backing allocator
does not say when it has memory again; an event loop watches an eventfd. Ctrl-C, a timeout or a cancellation gives the request
up, and what it was granted just then goes to the next.

A request is named by a word that machine code writes while ``finally`` already stands, and given up by a call that no
bytecode precedes: neither one signal nor a second one can strand it.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from realalloc import views
from realalloc.errors import ArenaClosed, OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_KERNEL, gfp_names
from realalloc.memory import futex_wait
from realalloc.mm import layout
from realalloc.mm.jit import unbroken
from realalloc.mm.mempool_wait import pool_wait_begin, pool_wait_end, pool_wait_sleep
from realalloc.mm.waiters import NODE_MASK
from realalloc.records import PoolStats
from realalloc.sizes import as_gfp, as_int, as_timeout
from realalloc.wakers import Waker

if TYPE_CHECKING:
    from realalloc.arena import Arena

E = TypeVar("E")

# The longest sleep before the backing allocator is asked again (kernel: io_schedule_timeout(5 * HZ)).
SLICE_SECONDS = 5.0
NO_NODE_SECONDS = 0.001  # until a request without memory for its node tries again


class WaitingPool(Generic[E]):
    """The asking side of a pool; a subclass says how an element is had at once, and how a granted one is taken."""

    _arena: Arena
    _at: int | None
    _wakers: dict[Any, Waker]
    _serves_first: ClassVar[bool] = False  # whether the backing allocator is not the arena's

    @property
    def at(self) -> int:
        """Word index of the pool's descriptor: what the jit verbs take."""
        if self._at is None:
            raise ValueError("the pool was destroyed")
        return self._at

    @property
    def min_nr(self) -> int:
        """Elements that the reserve is meant to hold."""
        return int(self._words()[self.at + layout.P_MIN_NR])

    @property
    def curr_nr(self) -> int:
        """Elements in the reserve now."""
        return int(self._words()[self.at + layout.P_CURR_NR])

    @property
    def is_saturated(self) -> bool:
        """Whether the reserve is full."""
        return self.curr_nr >= self.min_nr

    @property
    def is_bounded(self) -> bool:
        """Whether there are never more than ``min_nr`` elements: ``order="reserve-only"``."""
        return int(self._words()[self.at + layout.P_ORDER]) == layout.ORDER_RESERVE_ONLY

    def _words(self) -> Any:
        """Return the arena's words; ArenaClosed or ValueError if arena or pool are gone."""
        words = self._arena.words
        _ = self.at
        return words

    def _attempt(self, flags: int) -> E | None:
        """Return an element if one can be had without waiting."""
        raise NotImplementedError

    def _claim(self, request: int) -> E:
        """Take one of the elements that a request was granted."""
        raise NotImplementedError

    def _serve(self, words: Any, p: int, flags: int) -> None:
        """Ask the backing allocator for those who wait, outside of any lock."""
        raise NotImplementedError

    def _press(self, words: Any, p: int, request: int, flags: int) -> int:
        """Run the arena's shrinkers for a request that waits; OK if that served it. Not where ``_serves_first`` is set."""
        raise NotImplementedError

    def _may_press(self, request: int) -> bool:
        return request != 0 and not self._serves_first and len(self._arena._shrinkers) != 0

    def _undo(self, made: list[E]) -> None:
        """Give elements back that nobody will be given."""
        raise NotImplementedError

    def _who(self) -> str:
        """Say who holds the elements."""
        raise NotImplementedError

    # -- at once, or after waiting ---------------------------------------------------------------------------------------

    def _alloc(self, gfp: int = GFP_KERNEL, timeout: float | None = None) -> E:
        """Return an element; wait for one if the flags allow it.

        ``timeout`` in seconds, None for ever, 0 not at all. TimeoutError when it runs out; OutOfMemory at once where the
        flags forbid waiting (GFP_NOWAIT, GFP_ATOMIC). Waiters are served in order of arrival.
        """
        flags = as_gfp(gfp)
        seconds = as_timeout(timeout)
        found = self._attempt(flags)
        if found is not None:
            return found
        if not flags & GFP_DIRECT_RECLAIM:
            raise OutOfMemory(f"{self!r}: empty, and {gfp_names(flags)} may not wait{self._who()}")
        return self._wait(1, flags, seconds)[0]

    def alloc_bulk(self, n: int, gfp: int = GFP_KERNEL, timeout: float | None = None) -> list[E]:
        """Return ``n`` elements, all or none, after those who asked before. ``n`` above ``min_nr`` could wait for ever and is
        a ValueError; TimeoutError and OutOfMemory as in ``alloc``.
        """
        count = as_int(n, "n")
        if count > max(1, self.min_nr):
            raise ValueError(f"alloc_bulk({count}) from a pool with min_nr={self.min_nr} could never be certain")
        flags = as_gfp(gfp)
        seconds = as_timeout(timeout)
        return self._wait(count, flags, seconds) if count else []

    def _wait(self, need: int, flags: int, seconds: float | None) -> list[E]:
        words, p = self._words(), self.at
        deadline = None if seconds is None else time.monotonic() + seconds
        request = np.zeros(1, np.int64)
        name = request.data
        end, start = unbroken(pool_wait_end, words)
        made: list[E] = []
        try:
            try:
                status = self._enter(words, p, need, request, flags, seconds)
                if status != layout.OK and self._may_press(name[0]):
                    status = self._press(words, p, name[0], flags)
                while status != layout.OK:
                    left = self._time_left(need, flags, seconds, deadline)
                    if name[0]:
                        status = self._sleep(words, p, name[0], left, flags)
                    else:
                        time.sleep(min(left, NO_NODE_SECONDS))
                        status = self._begin(words, p, need, -1, request, flags)
                while len(made) < need:
                    made.append(self._claim(name[0]))
                name[0] = 0  # with its last element a request is over
            finally:
                if name[0]:
                    end(start, p, name[0])
        except BaseException:
            # After the request: with the last element the pool may end, and the request's word with it.
            self._undo(made)
            raise
        return made

    def _enter(self, words: Any, p: int, need: int, request: Any, flags: int, seconds: float | None) -> int:
        """Queue a request and, if it may, sleep for a first slice; OK if it is granted."""
        if self._serves_first or not flags & GFP_DIRECT_RECLAIM or seconds == 0 or self._arena._shrinkers:
            return self._begin(words, p, need, -1, request, flags)
        slice_ns = int(1e9 * (SLICE_SECONDS if seconds is None else min(SLICE_SECONDS, seconds)))
        status = int(pool_wait_sleep(words, p, need, slice_ns, request))
        if status == layout.EBUSY:
            self._words()
            self._serve(words, p, flags)
            return layout.OK if self._granted(words, int(request[0])) else status
        return status if status == layout.OK else self._begun(words, p, need, request, flags, status)

    def _time_left(self, need: int, flags: int, seconds: float | None, deadline: float | None) -> float:
        """Return for how long a request may sleep now; OutOfMemory or TimeoutError if it may not."""
        if not flags & GFP_DIRECT_RECLAIM:
            raise OutOfMemory(f"{self!r}: {need} wanted, and {gfp_names(flags)} may not wait{self._who()}")
        left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError(f"{self!r}: no element came back within {seconds} s{self._who()}")
        return left

    def _begin(self, words: Any, p: int, need: int, fd: int, request: Any, flags: int) -> int:
        """Queue a request; OK if it was granted at once."""
        return self._begun(words, p, need, request, flags, int(pool_wait_begin(words, p, need, fd, request)))

    def _begun(self, words: Any, p: int, need: int, request: Any, flags: int, status: int) -> int:
        if status in (layout.EINVAL, layout.ENOMEM):
            self._words()  # is it gone?
            if status == layout.EINVAL:
                raise ValueError(f"{self!r}: {need} elements are more than its reserve holds")
        elif status == layout.EAGAIN or (status != layout.OK and self._serves_first):
            self._serve(words, p, flags)
            return layout.OK if self._granted(words, int(request[0])) else status
        return status

    @staticmethod
    def _granted(words: Any, request: int) -> bool:
        return int(words[(request & NODE_MASK) + layout.N_STATE]) == layout.NODE_GRANTED

    def _sleep(self, words: Any, p: int, request: int, seconds: float, flags: int) -> int:
        """Sleep until the request is granted, or for ``seconds``; OK if it is. ArenaClosed, ValueError if all is going."""
        address = self._arena.address + ((request & NODE_MASK) + layout.N_STATE) * layout.WORD_BYTES
        futex_wait(address, layout.NODE_WAITING, seconds)
        self._words()
        if not self._granted(words, request):
            self._serve(words, p, flags)
            if not self._granted(words, request) and self._may_press(request):
                return self._press(words, p, request, flags)
        return layout.OK if self._granted(words, request) else layout.EBUSY

    # -- awaiting --------------------------------------------------------------------------------------------------------

    async def alloc_async(self, gfp: int = GFP_KERNEL) -> E:
        """Return an element; await one if the flags allow it. For any asyncio loop, in several of them and threads at once.

        Waits in one queue with ``alloc``. Cancelling it (``asyncio.timeout``) loses nothing. OutOfMemory as in ``alloc``.
        """
        flags = as_gfp(gfp)
        found = self._attempt(flags)
        if found is not None:
            return found
        if not flags & GFP_DIRECT_RECLAIM:
            raise OutOfMemory(f"{self!r}: empty, and {gfp_names(flags)} may not wait{self._who()}")
        return await self._await(asyncio.get_running_loop(), flags)

    async def _await(self, loop: asyncio.AbstractEventLoop, flags: int) -> E:
        words, p = self._words(), self.at
        request = np.zeros(1, np.int64)
        name = request.data
        end, start = unbroken(pool_wait_end, words)
        waker = self._wakers.get(loop)
        if waker is None:
            waker = self._wakers[loop] = Waker(loop, self)
        turn = waker.enter()
        try:
            status = self._begin(words, p, 1, waker.fd, request, flags)
            if status != layout.OK and self._may_press(name[0]):
                status = self._press(words, p, name[0], flags)
            while status != layout.OK:
                await waker.sleep(turn, name[0], SLICE_SECONDS if name[0] else NO_NODE_SECONDS)
                self._words()
                if not name[0]:
                    waker.again(turn)
                    status = self._begin(words, p, 1, waker.fd, request, flags)
                elif self._granted(words, name[0]):
                    status = layout.OK
                else:
                    self._serve(words, p, flags)
                    if self._may_press(name[0]):
                        status = self._press(words, p, name[0], flags)
            return self._claim(name[0])
        finally:
            if name[0]:
                end(start, p, name[0])
            if waker.leave(turn):
                self._wakers.pop(loop, None)

    def is_granted(self, request: int) -> bool:
        """Tell whether a request need not wait any longer: it was granted what it wants, or everything is going."""
        try:
            return self._granted(self._words(), request)
        except (ArenaClosed, ValueError):
            return True

    # -- looking, and failing ------------------------------------------------------------------------------------------------

    def fail_alloc(self, probability: float = 1.0, *, interval: int = 1, times: int = -1, seed: int = 0) -> None:
        """Make the backing allocator, or ``alloc_fn``, fail, to try the reserve: every ``interval``-th request with
        ``probability``, ``times`` times (-1: for ever), drawn from ``seed``; 0 ends it. Kernel: fail_mempool_alloc.
        """
        views.set_failing(self._words(), self.at, probability, interval, times, seed)

    def stats(self) -> PoolStats:
        """Return where elements came from and went to, and how long requests waited."""
        return views.pool_stats(self._words(), self.at)

    # -- holding ---------------------------------------------------------------------------------------------------------

    def lease(self, gfp: int = GFP_KERNEL, timeout: float | None = None) -> PoolLease[E]:
        """Return a context manager, ``with`` and ``async with``, that takes an element and gives it back."""
        return PoolLease(self, gfp, timeout)

    def _give(self, element: E) -> None:
        raise NotImplementedError

    def _take(self, gfp: int, timeout: float | None) -> E:
        raise NotImplementedError


class PoolLease(Generic[E]):
    """An element for the time of a block."""

    def __init__(self, pool: WaitingPool[E], gfp: int, timeout: float | None) -> None:
        """Take nothing yet."""
        self._pool = pool
        self._gfp = gfp
        self._timeout = as_timeout(timeout)
        self._held: list[E] = []

    def __enter__(self) -> E:
        """Take an element, waiting for it."""
        self._held.append(self._pool._take(self._gfp, self._timeout))
        return self._held[-1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._pool._give(self._held.pop())

    async def __aenter__(self) -> E:
        """Take an element, awaiting it."""
        if self._timeout is None:
            self._held.append(await self._pool.alloc_async(self._gfp))
        else:
            async with asyncio.timeout(self._timeout):
                self._held.append(await self._pool.alloc_async(self._gfp))
        return self._held[-1]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._pool._give(self._held.pop())
