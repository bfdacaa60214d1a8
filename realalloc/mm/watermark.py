"""Watermarks: how many pages of a zone each request has to leave free (kernel: __zone_watermark_ok).

    an ordinary request leaves at least min; GFP_HIGH min/2; GFP_HIGH that may not wait (GFP_ATOMIC) 3/8 min;
    GFP_MEMALLOC nothing. GFP_NOMEMALLOC takes the last two back. One that leaves less than low wakes kswapd.

Every block that leaves the buddy for a user goes through here, with the flags of who asked. What a thread keeps in its sheaves
has left before, and is served without a look. Records, sheaves and batches are conveniences: they never go below min, and who
asks in the reserve does without them.
Free pages are those of ``buddy.free_pages_total``: under a limit, no more than it admits.
Invariant, per zone: 0 <= min <= low <= high; all of them 0 where no marks are set, and then nothing is refused here.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.buddy import alloc_part_locked, free_pages_total, pages_of_order
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_MARKS,
    DECAY,
    ENOMEM,
    GFP_HIGH_BIT,
    GFP_KSWAPD_BIT,
    GFP_MEMALLOC_BIT,
    GFP_NOMEMALLOC_BIT,
    GFP_WAIT_BIT,
    GFP_ZERO_BIT,
    H_BELL,
    H_LIMIT_PAGES,
    H_MAX_ORDER,
    H_META_PAGES,
    H_NR_ZONES,
    OK,
    STAGE_IDLE,
    STAGE_SHEAVES,
    Y_WANTED,
    Z_BEGAN_PAGES,
    Z_END_PFN,
    Z_FAILURES,
    Z_HIGH_PAGES,
    Z_LOW_PAGES,
    Z_MIN_PAGES,
    Z_STAGE,
    Z_START_PFN,
    Z_WAKES,
    ZONE_NORMAL,
)
from realalloc.mm.pages import zone_at
from realalloc.mm.prim import futex_wake_all, raise_flag

MAX_FAILURES = 16  # runs that brought nothing, after which kswapd is left alone (kernel: MAX_RECLAIM_RETRIES)


@kernel
def has_marks(words: Words) -> int:
    """Tell whether the normal zone has watermarks."""
    return 1 if words[zone_at(ZONE_NORMAL) + Z_LOW_PAGES] != 0 else 0


@kernel
def may_reclaim(words: Words, gfp: int) -> int:
    """Tell whether a request may take memory back: with marks, only one that may wait; the others fail at once."""
    return 1 if gfp & GFP_WAIT_BIT or has_marks(words) == 0 else 0


@entry
def mark_for(words: Words, zone: int, gfp: int) -> int:
    """Return how many pages of a zone a request with these flags has to leave."""
    if gfp & (GFP_MEMALLOC_BIT | GFP_NOMEMALLOC_BIT) == GFP_MEMALLOC_BIT:
        return 0
    mark = words[zone_at(zone) + Z_MIN_PAGES]
    if gfp & GFP_HIGH_BIT:
        mark -= mark >> 1
        if gfp & (GFP_WAIT_BIT | GFP_NOMEMALLOC_BIT) == 0:
            mark -= mark >> 2
    return mark


@kernel
def _wake(words: Words, z: int, free: int) -> None:
    """Have kswapd, where it serves this arena, bring a zone up to its high mark: once, until that run has ended."""
    wanted = words[z + Z_STAGE] == STAGE_IDLE and words[z + Z_FAILURES] < MAX_FAILURES
    if wanted and words[DECAY + Y_WANTED] != 0:
        words[z + Z_BEGAN_PAGES] = free
        words[z + Z_WAKES] += 1
        words[z + Z_STAGE] = STAGE_SHEAVES
        if words[H_BELL] != 0:
            raise_flag(words[H_BELL])
            futex_wake_all(words[H_BELL])


@entry
def _may_take_marked(words: Words, zone: int, pages: int, gfp: int) -> int:
    z = zone_at(zone)
    free = free_pages_total(words, zone)
    if free - pages >= words[z + Z_LOW_PAGES]:
        words[z + Z_FAILURES] = 0
        return 1
    if gfp & GFP_KSWAPD_BIT:
        _wake(words, z, free)
    mark = mark_for(words, zone, gfp)
    return 1 if mark == 0 or free - pages >= mark else 0


@kernel
def may_take(words: Words, zone: int, pages: int, gfp: int) -> int:
    """Tell whether a request may have so many more pages of a zone; the lock is held."""
    return 1 if words[zone_at(zone) + Z_LOW_PAGES] == 0 else _may_take_marked(words, zone, pages, gfp)


@kernel
def get_part_locked(words: Words, zone: int, order: int, kind: int, gfp: int, asked: int) -> int:
    """Allocate a block for so many pages if its flags may go so low; its pfn or ENOMEM (kernel: get_page_from_freelist)."""
    if order > words[H_MAX_ORDER] or may_take(words, zone, 1 << order, gfp) == 0:
        return ENOMEM
    return alloc_part_locked(words, zone, order, kind, gfp & GFP_ZERO_BIT, asked)


@kernel
def get_block_locked(words: Words, zone: int, order: int, kind: int, gfp: int) -> int:
    """Allocate a block of which all pages are going to be used."""
    return get_part_locked(words, zone, order, kind, gfp, pages_of_order(order))


@kernel
def managed_pages(words: Words, zone: int) -> int:
    """Count the pages of a zone that may hold memory at one time (kernel: zone_managed_pages)."""
    z = zone_at(zone)
    pages = words[z + Z_END_PFN] - words[z + Z_START_PFN]
    if zone != ZONE_NORMAL:
        return pages
    return min(pages, words[H_LIMIT_PAGES] - (words[z + Z_START_PFN] - words[H_META_PAGES]))


@entry
def could_ever(words: Words, zone: int, pages: int, order: int, gfp: int) -> int:
    """Tell whether an empty zone could serve a request for pages; ``order`` >= 0: as one aligned block of that order."""
    z = zone_at(zone)
    if not 0 < pages <= managed_pages(words, zone) - mark_for(words, zone, gfp) or order > words[H_MAX_ORDER]:
        return 0
    if order < 0:
        return 1
    first = (words[z + Z_START_PFN] + (1 << order) - 1) >> order << order
    return 1 if first + (1 << order) <= words[z + Z_END_PFN] else 0


@entry
def set_marks(words: Words, zone: int, lowest: int, low: int, high: int) -> int:
    """Set a zone's marks, in pages; kswapd begins anew."""
    lock(words)
    z = zone_at(zone)
    words[z + Z_MIN_PAGES] = lowest
    words[z + Z_LOW_PAGES] = low
    words[z + Z_HIGH_PAGES] = high
    words[z + Z_FAILURES] = 0
    unlock(words)
    return OK


@entry
def validate_marks(words: Words) -> int:
    """Check the invariant at the head of this file; OK or BAD_MARKS."""
    for zone in range(words[H_NR_ZONES]):
        z = zone_at(zone)
        if not 0 <= words[z + Z_MIN_PAGES] <= words[z + Z_LOW_PAGES] <= words[z + Z_HIGH_PAGES]:
            return BAD_MARKS
    return OK
