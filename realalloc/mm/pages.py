"""The struct page of every page frame, and the map of which pages hold memory.

Invariant, struct pages: the first page of every block below the frontier says its kind and order; all other pages inside
a block are KIND_NONE (or KIND_TAIL in a slab), so any pfn can be asked what it is.
Invariant, resident map: a page whose bit is clear holds no memory and reads as zero; H_COMMITTED_PAGES counts set bits.
"""

from __future__ import annotations

from realalloc.mm.bits import low_mask, popcount
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    H_COMMITTED_PAGES,
    H_END_PFN,
    H_MEMMAP,
    H_PEAK_COMMITTED_PAGES,
    H_RESMAP,
    INFOS,
    KIND_MASK,
    KIND_NONE,
    KIND_RUN,
    KIND_TAIL,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_STRUCT_WORDS,
    PAGE_WORDS,
    PG_LINK,
    PG_MAP0,
    ZONE_MASK,
    ZONE_SHIFT,
    ZONE_WORDS,
    ZONES,
)


@kernel
def zero_range(words: Words, at: int, count: int) -> None:
    """Zero words; the compiler makes a memset of it."""
    for k in range(at, at + count):
        words[k] = 0


@kernel
def zone_at(zone: int) -> int:
    """Return the word index of a zone."""
    return ZONES + zone * ZONE_WORDS


@kernel
def info_at(pfn: int) -> int:
    """Return the word index of what a page is: at a constant, as every free reads it."""
    return INFOS + pfn


@kernel
def page_at(words: Words, pfn: int) -> int:
    """Return the word index of a page's struct page."""
    return words[H_MEMMAP] + pfn * PAGE_STRUCT_WORDS


@kernel
def links_at(words: Words) -> int:
    """Return the word index of page frame 0's link: the base of lists of pages, PAGE_STRUCT_WORDS their stride."""
    return words[H_MEMMAP] + PG_LINK


@kernel
def reaches(words: Words, at: int, count: int) -> int:
    """Tell whether the ``count`` words from ``at`` on are words of the arena: what a walker asks of an index it has read."""
    return 1 if 0 < at <= words[H_END_PFN] * PAGE_WORDS - count else 0


@kernel
def zone_of(words: Words, pfn: int) -> int:
    """Return the zone that a page belongs to."""
    return words[info_at(pfn)] >> ZONE_SHIFT & ZONE_MASK


@kernel
def kind_of(words: Words, pfn: int) -> int:
    """Return the kind of the block that begins at ``pfn``, KIND_NONE for anything that is not a first page."""
    if pfn <= 0 or pfn >= words[H_END_PFN]:
        return KIND_NONE
    return words[info_at(pfn)] & KIND_MASK


@kernel
def order_at(words: Words, pfn: int) -> int:
    """Return the order of the block that begins at ``pfn``."""
    return words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK


@kernel
def pages_at(words: Words, pfn: int) -> int:
    """Return the length in pages of the block or run that begins at ``pfn``, 1 inside one."""
    kind = words[info_at(pfn)] & KIND_MASK
    if kind == KIND_RUN:  # a walker comes on, and not farther than the end, whatever it says
        return min(max(words[page_at(words, pfn) + PG_MAP0], 1), words[H_END_PFN])
    if kind == KIND_TAIL:
        return 1
    return 1 << (words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK)


@entry
def set_resident_locked(words: Words, pfn: int, pages: int) -> int:
    """Mark pages as resident; return how many were not."""
    fresh = 0
    end = pfn + pages
    while pfn < end:
        at = words[H_RESMAP] + (pfn >> 6)
        count = min(64 - (pfn & 63), end - pfn)
        mask = low_mask(count) << (pfn & 63)
        fresh += popcount(mask & ~words[at])
        words[at] |= mask
        pfn += count
    words[H_COMMITTED_PAGES] += fresh
    words[H_PEAK_COMMITTED_PAGES] = max(words[H_PEAK_COMMITTED_PAGES], words[H_COMMITTED_PAGES])
    return fresh


@entry
def clear_resident_locked(words: Words, pfn: int, pages: int) -> int:
    """Mark pages as holding no memory; return how many were resident."""
    gone = 0
    end = pfn + pages
    while pfn < end:
        at = words[H_RESMAP] + (pfn >> 6)
        count = min(64 - (pfn & 63), end - pfn)
        mask = low_mask(count) << (pfn & 63)
        gone += popcount(mask & words[at])
        words[at] &= ~mask
        pfn += count
    words[H_COMMITTED_PAGES] -= gone
    return gone


@kernel
def count_resident(words: Words, pfn: int, end: int) -> int:
    """Count pages in ``[pfn, end)`` whose resident bit is set."""
    total = 0
    while pfn < end:
        count = min(64 - (pfn & 63), end - pfn)
        total += popcount(words[words[H_RESMAP] + (pfn >> 6)] >> (pfn & 63) & low_mask(count))
        pfn += count
    return total


@kernel
def is_resident(words: Words, pfn: int) -> int:
    """Tell whether a page may hold memory."""
    return words[words[H_RESMAP] + (pfn >> 6)] >> (pfn & 63) & 1
