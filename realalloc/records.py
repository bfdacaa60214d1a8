"""What an arena, a cache or a pool tells of itself at one moment: immutable records of plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class Record:
    """Shared by the records: ``as_dict``."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class Stats(Record):
    """Where an arena's memory is, in bytes unless named otherwise."""

    size: int
    limit: int  # bytes of pages that may hold memory at one time
    metadata: int  # header, tables and memmap, reserved
    committed: int  # pages that may hold memory, metadata not counted
    peak_committed: int
    allocated: int  # pages in slabs, blocks and areas
    peak_allocated: int
    free: int
    largest_free: int  # largest block that one request for pages could get now
    unusable_index: (
        int  # thousandths of the ordinary zone's free pages that are in no block of 2 MiB (or the largest order)
    )
    slab: int
    slab_used: int  # objects in use
    vmalloc: int
    vmalloc_lazy: int  # freed areas that are kept mapped
    cached: int  # freed objects and blocks that threads keep for themselves
    empty_slabs: int  # slabs without objects, kept
    free_resident: int  # free pages that may hold memory:  committed = allocated + free_resident
    decayed: int  # went back to the system by decay so far
    min_free: int  # watermarks of the ordinary zone, 0 without: what an ordinary request leaves,
    low_free: int  # below which kswapd is woken,
    high_free: int  # to bring free pages up to this
    kswapd_wakes: int  # how often that was
    live_objects: int
    live_blocks: int  # page blocks and large kmalloc
    live_areas: int
    leases: int  # blocks that Python holds
    lingering: int  # of them, those whose handle was freed while other views live
    page_allocs: int
    page_frees: int


@dataclass(frozen=True, slots=True)
class Residency(Record):
    """What the system says is resident, in bytes, beside the books: pages + window + untouched = committed + stray."""

    metadata: int
    pages: int  # of the zones
    window: int  # of vmalloc's areas
    committed: int  # may be resident, by the books
    untouched: int  # committed, but not resident: nobody has written there
    stray: int  # resident where the books have nothing: 0, unless somebody wrote into freed memory


@dataclass(frozen=True, slots=True)
class CacheStats(Record):
    """Objects and slabs of one cache."""

    name: str
    object_bytes: int
    stride_bytes: int
    align_bytes: int
    order: int
    objects_per_slab: int
    active_objects: int
    total_objects: int
    slabs: int
    partial_slabs: int
    empty_slabs: int
    allocs: int
    frees: int
    slab_allocs: int
    slab_frees: int
    order_fallbacks: int


@dataclass(frozen=True, slots=True)
class PoolStats(Record):
    """Where a pool's elements came from and went to."""

    min_nr: int
    curr_nr: int
    element_bytes: int
    outstanding: int
    waiters: int
    gets_reserve: int
    gets_alloc: int
    puts_reserve: int
    puts_free: int
    failures: int
    low: int  # fewest elements the reserve held since it was made or resized
    gets_wait: int  # of gets_reserve, those that waited
    refills: int  # elements that the backing allocator gave to the reserve, the first ones included
    peak_waiters: int
    injected_failures: int
    wait_p50_ns: int  # of requests that waited and were served, within a fifth
    wait_p99_ns: int
    wait_max_ns: int
    stall_some: float  # share of the pool's life in which at least one request waited
    stall_full: float  # in which no fewer requests waited than elements were out
