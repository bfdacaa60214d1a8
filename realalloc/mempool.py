"""Mempools for Python: a reserve of elements that is there before it is needed.

``MemPool`` stands on kmalloc, a cache or pages; its state is words in the arena and ``alloc`` without arguments is machine
code. ``ObjectPool`` is the same contract over a user's own ``alloc_fn`` and ``free_fn``, for any Python object.
Order: the reserve first, then the backing allocator, then wait; ``order="alloc-first"`` is the kernel's.
Waiting sleeps on a futex word that every returned element moves, without the GIL, in slices of at most five seconds, as
in the kernel: so no wake-up is lost, and Ctrl-C and timeouts are seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from realalloc import views
from realalloc.errors import CorruptionError, InvalidFree, OutOfMemory, describe_broken
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_DMA, GFP_KERNEL, gfp_names
from realalloc.lease import exporter_of, make_context, release_handle, shut, tag_of
from realalloc.lease.blocks import OWNER_SHIFT, TAG_LINGERS, VERB_MASK, VERB_POOL, VERB_POOL_RESERVE
from realalloc.memory import futex_wait
from realalloc.mm import layout
from realalloc.mm.mempool import (
    pool_create,
    pool_destroy,
    pool_fill,
    pool_resize,
    pool_wait_begin,
    pool_wait_end,
    validate_pool,
)
from realalloc.objectpool import ObjectPool
from realalloc.sizes import as_gfp, as_int, as_timeout
from realalloc.views import PoolStats

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.cache import KmemCache

ORDERS = {"reserve-first": 0, "alloc-first": 1}
SLICE_SECONDS = (
    5.0  # the longest sleep before the backing allocator is asked again (kernel: io_schedule_timeout(5 * HZ))
)


def make_pool(
    arena: Arena,
    min_nr: int,
    *,
    size: int | None = None,
    cache: KmemCache | None = None,
    pages: int | None = None,
    order: int | str = "reserve-first",
    alloc_fn: Callable[[Any, int], Any] | None = None,
    free_fn: Callable[[Any], object] | None = None,
    pool_data: Any = None,
    gfp: int = 0,
) -> MemPool | ObjectPool:
    """Make a pool of ``min_nr`` reserved elements, all of them allocated (and prefaulted) now.

    Exactly one backing: ``size=bytes`` (kmalloc), ``cache=``, ``order=n`` with an integer (blocks of ``4096 << n`` bytes,
    also ``pages=n``), or ``alloc_fn=`` with ``free_fn=``. ``order="alloc-first"`` asks the backing before the reserve.
    ``gfp=GFP_DMA`` takes elements from the locked zone. Raises OutOfMemory, with nothing kept, if the reserve cannot be
    filled.
    """
    if not isinstance(order, str):
        if pages is not None:
            raise ValueError("give order or pages, not both")
        order, pages = "reserve-first", as_int(order, "order")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, or an integer, not {order!r}")
    given = [
        name
        for name, value in (("size", size), ("cache", cache), ("order", pages), ("alloc_fn", alloc_fn))
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(f"a pool needs exactly one of size, cache, order, alloc_fn; got {', '.join(given) or 'none'}")
    count = as_int(min_nr, "min_nr")
    if alloc_fn is not None:
        if free_fn is None:
            raise ValueError("alloc_fn needs free_fn")
        return ObjectPool(count, alloc_fn, free_fn, pool_data, alloc_first=order == "alloc-first")
    if free_fn is not None:
        raise ValueError("free_fn needs alloc_fn")
    return MemPool(arena, count, size=size, cache=cache, pages=pages, alloc_first=ORDERS[order], gfp=as_gfp(gfp))


class MemPool:
    """A pool of equal memoryviews; make it with :meth:`realalloc.Arena.mempool`.

    Guarantee: whoever waits gets an element when users return theirs: ``curr_nr`` plus the elements out never falls
    below ``min_nr``. An element goes back to its pool when the last view of it is gone.
    """

    def __init__(
        self,
        arena: Arena,
        min_nr: int,
        *,
        size: int | None,
        cache: KmemCache | None,
        pages: int | None,
        alloc_first: int,
        gfp: int,
    ) -> None:
        """Make the pool and fill its reserve."""
        words = arena.words
        zone = layout.ZONE_DMA if gfp & GFP_DMA else layout.ZONE_NORMAL
        if zone >= words[layout.H_NR_ZONES]:
            raise ValueError("GFP_DMA needs an arena with a locked zone: Arena(..., lock=bytes)")
        self._cache = cache
        if cache is not None:
            if cache._arena is not arena:
                raise ValueError("the cache belongs to another arena")
            backing, argument, nbytes = layout.BACKING_CACHE, cache.at, cache.size
        elif size is not None:
            nbytes = as_int(size, "size", 1)
            backing, argument = layout.BACKING_KMALLOC, nbytes
        else:
            order = as_int(pages, "order", 0, int(words[layout.H_MAX_ORDER]))
            backing, argument, nbytes = layout.BACKING_PAGES, order, layout.PAGE_BYTES << order
        self._arena = arena
        self.element_bytes = nbytes
        self._gfp = gfp & GFP_DMA
        self._check_count(min_nr)
        p = int(pool_create(words, min_nr, backing, argument, nbytes, alloc_first, zone))
        if p < 0:
            raise arena._out_of_memory(f"the descriptor of a pool of {min_nr} elements", GFP_KERNEL)
        self._at: int | None = p
        filled = False
        try:
            filled = self._fill() == layout.OK
        finally:  # a constructor may raise, and Ctrl-C may: the pool that nobody will have goes back
            if not filled:
                pool_destroy(words, p)
                self._at = None
        if not filled:
            raise arena._out_of_memory(f"mempool({min_nr}) of {nbytes} bytes: the reserve cannot be filled", gfp)
        self._tag = tag_of(VERB_POOL, p)
        self._context = make_context(arena._gate, p, nbytes, self._tag)
        self.alloc: Callable[..., memoryview] = arena._leases.bind_pool(self._context, self._alloc)

    def _check_count(self, count: int) -> None:
        """OutOfMemory for a reserve that is larger than the arena, before products of its size overflow."""
        if count * max(self.element_bytes, layout.WORD_BYTES) > self._arena.size:
            what = f"a reserve of {count} elements of {self.element_bytes} bytes"
            raise self._arena._out_of_memory(what, self._gfp | GFP_KERNEL)

    @property
    def at(self) -> int:
        """Word index of the pool's descriptor: what the jit verbs take."""
        if self._at is None:
            raise ValueError("the pool was destroyed")
        return self._at

    def _words(self) -> Any:
        """Return the arena's words; ArenaClosed or ValueError if arena or pool are gone."""
        words = self._arena.words
        _ = self.at
        return words

    def _fill(self) -> int:
        status = int(pool_fill(self._words(), self.at))
        while status == layout.EAGAIN and self._cache is not None:
            self._cache._construct_slab(GFP_KERNEL)
            status = int(pool_fill(self._words(), self.at))
        return status

    def _attempt(self, verb: int, gfp: int) -> Any:
        _words = self._words()  # keeps the range mapped if another thread closes the arena now
        arena = self._arena
        found = arena._leases.attempt(arena.address, verb, self.at, gfp, self.element_bytes, self._tag)
        if found == layout.EAGAIN and self._cache is not None:
            try:
                self._cache._construct_slab(gfp)
            except OutOfMemory:  # not the last word: the caller may wait for an element
                return layout.ENOMEM
            found = arena._leases.attempt(arena.address, verb, self.at, gfp, self.element_bytes, self._tag)
        return found

    def _alloc(self, gfp: int = GFP_KERNEL, timeout: float | None = None) -> memoryview:
        """Return an element; wait for one if the flags allow it.

        ``timeout`` in seconds, None for ever, 0 not at all. TimeoutError when it runs out; OutOfMemory at once where the
        flags forbid waiting (GFP_NOWAIT, GFP_ATOMIC).
        """
        flags = as_gfp(gfp)
        seconds = as_timeout(timeout)
        found = self._attempt(VERB_POOL, flags)
        if type(found) is memoryview:
            return found
        if not flags & GFP_DIRECT_RECLAIM:
            raise OutOfMemory(f"{self!r}: empty, and {gfp_names(flags)} may not wait")
        return self._wait(flags, seconds)

    def _wait(self, flags: int, seconds: float | None) -> memoryview:
        words = self._words()
        address = self._arena.address + (self.at + layout.P_SEQ) * layout.WORD_BYTES
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            sequence = int(pool_wait_begin(words, self.at))
            try:
                found = self._attempt(VERB_POOL, flags)
                if type(found) is memoryview:
                    return found
                left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    raise TimeoutError(f"{self!r}: no element came back within {seconds} s")
                futex_wait(address, sequence, left)
            finally:
                pool_wait_end(words, self.at)

    def alloc_preallocated(self) -> memoryview:
        """Return an element of the reserve; OutOfMemory if it is empty. Never waits, never asks the backing allocator."""
        found = self._attempt(VERB_POOL_RESERVE, 0)
        if type(found) is memoryview:
            return found
        raise OutOfMemory(f"{self!r}: the reserve is empty")

    def alloc_bulk(self, n: int, gfp: int = GFP_KERNEL, timeout: float | None = None) -> list[memoryview]:
        """Return ``n`` elements, all or none. ``n`` above ``min_nr`` could wait for ever and is a ValueError."""
        count = as_int(n, "n")
        if count > max(1, self.min_nr):
            raise ValueError(f"alloc_bulk({count}) from a pool with min_nr={self.min_nr} could never be certain")
        limit = as_timeout(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        made: list[memoryview] = []
        for _ in range(count):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            made.append(self._alloc(gfp, left))
        return made

    def _live(self, buf: Any) -> Any:
        if not isinstance(buf, memoryview):
            raise TypeError(f"free takes the memoryview that was handed out, not {type(buf).__name__}")
        self._words()
        exporter = exporter_of(buf)
        if exporter is None or exporter.base != self._arena.address:
            raise InvalidFree("pool.free: not a live buffer of this arena (freed already, or foreign)")
        if exporter.tag & VERB_MASK != VERB_POOL or exporter.tag >> OWNER_SHIFT != self.at:
            raise InvalidFree("pool.free: the buffer belongs to another pool or allocator")
        whole = buf.format == "B" and buf.ndim == 1 and buf.contiguous and buf.nbytes == exporter.length
        if not whole or exporter.tag & TAG_LINGERS:
            raise InvalidFree("pool.free: a slice or a view of a freed element, not the element")
        return exporter

    def free(self, buf: memoryview | None) -> None:
        """Return an element; None is ignored. InvalidFree if it is not a live one of this pool."""
        if buf is not None:
            release_handle(buf, self._live(buf), self._words())

    def free_bulk(self, bufs: Iterable[memoryview]) -> None:
        """Return elements; all are checked before the first goes, and none may be named twice."""
        given = list(bufs)
        if len({id(buf) for buf in given}) != len(given):
            raise InvalidFree("free_bulk: an element is named twice")
        for buf in given:
            self._live(buf)
        for buf in given:
            self.free(buf)

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

    def resize(self, min_nr: int) -> None:
        """Change ``min_nr``: surplus elements go back now, missing ones are added now, or by later frees.

        OutOfMemory, with nothing changed, if there is no room for the array of elements. A top-up that fails is not an
        error, as in the kernel: frees complete it.
        """
        count = as_int(min_nr, "min_nr")
        words = self._words()
        self._check_count(count)
        if pool_resize(words, self.at, count) != layout.OK:
            raise self._arena._out_of_memory(f"resize of a pool to {count} elements", GFP_KERNEL)
        self._fill()

    def stats(self) -> PoolStats:
        """Return where elements came from and went to."""
        return views.pool_stats(self._words(), self.at)

    def validate(self) -> None:
        """Check guarantee and reserve; CorruptionError names what is broken."""
        status = int(validate_pool(self._words(), self.at))
        if status != layout.OK:
            raise CorruptionError(describe_broken(status))

    def destroy(self) -> None:
        """Give the reserve back; BufferError, with nothing changed, while elements are out or somebody waits."""
        words = self._words()
        if pool_destroy(words, self.at) != layout.OK:
            stats = self.stats()
            raise BufferError(f"the pool still has {stats.outstanding} elements out and {stats.waiters} waiters")
        shut(self._context)
        self._at = None

    def __repr__(self) -> str:
        """Show use and limit."""
        if self._at is None or self._arena.closed:
            return "<MemPool gone>"
        stats = self.stats()
        return (
            f"<MemPool {stats.curr_nr}/{stats.min_nr} of {self.element_bytes} bytes in reserve, "
            f"{stats.outstanding} out, {stats.waiters} waiting>"
        )
