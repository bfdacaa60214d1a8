"""Memory that goes back: lazy areas and empty slabs to the buddy, free pages to the operating system.

``reclaim_locked`` is what an allocation does before it says ENOMEM. Trimming drops the memory of free pages in runs, a
bounded stretch for each time the lock is held, and finally lowers the frontier over free blocks that hold no memory, with
the memmap behind it: an arena in which everything was freed is again what it was at the start.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.bits import ctz
from realalloc.mm.buddy import free_pages_total, list_remove, reach_page_block
from realalloc.mm.commit import drop_locked, small_dirty
from realalloc.mm.drain import cached_objects_locked, drain_cache_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmem_cache import shrink_all_locked
from realalloc.mm.layout import (
    DECAY,
    GFP_NORETRY_BIT,
    H_CACHES,
    H_MAX_ORDER,
    H_MEMMAP,
    H_NR_RECORDS,
    H_VM_LAZY_PAGES,
    KIND_FREE,
    PAGE_SHIFT,
    PAGE_WORDS,
    PRESSURE,
    PSI_RECLAIMS,
    SHEAF_BLOCKS,
    SHEAF_OWNERS,
    Y_SMALL,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.lazy import purge_lazy_locked
from realalloc.mm.pages import count_resident, info_at, kind_of, order_at, page_at, pages_at, zone_at
from realalloc.mm.pcp import drain_blocks_locked
from realalloc.mm.pressure import account_stall_locked
from realalloc.mm.prim import MADV_DONTNEED, madvise, monotonic_ns
from realalloc.mm.records import release_records_locked
from realalloc.mm.threads import let_in_locked, lock_out_locked
from realalloc.mm.watermark import has_marks, may_reclaim

TRIM_SPAN_PAGES = 1 << 15  # 128 MiB looked at for each time the lock is held


@entry
def drain_locked(words: Words) -> int:
    """Take back what threads keep: objects to their slabs, blocks and records to the buddy; return how many there were."""
    if words[H_NR_RECORDS] == 0:
        return 0
    lock_out_locked(words)
    count = drain_blocks_locked(words)
    for index in range(1, SHEAF_BLOCKS):
        c = words[SHEAF_OWNERS + index]
        if c != 0:
            count += cached_objects_locked(words, index)
            drain_cache_locked(words, c)
    count += release_records_locked(words)
    let_in_locked(words)
    return count


@entry
def reclaim_locked(words: Words) -> int:
    """Take back what is only kept for speed: sheaves, lazy areas, empty slabs; return 0 if there was nothing."""
    begin = monotonic_ns()
    kept = drain_locked(words)
    kept += (purge_lazy_locked(words, 0) if words[H_VM_LAZY_PAGES] > 0 else 0) + shrink_all_locked(words)
    words[PRESSURE + PSI_RECLAIMS] += 1
    account_stall_locked(words, monotonic_ns() - begin, 1)
    return kept


@entry
def try_again_locked(words: Words, zone: int, gfp: int, best: int) -> int:
    """Take memory back for a request that was refused; return the new ``best``, 0 if it is not worth asking again.

    ``best`` is 0 the first time, then what this returned: further rounds need pages that were not free before, and none comes
    after the first with GFP_NORETRY, or where there are no marks (kernel: should_reclaim_retry).
    """
    if may_reclaim(words, gfp) == 0 or (best != 0 and (gfp & GFP_NORETRY_BIT or has_marks(words) == 0)):
        return 0
    kept = reclaim_locked(words)
    free = free_pages_total(words, zone) + 1
    if kept == 0 or free <= best:
        return 0
    return free


@entry
def reclaim(words: Words) -> int:
    """Take back sheaves, lazy areas and empty slabs, dropping the memory of the areas; return 0 if there was nothing."""
    lock(words)
    pages = drain_locked(words)
    pages += purge_lazy_locked(words, 1) + shrink_all_locked(words)
    unlock(words)
    return pages


@entry
def trim_span(words: Words, zone: int, pfn: int, out: Words) -> int:
    """Give back the memory of free pages behind ``pfn``, a bounded stretch of them. ``out[0]`` counts pages given back;
    return where to go on, 0 at the end. The lock is not held between two stretches.
    """
    lock(words)
    end = words[zone_at(zone) + Z_FRONTIER_PFN]
    pfn = max(pfn, words[zone_at(zone) + Z_START_PFN])
    stop = min(end, pfn + TRIM_SPAN_PAGES)
    while pfn < stop:
        begin = pfn
        while pfn < stop and kind_of(words, pfn) == KIND_FREE:
            pfn += 1 << order_at(words, pfn)
        if pfn > begin:
            before = small_dirty(words, begin, pfn)
            out[0] += drop_locked(words, begin, pfn - begin, 1)
            words[DECAY + Y_SMALL] += (small_dirty(words, begin, pfn) - before) if zone == ZONE_NORMAL else 0
        else:  # the stretch may begin inside a block, whose pages are stepped over one by one
            pfn += pages_at(words, pfn)
    result = pfn if pfn < end else 0
    unlock(words)
    return result


@kernel
def _last_free_block(words: Words, zone: int) -> int:
    """Return the free block without memory that ends at the frontier, 0 if there is none."""
    z = zone_at(zone)
    end = words[z + Z_FRONTIER_PFN]
    for order in range(min(words[H_MAX_ORDER], ctz(end)), -1, -1):
        pfn = end - (1 << order)
        if pfn >= words[z + Z_START_PFN] and kind_of(words, pfn) == KIND_FREE and order_at(words, pfn) == order:
            return pfn if count_resident(words, pfn, end) == 0 else 0
    return 0


@kernel
def _drop(words: Words, begin: int, end: int) -> None:
    """Give back the whole pages of a table between two words; its end is one of a page."""
    begin = (begin + PAGE_WORDS - 1) // PAGE_WORDS
    if begin < end // PAGE_WORDS:
        madvise(address_of(words) + (begin << PAGE_SHIFT), (end // PAGE_WORDS - begin) << PAGE_SHIFT, MADV_DONTNEED)


@entry
def retreat(words: Words, zone: int) -> int:
    """Lower a zone's frontier over free blocks that hold no memory, by page blocks where pages are grouped, and drop what
    is known of the pages behind it; return its pfn.

    Only for the last zone: what is known of pages behind its frontier describes nothing.
    """
    lock(words)
    z = zone_at(zone)
    pfn = _last_free_block(words, zone)
    while pfn != 0:
        order = order_at(words, pfn)
        list_remove(words, zone, pfn, order)
        words[z + Z_FREE_PAGES] -= 1 << order
        words[z + Z_FRONTIER_PFN] = pfn
        pfn = _last_free_block(words, zone)
    reach_page_block(words, zone)
    frontier = words[z + Z_FRONTIER_PFN]
    _drop(words, info_at(frontier), words[H_MEMMAP])
    _drop(words, page_at(words, frontier), words[H_CACHES])
    unlock(words)
    return frontier
