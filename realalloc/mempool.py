"""Mempools for Python: a reserve of elements that is there before it is needed.

``MemPool`` stands on kmalloc, a cache or pages; its state is words in the arena and ``alloc`` without arguments is machine
code. Order: the reserve first, then the backing allocator, then wait; ``order="alloc-first"`` is the kernel's, and with
``"reserve-only"`` there are never more than ``min_nr`` elements. How one waits is in :mod:`realalloc.waiting`, what typed
and tracked elements are in :mod:`realalloc.elements`, which options make which pool in :mod:`realalloc.pools`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from realalloc.budget import Budget
from realalloc.cache import CONSTRUCT_TRIES
from realalloc.elements import Holder, Struct, Tracker
from realalloc.errors import CorruptionError, InvalidFree, OutOfMemory
from realalloc.gfp import GFP_DMA, GFP_KERNEL, GFP_NORETRY
from realalloc.lease import (
    abandon_handle,
    free_handles,
    live_exporter,
    make_context,
    release_handle,
    reopen,
    shut,
    tag_of,
)
from realalloc.lease.blocks import VERB_POOL, VERB_POOL_CLAIM, VERB_POOL_RESERVE
from realalloc.lease.shelf import put_up_shelf, take_down_shelf
from realalloc.mm import layout
from realalloc.mm.jit import JIT
from realalloc.mm.mempool_life import pool_create, pool_destroy, pool_fill, pool_refill, pool_resize, validate_pool
from realalloc.mm.mempool_wait import pool_serve
from realalloc.sizes import as_int
from realalloc.soundness import check
from realalloc.waiting import WaitingPool
from realalloc.wakers import Waker

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.cache import KmemCache


class MemPool(WaitingPool[Any]):
    """A pool of equal memoryviews, or instances of a struct; make it with :meth:`realalloc.Arena.mempool`.

    Guarantee: whoever waits gets an element when users return theirs, in order of arrival: ``curr_nr`` plus the elements out
    never falls below ``min_nr``. An element goes back to its pool when the last view of it is gone.
    """

    def __init__(
        self,
        arena: Arena,
        min_nr: int,
        *,
        size: int | None,
        cache: KmemCache | None,
        pages: int | None,
        order: int,
        gfp: int,
        kind: Struct | None = None,
        wipe: int = 0,
        watermarks: tuple[int, int] = (0, 0),
        track: bool = False,
        own: KmemCache | None = None,
        ready: bool = False,
        budget: Budget | None = None,
    ) -> None:
        """Make the pool and fill its reserve."""
        words = arena.words
        zone = layout.ZONE_DMA if gfp & GFP_DMA else layout.ZONE_NORMAL
        if zone >= words[layout.H_NR_ZONES]:
            raise ValueError("GFP_DMA and locked need an arena with a locked zone: Arena(..., lock=bytes)")
        self._cache = cache
        self._own = own
        if cache is not None:
            if cache._arena is not arena:
                raise ValueError("the cache belongs to another arena")
            backing, argument, nbytes = layout.BACKING_CACHE, cache.at, cache.size
        elif size is not None:
            nbytes = as_int(size, "size", 1)
            backing, argument = layout.BACKING_KMALLOC, nbytes
        else:
            page_order = as_int(pages, "order", 0, int(words[layout.H_MAX_ORDER]))
            backing, argument, nbytes = layout.BACKING_PAGES, page_order, layout.PAGE_BYTES << page_order
        self._arena = arena
        self._budget = budget
        self.element_bytes = nbytes
        self._gfp = gfp & GFP_DMA
        self._kind = kind
        self._tracker = Tracker() if track else None
        self._wakers: dict[Any, Waker] = {}
        self._check_count(min_nr)
        p = arena._pressed(lambda: pool_create(words, min_nr, backing, argument, nbytes, order, zone), min_nr * 8)
        if p < 0:
            raise arena._out_of_memory(f"the descriptor of a pool of {min_nr} elements", GFP_KERNEL)
        self._at: int | None = p
        words[p + layout.P_WIPE] = wipe
        words[p + layout.P_REFILL_LOW], words[p + layout.P_REFILL_HIGH] = watermarks
        filled, refusal = False, None
        try:
            if budget is not None:
                budget._attach(p + layout.P_BUDGET)
            filled = self._fill() == layout.OK
            refusal = None if filled or budget is None else budget._refusal(nbytes)
        finally:  # a constructor may raise, and Ctrl-C may: the pool that nobody will have goes back
            if not filled:
                pool_destroy(words, p, 0, self._surplus())
                self._at = None
        if not filled:
            what = f"mempool({min_nr}) of {nbytes} bytes: the reserve cannot be filled"
            mapped = backing == layout.BACKING_KMALLOC and nbytes > layout.PAGE_BYTES << int(words[layout.H_MAX_ORDER])
            raise arena._out_of_memory(what, gfp, 0, refusal, mapped=mapped)
        self._tag = tag_of(VERB_POOL, p)
        self._context = make_context(arena._gate, p, nbytes, self._tag)
        plain = kind is None and not track
        self.alloc: Callable[..., Any] = self._alloc
        self.alloc_preallocated: Callable[[], Any] = self._alloc_preallocated
        self._poll: Callable[[], Any] = self._poll_slow  # alloc_preallocated without an exception, which costs 40 us
        if plain:
            self._poll = arena._leases.bind_pool_reserve(self._context, self._poll_slow)
            self.alloc = arena._leases.bind_pool(self._context, self._alloc_slow)
            self.alloc_preallocated = arena._leases.bind_pool_reserve(self._context, self._alloc_preallocated)
        if kind is not None or track:
            shut(self._context)
        self._ready = ready and JIT
        if self._ready:
            self._build_views()

    def _build_views(self) -> None:
        """Have a view built for each element of the reserve: take all, and let them come back."""
        words, p = self._words(), self.at
        put_up_shelf(self._arena.address, p)
        taken = [self._poll() for _ in range(self.curr_nr)]
        del taken
        words[p + layout.P_GETS_RESERVE] = words[p + layout.P_PUTS_RESERVE] = 0  # nobody else knows the pool yet
        words[p + layout.P_LOW] = words[p + layout.P_CURR_NR]

    @staticmethod
    def _surplus() -> Any:
        return np.zeros(1, np.int64)  # of memory nothing is left to the face

    def _check_count(self, count: int) -> None:
        """OutOfMemory for a reserve that is larger than the arena, before products of its size overflow."""
        if count * max(self.element_bytes, layout.WORD_BYTES) > self._arena.size:
            what = f"a reserve of {count} elements of {self.element_bytes} bytes"
            raise self._arena._out_of_memory(what, self._gfp | GFP_KERNEL)

    def _backed(self, kernel: Callable[[], int]) -> int:
        """Call a kernel that asks the backing allocator; shrinkers are asked where it fails, unless it was made to."""
        if self._words()[self.at + layout.P_FAIL_TIMES]:
            return int(kernel())
        return self._arena._pressed(kernel, self.element_bytes, self._gfp)

    def _fill(self) -> int:
        status = self._backed(lambda: pool_fill(self._words(), self.at))
        while status == layout.EAGAIN and self._cache is not None:
            self._cache._construct_slab(GFP_KERNEL)
            status = self._backed(lambda: pool_fill(self._words(), self.at))
        return status

    def _wrap(self, view: memoryview) -> Any:
        if self._tracker is not None:
            self._tracker.note(view)
        return view if self._kind is None else self._kind.over(view)

    def _lease(self, verb: int, gfp: int) -> Any:
        _words = self._words()  # keeps the range mapped if another thread closes the arena now
        arena = self._arena
        found = arena._leases.attempt(arena.address, verb, self.at, gfp, self.element_bytes, self._tag)
        return self._wrap(found) if type(found) is memoryview else found

    def _attempt(self, flags: int) -> Any:
        found = self._lease(VERB_POOL, flags)
        for _ in range(CONSTRUCT_TRIES):
            if type(found) is not int or found != layout.EAGAIN or self._cache is None:
                break
            try:
                self._cache._construct_slab(flags)
            except OutOfMemory:  # not the last word: the caller may wait for an element
                return None
            found = self._lease(VERB_POOL, flags)
        return None if type(found) is int else found

    def _claim(self, request: int) -> Any:
        found = self._lease(VERB_POOL_CLAIM, request)
        if type(found) is int:
            self._words()
            raise CorruptionError(f"{self!r}: a granted element is not there")
        return found

    def _serve(self, words: Any, p: int, flags: int) -> None:
        status = int(pool_serve(words, p))
        for _ in range(CONSTRUCT_TRIES):
            if status != layout.EAGAIN or self._cache is None:
                break
            try:
                self._cache._construct_slab(flags)
            except OutOfMemory:
                break
            status = int(pool_serve(words, p))

    def _press(self, words: Any, p: int, request: int, flags: int) -> int:
        """Ask shrinkers for those who wait, one round as for any request with a reserve behind it; OK if this one has all."""
        if words[p + layout.P_FAIL_TIMES] or (self.is_bounded and not words[p + layout.P_MISSING]):
            return layout.EBUSY  # no memory would help

        def serve() -> int | None:
            self._serve(self._words(), p, flags)
            return layout.OK if self._granted(words, request) else None

        flags |= GFP_NORETRY | self._gfp  # kernel: mempool_alloc
        found = self._arena._shrinkers.relieve(words, serve, flags, self.element_bytes)
        return layout.EBUSY if found is None else found

    def _undo(self, made: list[Any]) -> None:
        made.clear()  # the last view gives an element back

    def _take(self, gfp: int, timeout: float | None) -> Any:
        return self.alloc() if gfp == GFP_KERNEL and timeout is None else self._alloc(gfp, timeout)

    def _give(self, element: Any) -> None:
        if self._at is not None and not self._arena.closed:
            self.free(element)
        elif isinstance(element, memoryview):
            element.release()

    def _who(self) -> str:
        if self._tracker is not None:
            return self._tracker.summary()
        return f"; {self.stats().outstanding} are out; track=True would tell who has them"

    def _alloc_slow(self, *args: Any, **kwargs: Any) -> Any:
        """Go on after machine code found nothing for a plain call: what it asked need not be asked again."""
        return self._alloc(*args, **kwargs) if args or kwargs else self._wait(1, GFP_KERNEL, None)[0]

    def _poll_slow(self) -> Any:
        found = self._lease(VERB_POOL_RESERVE, 0)
        return None if type(found) is int else found

    def _alloc_preallocated(self) -> Any:
        """Return an element of the reserve; OutOfMemory if it is empty. Never waits, never asks the backing allocator."""
        found = self._lease(VERB_POOL_RESERVE, 0)
        if type(found) is int:
            raise OutOfMemory(f"{self!r}: the reserve is empty{self._who()}")
        return found

    def _live(self, buf: Any) -> Any:
        if isinstance(buf, memoryview):
            self._words()
        return live_exporter(buf, self._arena.address, (VERB_POOL,), "pool.free", self._at or 0)

    def free(self, buf: Any) -> None:
        """Return an element; None is ignored. InvalidFree if it is not a live one of this pool.

        An instance of a struct cannot be taken from who refers to it: freed, it goes back with the last reference.
        """
        if buf is None:
            return
        if self._kind is None:
            release_handle(buf, self._live(buf), self._words())
            return
        view = self._kind.view_of(buf)
        if view is None:
            raise InvalidFree(f"pool.free: not a {self._kind.name} of this pool")
        abandon_handle(self._live(view), self._words())

    def free_bulk(self, bufs: Iterable[Any]) -> None:
        """Return elements; all are checked before the first goes, and none may be named twice."""
        if self._kind is None:
            free_handles(bufs, self._live, self._words(), "free_bulk")
            return
        given = list(bufs)
        if len({id(buf) for buf in given}) != len(given):
            raise InvalidFree("free_bulk: an element is named twice")
        for buf in given:
            view = self._kind.view_of(buf)
            if view is None:
                raise InvalidFree(f"free_bulk: not a {self._kind.name} of this pool")
            self._live(view)
        for buf in given:
            self.free(buf)

    def holders(self) -> list[Holder]:
        """Return who has elements, the longest-held first; ValueError without ``track=True``."""
        if self._tracker is None:
            raise ValueError("holders needs a pool with track=True")
        return self._tracker.holders()

    def resize(self, min_nr: int) -> None:
        """Change ``min_nr``: surplus elements go back now, missing ones are added now, or by later frees.

        OutOfMemory, with nothing changed, if there is no room for the array of elements; BufferError while waiters want, or
        were just granted, more elements than that. A top-up that fails is not an error, as in the kernel.
        """
        count = as_int(min_nr, "min_nr")
        words = self._words()
        self._check_count(count)
        status = self._arena._pressed(lambda: pool_resize(words, self.at, count, self._surplus()), count * 8)
        if status == layout.EBUSY:
            raise BufferError(f"{self!r}: somebody waits for more than {count} elements at once")
        if status != layout.OK:
            raise self._arena._out_of_memory(f"resize of a pool to {count} elements", GFP_KERNEL)
        if self._ready:
            put_up_shelf(self._arena.address, self.at)
        self._fill()

    def refill(self, target: int | None = None) -> int:
        """Bring the reserve up to ``target`` elements (``min_nr``), even while elements are out; return ``curr_nr``.

        What then comes back too many goes to the backing allocator. Short of memory it stops early, without an error.
        """
        wanted = max(1, self.min_nr) if target is None else as_int(target, "target", 0, max(1, self.min_nr))
        while (
            self._backed(lambda: pool_refill(self._words(), self.at, wanted)) == layout.EAGAIN
            and self._cache is not None
        ):
            try:
                self._cache._construct_slab(GFP_KERNEL)
            except OutOfMemory:
                break
        return self.curr_nr

    def validate(self) -> None:
        """Check guarantee, reserve, queue and poison; CorruptionError names what is broken."""
        at = self.at
        check(self._words(), lambda words: validate_pool(words, at))

    def destroy(self, force: bool = False) -> None:
        """Give the reserve back; BufferError, with nothing changed, while elements are out or somebody waits.

        With ``force`` waiters get a ValueError, and elements that are out live on: they go to the backing allocator when
        their last view dies.
        """
        words = self._words()
        p = self.at
        gate = shut(self._context)
        if force:
            self._at = None
        if pool_destroy(words, p, int(force), self._surplus()) != layout.OK:
            reopen(self._context, gate)
            stats = self.stats()
            raise BufferError(f"the pool still has {stats.outstanding} elements out and {stats.waiters} waiters")
        self._at = None
        take_down_shelf(self._arena.address, p)
        if self._own is not None:
            with contextlib.suppress(BufferError):  # by force: the cache stays with the elements that are out
                self._own.destroy()

    def __repr__(self) -> str:
        """Show use and limit."""
        if self._at is None or self._arena.closed:
            return "<MemPool gone>"
        stats = self.stats()
        return (
            f"<MemPool {stats.curr_nr}/{stats.min_nr} of {self.element_bytes} bytes in reserve, "
            f"{stats.outstanding} out, {stats.waiters} waiting>"
        )
