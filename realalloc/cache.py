"""kmem_cache for Python: objects of one size, in constructed state.

``alloc`` without arguments is machine code; this file serves everything else. A constructor runs once for each object when
a slab is made, on a lease of that object, and the state it leaves survives free and alloc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from realalloc import views
from realalloc.budget import check_budget
from realalloc.errors import OutOfMemory
from realalloc.gfp import GFP_DIRECT_RECLAIM, GFP_DMA, GFP_HIGH, GFP_KERNEL, GFP_NOFAIL, GFP_ZERO
from realalloc.lease import free_handles, live_exporter, make_context, release_handle, shut, tag_of
from realalloc.lease.blocks import VERB_CACHE, VERB_CONSTRUCT
from realalloc.mm import layout
from realalloc.mm.kmem_cache import (
    cache_create,
    cache_destroy,
    cache_drain,
    cache_geometry,
    cache_shrink,
    construct_begin,
    construct_fail,
    next_live_object,
    validate_cache,
)
from realalloc.mm.nofail import ASK_OBJECT, could_serve
from realalloc.mm.reclaim import reclaim
from realalloc.records import CacheStats
from realalloc.shrinker import insist
from realalloc.sizes import as_alignment, as_gfp, as_int
from realalloc.soundness import check

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.budget import Budget

CONSTRUCT_TRIES = 20  # other threads may take what was constructed, sheaf by sheaf
NAMED_OBJECTS = 8  # how many live objects a refusal to destroy names


class KmemCache:
    """Objects of ``size`` bytes at multiples of ``align`` (a power of two, at least 8).

    ``ctor(view)`` is called once for each object when its slab is made; users return objects in constructed state.
    ``gfp=GFP_DMA`` puts the cache into the locked zone. ``budget`` pays for its slabs, whole ones, while they exist.
    """

    def __init__(
        self,
        arena: Arena,
        name: str,
        size: int,
        *,
        align: int = 8,
        ctor: Callable[[memoryview], object] | None = None,
        gfp: int = 0,
        budget: Budget | None = None,
    ) -> None:
        """Create the cache; ValueError for a bad or used name, a bad size or alignment; nothing is allocated yet."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        raw = name.encode()
        if not raw or len(raw) > layout.CACHE_NAME_BYTES or any(ch.isspace() or ch == "\0" for ch in name):
            raise ValueError(
                f"a cache needs a name of 1 to {layout.CACHE_NAME_BYTES} bytes without spaces, not {name!r}"
            )
        if ctor is not None and not callable(ctor):
            raise TypeError("ctor must be callable")
        check_budget(arena, budget)
        words = arena.words
        self.name = name
        self.size = as_int(size, "size", 1)
        self.align = max(as_alignment(align, "align"), layout.WORD_BYTES)
        if self.align > layout.PAGE_BYTES:
            raise ValueError(f"align must be at most a page, not {align}")
        if name in views.cache_names(words):
            raise ValueError(f"a cache named {name!r} exists")
        zone = layout.ZONE_DMA if as_gfp(gfp) & GFP_DMA else layout.ZONE_NORMAL
        if zone >= words[layout.H_NR_ZONES]:
            raise ValueError("GFP_DMA needs an arena with a locked zone: Arena(..., lock=bytes)")
        max_order = int(words[layout.H_MAX_ORDER])
        largest = layout.PAGE_BYTES << max_order
        if self.size > largest:
            raise ValueError(f"size must be at most {largest}, the largest block of this arena, not {self.size}")
        stride, order = cache_geometry(self.size, self.align, max_order, layout.slab_min_objects())
        flags = layout.CF_CTOR if ctor is not None else 0
        c = int(cache_create(words, self.size, self.align, stride, order, flags, zone))
        if c < 0:
            raise ValueError(f"the arena's table of {int(words[layout.H_MAX_CACHES])} caches is full")
        views.set_cache_name(words, c, raw)
        if budget is not None:
            try:
                budget._attach(c + layout.C_BUDGET)
            except BaseException:
                cache_destroy(words, c)
                raise
        self._arena = arena
        self._budget = budget
        self._at: int | None = c
        self._ctor = ctor
        self._tag = tag_of(VERB_CACHE, c)
        self._context = make_context(arena._gate, c, self.size, self._tag)
        self.alloc: Callable[..., memoryview] = arena._leases.bind_cache(self._context, self._alloc)
        self.alloc_bulk: Callable[..., list[memoryview]] = arena._leases.bind_cache_bulk(
            self._context, self._alloc_bulk
        )

    @property
    def at(self) -> int:
        """Word index of the cache's descriptor: what the jit verbs take."""
        if self._at is None:
            raise ValueError(f"cache {self.name!r} was destroyed")
        return self._at

    def _words(self) -> Any:
        """Return the arena's words; ArenaClosed or ValueError if arena or cache are gone."""
        words = self._arena.words
        _ = self.at
        return words

    def _alloc(self, gfp: int = GFP_KERNEL) -> memoryview:
        flags = as_gfp(gfp)
        words = self._words()
        if flags & GFP_NOFAIL:
            return self._insist(flags & ~GFP_NOFAIL)
        if flags & GFP_ZERO and self._ctor is not None:
            raise ValueError("GFP_ZERO would destroy the constructed state of this cache's objects")
        arena = self._arena
        found = self._pressed(flags)
        for _ in range(CONSTRUCT_TRIES):
            if found != layout.EAGAIN:
                break
            page = self._construct_slab(flags)
            found = self._pressed(flags)
            if words[page] & layout.PAGE_CONSTRUCTING:
                break  # somebody keeps a view: it was not published
        if type(found) is memoryview:
            return found
        if found == layout.EAGAIN:
            raise RuntimeError(f"the constructor of cache {self.name!r} keeps views of the objects it made")
        raise arena._out_of_memory(f"alloc from cache {self.name!r} ({self.size} bytes)", flags, 0, self._refusal())

    def _insist(self, flags: int) -> memoryview:
        """Allocate, waiting for memory (GFP_NOFAIL); OutOfMemory where an empty arena, or the budget, could not serve it."""

        def attempt() -> memoryview | None:
            try:
                return self._alloc(flags | GFP_HIGH)
            except OutOfMemory:
                return None

        try:
            return self._alloc(flags)
        except OutOfMemory:
            slab = layout.PAGE_BYTES << int(self._words()[self.at + layout.C_MIN_ORDER])
            possible = could_serve(self._words(), ASK_OBJECT, self.at, flags | GFP_HIGH) == 1
            if not possible or (self._budget is not None and not self._budget._could_fit(slab)):
                raise
            found = insist(attempt)
            if found is None:
                raise
        return found

    def _refusal(self) -> str | None:
        """Say why the budget would refuse one more slab; None if it would not, or if there is none."""
        order = int(self._words()[self.at + layout.C_MIN_ORDER])
        return None if self._budget is None else self._budget._refusal(layout.PAGE_BYTES << order)

    def _attempt(self, flags: int) -> Any:
        return self._arena._leases.attempt(self._arena.address, VERB_CACHE, self.at, flags, self.size, self._tag)

    def _pressed(self, flags: int) -> Any:
        """Return an object or a status; where memory is short, shrinkers have been asked."""
        found = self._attempt(flags)
        if found == layout.ENOMEM and self._arena._shrinkers:
            more = self._arena._shrinkers.relieve(self._words(), lambda: self._unless_short(flags), flags, self.size)
            return found if more is None else more
        return found

    def _unless_short(self, flags: int) -> Any:
        _words = self._words()  # of an arena that a shrinker may have closed
        found = self._attempt(flags)
        return None if found == layout.ENOMEM else found

    def _slab(self, flags: int) -> int | None:
        words = self._words()
        pfn = int(construct_begin(words, self.at, flags))
        may_reclaim = flags & GFP_DIRECT_RECLAIM or words[layout.ZONES + layout.Z_LOW_PAGES] == 0
        if pfn < 0 and may_reclaim and reclaim(words) > 0:
            pfn = int(construct_begin(words, self.at, flags))
        return pfn if pfn > 0 else None

    def _construct_slab(self, flags: int) -> int:
        """Make a slab and run the constructor on a lease of each object; the last lease to die publishes it. Return the word
        index of what its first page is.
        """
        words = self._words()
        pfn = self._slab(flags)
        if pfn is None and self._arena._shrinkers:
            pfn = self._arena._shrinkers.relieve(words, lambda: self._slab(flags), flags, self.size)
        if pfn is None:
            raise self._arena._out_of_memory(f"a slab for cache {self.name!r}", flags, 0, self._refusal())
        page = layout.INFOS + pfn
        objects = int(words[page]) >> layout.OBJECTS_SHIFT & layout.OBJECTS_MASK
        stride = int(words[self.at + layout.C_STRIDE_BYTES])
        held: list[memoryview] = []
        attempt, base = self._arena._leases.attempt, self._arena.address
        try:
            for k in range(objects):
                offset = (pfn << layout.PAGE_SHIFT) + k * stride
                held.append(attempt(base, VERB_CONSTRUCT, offset, 0, self.size, VERB_CONSTRUCT))
                if self._ctor is not None:
                    self._ctor(held[-1])
        except BaseException:
            construct_fail(words, pfn, objects - len(held))
            held.clear()  # or the traceback would keep them
            raise
        return page

    def _alloc_bulk(self, n: int, gfp: int = GFP_KERNEL) -> list[memoryview]:
        """Allocate ``n`` objects, all or none."""
        count, flags = as_int(n, "n"), as_gfp(gfp)
        if flags & GFP_NOFAIL and count * self.size > self._arena.size:
            flags &= ~GFP_NOFAIL  # that can never be
        return [self.alloc(flags) for _ in range(count)]  # an error drops the list, and that frees its leases

    def free(self, obj: memoryview) -> None:
        """Free an object; InvalidFree if it is not a live one of this cache."""
        release_handle(obj, self._live(obj), self._words())

    def free_bulk(self, objs: Iterable[memoryview]) -> None:
        """Free objects; all are checked before the first is freed, and none may be named twice."""
        free_handles(objs, self._live, self._words(), "free_bulk")

    def _live(self, obj: Any) -> Any:
        if isinstance(obj, memoryview):
            self._words()
        return live_exporter(obj, self._arena.address, (VERB_CACHE,), f"cache {self.name!r}: free", self._at or 0)

    def live_objects(self) -> list[int]:
        """Return the offsets of all objects in use."""
        words = self._words()
        cache_drain(words, self.at)
        found = []
        offset = int(next_live_object(words, self.at, 1))
        while offset != 0:
            found.append(offset)
            offset = int(next_live_object(words, self.at, offset + 1))
        return found

    def shrink(self) -> int:
        """Give empty slabs back to the buddy; return their bytes."""
        return int(cache_shrink(self._words(), self.at)) << layout.PAGE_SHIFT

    def validate(self) -> None:
        """Walk every slab; CorruptionError names the broken invariant."""
        at = self.at
        check(self._words(), lambda words: validate_cache(words, at))

    def stats(self) -> CacheStats:
        """Return counts of objects and slabs."""
        return views.cache_stats(self._words(), self.at)

    def destroy(self) -> None:
        """Give everything back; BufferError naming live objects, with nothing changed, while there are any."""
        words = self._words()
        live = self.live_objects()
        if cache_destroy(words, self.at) != layout.OK:
            named = ", ".join(hex(offset) for offset in live[:NAMED_OBJECTS])
            more = f" and {len(live) - NAMED_OBJECTS} more" if len(live) > NAMED_OBJECTS else ""
            raise BufferError(f"cache {self.name!r} still has {len(live)} objects in use: offsets {named}{more}")
        self._at = None
        shut(self._context)

    def __repr__(self) -> str:
        """Show name and use."""
        if self._at is None or self._arena.closed:
            return f"<KmemCache {self.name!r} gone>"
        stats = self.stats()
        return f"<KmemCache {self.name!r} {stats.active_objects}/{stats.total_objects} objects of {self.size} bytes>"
