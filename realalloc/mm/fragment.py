"""How fragmented an arena is: the kernel's two indices, the largest requests that can be served, what slabs waste.

    extfrag index  = -1000 where a block of that order is free, else 1000 - (1000 + 1000 * free pages / 2**order) / free blocks
    unusable index = 1000 * (free pages - those in blocks of that order and above) / free pages

(kernel: ``__fragmentation_index`` and ``unusable_free_index`` in mm/vmstat.c, divisions as there.) Pages behind the
frontier count as the blocks that they will be once it has passed them, merged with what is free in front of it. A limit
bounds the requests that can be served, not the free blocks. Nothing is changed and nothing reclaimed: sheaves and empty slabs
count as allocated here.

Invariant, of a cache:     slab bytes = objects in use * stride + free objects * stride + tails
"""

from __future__ import annotations

from typing import Final

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import ctz
from realalloc.mm.buddy import free_pages_total, is_free_block
from realalloc.mm.drain import cached_objects_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_LAZY,
    C_ALLOCS,
    C_FREES,
    C_SHEAF,
    C_STATE,
    CACHE_LIVE,
    CACHE_WORDS,
    GRANULE_PAGES,
    H_CACHES,
    H_MAX_ORDER,
    H_NR_CACHES,
    H_NR_ZONES,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_LAZY_PAGES,
    HUGE_ORDER,
    KIND_FREE,
    KIND_SLAB,
    MAX_MAX_ORDER,
    OK,
    SHEAF_DESC_WORDS,
    Z_COUNTS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.pages import info_at, kind_of, order_at, pages_at, zone_at
from realalloc.mm.slab_map import cache_of, objects_of
from realalloc.mm.vmalloc import HUGE_GRANULES
from realalloc.mm.window import area_granules, area_kind

# What a survey writes: the longest area, then a row a zone, then a row a cache.
ORDERS: Final = MAX_MAX_ORDER + 1
O_AREA_PAGES: Final = 0
O_ZONES: Final = 1
F_BLOCKS: Final = 0  # free blocks by order
F_EXTFRAG: Final = ORDERS  # both indices by order
F_UNUSABLE: Final = 2 * ORDERS
F_FREE_PAGES: Final = 3 * ORDERS
F_RUN_PAGES: Final = F_FREE_PAGES + 1  # the longest run that one request can have
F_HAD_PAGES: Final = F_FREE_PAGES + 2  # free pages that the limit lets be had
F_WORDS: Final = F_FREE_PAGES + 3
O_CACHES: Final = O_ZONES + 2 * F_WORDS
W_PAGES: Final = 0  # of all slabs of a cache
W_OBJECTS: Final = 1
W_USED: Final = 2  # objects that users have
W_WORDS: Final = 3

NO_FAILURE: Final = -1000  # the index of a request that would not fail


@kernel
def extfrag_index(order: int, free_pages: int, blocks: int, suitable: int) -> int:
    """Say why a request of this order fails, in thousandths: towards 0 for want of memory, towards 1000 for fragmentation.

    ``blocks`` are all free blocks, ``suitable`` those of the order, larger ones as the many that they can be split into.
    """
    if blocks == 0:
        return 0
    if suitable != 0:
        return NO_FAILURE
    return 1000 - (1000 + free_pages * 1000 // (1 << order)) // blocks


@kernel
def unusable_index(order: int, free_pages: int, suitable: int) -> int:
    """Return how many thousandths of the free pages are of no use to requests of an order; all of them if none is free."""
    return 1000 if free_pages == 0 else (free_pages - (suitable << order)) * 1000 // free_pages


@kernel
def reach_begin(words: Words, zone: int) -> int:
    """Return where the free pages begin that merge with those behind the frontier: in the same block of the largest order."""
    begin = words[zone_at(zone) + Z_FRONTIER_PFN]
    found = 1
    while found == 1 and begin & ((1 << words[H_MAX_ORDER]) - 1) != 0:
        found = 0
        for order in range(min(ctz(begin), words[H_MAX_ORDER]) + 1):
            if found == 0 and is_free_block(words, zone, begin - (1 << order), order) == 1:
                begin -= 1 << order
                found = 1
    return begin


@kernel
def count_blocks(words: Words, zone: int, out: Words, row: int) -> int:
    """Write the free blocks of a zone by order; return the free pages, whatever the limit is."""
    z = zone_at(zone)
    for order in range(ORDERS):
        out[row + F_BLOCKS + order] = words[z + Z_COUNTS + order] if order <= words[H_MAX_ORDER] else 0
    pfn = reach_begin(words, zone)
    while pfn < words[z + Z_FRONTIER_PFN]:  # these will not stay what they are
        order = order_at(words, pfn)
        out[row + F_BLOCKS + order] -= 1
        pfn += 1 << order
    pfn = reach_begin(words, zone)
    limit = words[z + Z_END_PFN]
    while pfn < limit:
        order = min(words[H_MAX_ORDER], ctz(pfn))
        while 1 << order > limit - pfn:
            order -= 1
        many = (limit - pfn) >> order if order == words[H_MAX_ORDER] else 1
        out[row + F_BLOCKS + order] += many
        pfn += many << order
    return words[z + Z_FREE_PAGES] + limit - words[z + Z_FRONTIER_PFN]


@kernel
def longest_run(words: Words, zone: int) -> int:
    """Return the pages of the longest run that ``page_alloc.alloc_run_locked`` could find, under the limit."""
    z = zone_at(zone)
    longest = 0
    begin = -1
    pfn = words[z + Z_START_PFN]
    while pfn < words[z + Z_FRONTIER_PFN]:
        is_free = kind_of(words, pfn) == KIND_FREE
        begin = -1 if not is_free else pfn if begin < 0 else begin
        pfn += pages_at(words, pfn)
        longest = max(longest, pfn - begin if begin >= 0 else 0)
    begin = pfn if begin < 0 else begin
    return min(max(longest, words[z + Z_END_PFN] - begin), free_pages_total(words, zone))


@kernel
def _survey_zone(words: Words, zone: int, out: Words, row: int) -> None:
    free = count_blocks(words, zone, out, row)
    blocks = 0
    for order in range(words[H_MAX_ORDER] + 1):
        blocks += out[row + F_BLOCKS + order]
    suitable = 0
    for down in range(words[H_MAX_ORDER] + 1):
        order = words[H_MAX_ORDER] - down
        suitable = 2 * suitable + out[row + F_BLOCKS + order]
        out[row + F_EXTFRAG + order] = extfrag_index(order, free, blocks, suitable)
        out[row + F_UNUSABLE + order] = unusable_index(order, free, suitable)
    out[row + F_FREE_PAGES] = free
    out[row + F_RUN_PAGES] = longest_run(words, zone)
    out[row + F_HAD_PAGES] = free_pages_total(words, zone)


@kernel
def _area_pages(begin: int, end: int) -> int:
    """Return the pages of the largest area in granules ``[begin, end)``: a guard page less, and large ones are aligned."""
    aligned = (end - ((begin + HUGE_GRANULES - 1) & ~(HUGE_GRANULES - 1))) * GRANULE_PAGES - 1
    return aligned if aligned >= 1 << HUGE_ORDER else min((end - begin) * GRANULE_PAGES, 1 << HUGE_ORDER) - 1


@kernel
def longest_area(words: Words) -> int:
    """Return the pages of the largest area that vmalloc could make, lazily kept ones taken apart, as it would do first."""
    longest = 0
    begin = 1
    granule = 1
    while granule < words[H_VM_FRONTIER]:
        kind = area_kind(words, granule)
        count = area_granules(words, granule)
        granule += count
        if kind != AREA_FREE and kind != AREA_LAZY:
            longest = max(longest, _area_pages(begin, granule - count))
            begin = granule
    longest = max(longest, _area_pages(begin, words[H_VM_GRANULES]))
    return max(0, min(longest, free_pages_total(words, ZONE_NORMAL) + words[H_VM_LAZY_PAGES]))


@kernel
def _survey_slabs(words: Words, out: Words) -> None:
    for index in range(words[H_NR_CACHES]):
        c = words[H_CACHES] + index * CACHE_WORDS
        row = O_CACHES + index * W_WORDS
        out[row + W_PAGES] = 0
        out[row + W_OBJECTS] = 0
        out[row + W_USED] = words[c + C_ALLOCS] - words[c + C_FREES] if words[c + C_STATE] == CACHE_LIVE else 0
        if out[row + W_USED] != 0 and words[c + C_SHEAF] != 0:
            out[row + W_USED] -= cached_objects_locked(words, words[c + C_SHEAF] // SHEAF_DESC_WORDS)
    for zone in range(words[H_NR_ZONES]):
        pfn = words[zone_at(zone) + Z_START_PFN]
        while pfn < words[zone_at(zone) + Z_FRONTIER_PFN]:
            pages = pages_at(words, pfn)
            if kind_of(words, pfn) == KIND_SLAB:
                row = O_CACHES + (cache_of(words, pfn) - words[H_CACHES]) // CACHE_WORDS * W_WORDS
                out[row + W_PAGES] += pages
                out[row + W_OBJECTS] += objects_of(words[info_at(pfn)])
            pfn += pages


@entry
def survey(words: Words, out: Words) -> int:
    """Write everything into ``out``, of ``O_CACHES + W_WORDS * max caches`` words, in one hold of the lock."""
    lock(words)
    for zone in range(words[H_NR_ZONES]):
        _survey_zone(words, zone, out, O_ZONES + zone * F_WORDS)
    out[O_AREA_PAGES] = longest_area(words)
    _survey_slabs(words, out)
    unlock(words)
    return OK
