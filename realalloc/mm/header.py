"""Whether the header of an arena is whole: everything that walkers take for granted, looked at before the first of them.

Where tables are follows from the length of the range, as :mod:`realalloc.mm.geometry` lays it out, and what counts places
of a table is no more than its places. Every other word is checked by who follows it. It is Python: the kernels know no length.
"""

from __future__ import annotations

from realalloc.mm.geometry import plan
from realalloc.mm.jit import Words
from realalloc.mm.layout import (
    CACHE_WORDS,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    H_CACHES,
    H_END_PFN,
    H_FARTHEST,
    H_FREEMAP_CACHE,
    H_HUGEMAP,
    H_INSIDE,
    H_LOCK,
    H_MAGIC,
    H_MAX_CACHES,
    H_MAX_ORDER,
    H_MEMMAP,
    H_META_PAGES,
    H_MOBILITY,
    H_NR_CACHES,
    H_NR_ZONES,
    H_RESMAP,
    H_SHEAF_CACHE,
    H_TOTAL_WORDS,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_START_BYTES,
    H_VMAP,
    H_ZERO,
    HUGE_ORDER,
    MAGIC,
    MAX_MAX_ORDER,
    NULL_RECORD,
    PAGE_SHIFT,
    PAGE_WORDS,
    RECORD_WORDS,
    SHEAF_DESC_WORDS,
    T_INSIDE,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)

_EMPTY = {D_TOP: H_ZERO, D_PUT: H_ZERO, D_PUT_END: H_ZERO, D_BASE: H_ZERO + 1, D_PUT_BASE: H_ZERO + 1}


def _zone(words: Words, zone: int, field: int) -> int:
    return int(words[ZONES + zone * ZONE_WORDS + field])


def _tables_are_in_place(words: Words) -> bool:
    order, end, meta = (int(words[at]) for at in (H_MAX_ORDER, H_END_PFN, H_META_PAGES))
    dma_end = _zone(words, ZONE_NORMAL, Z_START_PFN)
    if not 0 <= order <= MAX_MAX_ORDER or not 0 < meta <= dma_end <= end <= words.size // PAGE_WORDS:
        return False
    made = plan(end << PAGE_SHIFT, order, dma_end - meta << PAGE_SHIFT, None)
    wanted = {
        H_MAGIC: MAGIC,
        H_TOTAL_WORDS: words.size,
        H_CACHES: made.caches,
        H_RESMAP: made.resmap,
        H_HUGEMAP: made.hugemap,
        H_MOBILITY: made.mobility,
        H_MEMMAP: made.memmap,
        H_VMAP: made.vmap,
        H_META_PAGES: made.meta_pages,
        H_MAX_CACHES: made.max_caches,
        H_FREEMAP_CACHE: made.caches,
        H_SHEAF_CACHE: made.caches + CACHE_WORDS,
        H_VM_START_BYTES: made.window_start_bytes,
        H_VM_GRANULES: made.granules,
        H_NR_ZONES: 2 if dma_end > meta else 1,
        H_ZERO: 0,
    }
    zones = [_zone(words, zone, field) for zone in (ZONE_DMA, ZONE_NORMAL) for field in (Z_START_PFN, Z_END_PFN)]
    return (
        made.total_bytes == words.nbytes
        and all(int(words[at]) == value for at, value in wanted.items())
        and zones == [meta, dma_end, dma_end, end]
    )


def _counts_are_within(words: Words) -> bool:
    for zone in (ZONE_DMA, ZONE_NORMAL):
        start, end, frontier = (_zone(words, zone, field) for field in (Z_START_PFN, Z_END_PFN, Z_FRONTIER_PFN))
        order = _zone(words, zone, Z_PAGE_BLOCK_ORDER)
        if not start <= frontier <= end or order not in (0, min(HUGE_ORDER, int(words[H_MAX_ORDER]))):
            return False
    inside = words[THREADS + T_INSIDE : THREADS + THREAD_SLOTS * THREAD_WORDS : THREAD_WORDS]
    return (
        0 < words[H_NR_CACHES] <= words[H_MAX_CACHES]
        and 0 < words[H_VM_FRONTIER] <= words[H_VM_GRANULES]
        and 0 <= words[H_FARTHEST] < THREAD_SLOTS
        and words[H_LOCK] >= 0
        and 0 <= words[H_INSIDE] <= 1
        and not (inside & ~1).any()  # each is looked at once: it comes and goes
    )


def _null_record_is_null(words: Words) -> bool:
    record = words[NULL_RECORD : NULL_RECORD + RECORD_WORDS].reshape(-1, SHEAF_DESC_WORDS)
    return all(bool((record[:, field] == _EMPTY.get(field, 0)).all()) for field in range(SHEAF_DESC_WORDS))


def is_whole(words: Words) -> bool:
    """Tell whether walkers may begin. Reads words that other threads write, none of which is ever out of its range."""
    return _tables_are_in_place(words) and _counts_are_within(words) and _null_record_is_null(words)
