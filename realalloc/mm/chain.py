"""Chains: blocks of pages, linked by PG_LINK, that shall be one range of addresses.

The blocks keep their page frames; their page-table entries move (mremap with MREMAP_DONTUNMAP), one call for each run of
adjacent pages, and back. What cannot move back is dropped, and reads as zero again.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.buddy import alloc_block_locked, free_block_locked, free_pages_total
from realalloc.mm.commit import purgeable_pages, refuse_huge
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    ENOMEM,
    GFP_ZERO_BIT,
    H_MAX_ORDER,
    HUGE_ORDER,
    KIND_AREA,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_SHIFT,
    PG_LINK,
    Z_COUNTS,
    ZONE_NORMAL,
)
from realalloc.mm.pages import clear_resident_locked, info_at, page_at, zone_at
from realalloc.mm.prim import is_several, may_move, move_pages, renew
from realalloc.mm.watermark import may_take


@kernel
def move_range(words: Words, source: int, target: int, pages: int) -> int:
    """Move page-table entries between offsets, a mapping at a time; -1 - pages that have moved if the system refuses.

    A call over several mappings may fail half-way, and a call that fails may have unmapped its target: so a range is halved
    before, until it is one mapping, no call is made that a limit on address space would refuse, and none is repeated.
    """
    if may_move(pages << PAGE_SHIFT) != OK:
        return -1
    base = address_of(words)
    step = pages
    done = 0
    while done < pages:
        step = min(step, pages - done)
        offset = done << PAGE_SHIFT
        if step > 1 and is_several(base + source + offset, step << PAGE_SHIFT) == 1:
            step >>= 1
        elif move_pages(base + source + offset, base + target + offset, step << PAGE_SHIFT) == OK:
            done += step
            step = pages - done
        else:
            return -done - 1
    return OK


@kernel
def map_chain(words: Words, pfn: int, target: int, limit: int) -> int:
    """Move chained blocks to ``target``, run by run, up to ``limit`` pages; return how many pages moved."""
    mapped = 0
    while pfn != 0 and mapped < limit:
        pages = 0
        at = pfn
        while at == pfn + pages and at != 0:
            pages += 1 << (words[info_at(at)] >> ORDER_SHIFT & ORDER_MASK)
            at = words[page_at(words, at) + PG_LINK]
        status = move_range(words, pfn << PAGE_SHIFT, target + (mapped << PAGE_SHIFT), pages)
        if status != OK:
            return mapped - status - 1
        mapped += pages
        pfn = at
    return mapped


@kernel
def unmap_chain(words: Words, pfn: int, source: int, mapped: int) -> None:
    """Move the first ``mapped`` pages of chained blocks back to their page frames; what cannot move is dropped."""
    done = 0
    while pfn != 0 and done < mapped:
        pages = min(1 << (words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK), mapped - done)
        status = move_range(words, source + (done << PAGE_SHIFT), pfn << PAGE_SHIFT, pages)
        if status != OK:  # the rest is dropped with the window below: reads as zero again
            back = -status - 1
            renew(address_of(words) + ((pfn + back) << PAGE_SHIFT), (pages - back) << PAGE_SHIFT)
            clear_resident_locked(words, pfn + back, pages - back)
        done += pages
        pfn = words[page_at(words, pfn) + PG_LINK]


@kernel
def free_chain(words: Words, pfn: int, dropped: int) -> None:
    """Free chained blocks."""
    while pfn != 0:
        following = words[page_at(words, pfn) + PG_LINK]
        if dropped != 0:
            clear_resident_locked(words, pfn, 1 << (words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK))
        free_block_locked(words, pfn)
        pfn = following


@kernel
def _is_listed(words: Words, order: int) -> int:
    """Tell whether there is a free block of an order or larger before the frontier."""
    listed = 0
    for k in range(order, words[H_MAX_ORDER] + 1):
        listed += words[zone_at(ZONE_NORMAL) + Z_COUNTS + k]
    return 1 if listed != 0 else 0


@kernel
def collect_blocks(words: Words, pages: int, gfp: int) -> int:
    """Allocate ``pages`` pages as few large blocks, chained; return the first pfn or ENOMEM with nothing taken.

    GFP_ZERO asks for pages that read as zero: fresh ones are not touched.
    """
    if free_pages_total(words, ZONE_NORMAL) < pages or may_take(words, ZONE_NORMAL, pages, gfp) == 0:
        return ENOMEM
    head = 0
    last = 0
    order = words[H_MAX_ORDER]
    while pages > 0:
        while 1 << order > pages:
            order -= 1
        while order > HUGE_ORDER and _is_listed(words, order) == 0 and purgeable_pages(words) >= pages:
            order -= 1  # smaller blocks that hold memory, before fresh ones
        pfn = alloc_block_locked(words, ZONE_NORMAL, order, KIND_AREA, gfp & GFP_ZERO_BIT)
        if pfn < 0 and order == 0:  # free pages there are, but none whose memory could be made room for
            free_chain(words, head, 0)
            return ENOMEM
        if pfn < 0:
            order -= 1
            continue
        if order < HUGE_ORDER and refuse_huge(words, pfn >> HUGE_ORDER) != OK:
            # its memory moves away: a touch of its neighbours would bring it back, and count it twice
            free_block_locked(words, pfn)
            free_chain(words, head, 0)
            return ENOMEM
        if last == 0:
            head = pfn
        else:
            words[page_at(words, last) + PG_LINK] = pfn
        last = pfn
        pages -= 1 << order
    return head
