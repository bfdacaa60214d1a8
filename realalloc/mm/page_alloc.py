"""The verbs of the page allocator: blocks, runs of any length, single pages in bulk.

A run of ``n`` contiguous pages up to the largest block is cut from one (kernel: alloc_pages_exact); a longer one is made of
adjacent free blocks of the largest order, found from the zone's start, the frontier included (alloc_contig_pages). Where
neither is to be had, any adjacent free blocks serve.
Guarantees: ENOMEM takes nothing; sheaves, lazy areas and empty slabs are reclaimed once before it is said.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import order_of_pages
from realalloc.mm.buddy import (
    account_allocated,
    free_block_locked,
    free_pages_total,
    free_span_locked,
    grow,
    insert_span_locked,
    is_free_block,
    list_remove,
    pages_of_order,
    take_block_locked,
)
from realalloc.mm.commit import commit_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    H_MAX_ORDER,
    H_NR_ZONES,
    KIND_FREE,
    KIND_MASK,
    KIND_NONE,
    KIND_PAGES,
    KIND_RUN,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_SHIFT,
    PG_LINK,
    PG_MAP0,
    Z_ALLOCS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FREES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_MASK,
    ZONE_NORMAL,
    ZONE_SHIFT,
)
from realalloc.mm.pages import info_at, kind_of, order_at, page_at, pages_at, zone_at
from realalloc.mm.pcp import fetch_block_locked, keep_block_locked, pop_block_slow, push_block
from realalloc.mm.reclaim import try_again_locked
from realalloc.mm.watermark import get_block_locked, get_part_locked, may_take
from realalloc.mm.zeroing import zero_memory


@kernel
def _run_is_free(words: Words, zone: int, pfn: int, end: int) -> int:
    """Check that free blocks cover ``[pfn, end)`` without a hole."""
    while pfn < end:
        info = words[info_at(pfn)]
        if info & KIND_MASK != KIND_FREE or info >> ZONE_SHIFT & ZONE_MASK != zone:
            return 0
        pfn += 1 << (info >> ORDER_SHIFT & ORDER_MASK)
    return 1


@kernel
def _find_run(words: Words, zone: int, pages: int) -> int:
    """Find free contiguous pages that begin with a block of the largest order; return the first pfn or 0."""
    z = zone_at(zone)
    step = 1 << words[H_MAX_ORDER]
    begin = -1
    pfn = (words[z + Z_START_PFN] + step - 1) & ~(step - 1)
    while pfn + step <= words[z + Z_FRONTIER_PFN]:
        if is_free_block(words, zone, pfn, words[H_MAX_ORDER]) == 0:
            begin = -1
        else:
            begin = pfn if begin < 0 else begin
            if pfn + step - begin >= pages:
                return begin
        pfn += step
    if _run_is_free(words, zone, pfn, words[z + Z_FRONTIER_PFN]) == 0:  # the block at the frontier is partly in use
        begin = pfn + step
    elif begin < 0:
        begin = pfn
    if words[z + Z_END_PFN] - begin < pages:  # said before the frontier moves: memmap is only touched for a run
        return 0
    while words[z + Z_FRONTIER_PFN] - begin < pages:  # the run ends at the frontier, or begins there
        grow(words, zone)
    return begin


@kernel
def _find_run_anywhere(words: Words, zone: int, pages: int) -> int:
    """Find free contiguous pages that begin with any block, in a walk over the zone; return the first pfn or 0."""
    z = zone_at(zone)
    begin = -1
    pfn = words[z + Z_START_PFN]
    while pfn < words[z + Z_FRONTIER_PFN]:
        if kind_of(words, pfn) == KIND_FREE:
            begin = pfn if begin < 0 else begin
            pfn += 1 << order_at(words, pfn)
            if pfn - begin >= pages:
                return begin
        else:
            begin = -1
            pfn += pages_at(words, pfn)
    begin = pfn if begin < 0 else begin
    if words[z + Z_END_PFN] - begin < pages:
        return 0
    while words[z + Z_FRONTIER_PFN] - begin < pages:
        grow(words, zone)
    return begin


@kernel
def _claim(words: Words, zone: int, pfn: int, pages: int) -> None:
    """Take free blocks off the lists from ``pfn`` on, until ``pages`` pages are covered; the rest goes back."""
    end = pfn + pages
    at = pfn
    while at < end:
        order = words[info_at(at)] >> ORDER_SHIFT & ORDER_MASK
        list_remove(words, zone, at, order)
        at += 1 << order
    insert_span_locked(words, zone, end, at - end)


@kernel
def _take_run(words: Words, zone: int, pages: int) -> int:
    """Take contiguous pages off the free lists; return the first pfn or 0."""
    order = order_of_pages(pages)
    if order <= words[H_MAX_ORDER]:  # alloc_pages_exact: the tail of a block goes back
        pfn = take_block_locked(words, zone, order, 0)
        if pfn != 0:
            insert_span_locked(words, zone, pfn + pages, (1 << order) - pages)
            return pfn
    pfn = _find_run(words, zone, pages) if order > words[H_MAX_ORDER] else 0
    if pfn == 0:
        pfn = _find_run_anywhere(words, zone, pages)
    if pfn != 0:
        _claim(words, zone, pfn, pages)
    return pfn


@entry
def alloc_run_locked(words: Words, zone: int, pages: int, gfp: int) -> int:
    """Allocate any number of contiguous pages; return the first pfn or ENOMEM (kernel: alloc_contig_pages)."""
    if pages <= 0:
        return EINVAL
    if pages > free_pages_total(words, zone) or may_take(words, zone, pages, gfp) == 0:
        return ENOMEM
    pfn = _take_run(words, zone, pages)
    if pfn == 0:
        return ENOMEM
    if gfp & GFP_ZERO_BIT:
        zero_memory(words, pfn << PAGE_SHIFT, pfn, pages)
    if commit_locked(words, pfn, pages, 0) != OK:
        insert_span_locked(words, zone, pfn, pages)
        return ENOMEM
    words[zone_at(zone) + Z_FREE_PAGES] -= pages
    words[zone_at(zone) + Z_ALLOCS] += 1
    account_allocated(words, pages)
    page = page_at(words, pfn)
    words[info_at(pfn)] = KIND_RUN | zone << ZONE_SHIFT
    words[page + PG_LINK] = 0
    words[page + PG_MAP0] = pages
    return pfn


@kernel
def free_run_locked(words: Words, pfn: int) -> None:
    """Free a run whose first page is ``pfn``."""
    page = page_at(words, pfn)
    zone = words[info_at(pfn)] >> ZONE_SHIFT & ZONE_MASK
    words[info_at(pfn)] = KIND_NONE
    words[zone_at(zone) + Z_FREES] += 1
    free_span_locked(words, zone, pfn, words[page + PG_MAP0])


@kernel
def zone_for(words: Words, gfp: int) -> int:
    """Return the zone that the flags ask for, -1 if this arena has no such zone."""
    if gfp & GFP_DMA_BIT == 0:
        return ZONE_NORMAL
    return ZONE_DMA if words[H_NR_ZONES] > 1 else -1


@kernel
def _fetch_locked(words: Words, zone: int, order: int, kind: int, gfp: int, asked: int) -> int:
    if zone == ZONE_NORMAL:
        return fetch_block_locked(words, order, kind, gfp, asked)
    pfn = get_part_locked(words, zone, order, kind, gfp, asked)
    words[H_BLOCKS] += 1 if pfn > 0 else 0
    return pfn


@entry
def fetch_retry_locked(words: Words, zone: int, order: int, kind: int, gfp: int, asked: int) -> int:
    """Get a block for so many pages from the buddy, reclaiming if pages have run out; H_BLOCKS counts it."""
    pfn = _fetch_locked(words, zone, order, kind, gfp, asked)
    best = 0
    while pfn < 0 and order <= words[H_MAX_ORDER]:
        best = try_again_locked(words, zone, gfp, best)
        if best == 0:
            break
        pfn = _fetch_locked(words, zone, order, kind, gfp, asked)
    return pfn


@entry
def alloc_pages(words: Words, order: int, gfp: int) -> int:
    """Return the pfn of a block of ``1 << order`` pages, aligned to its size, or ENOMEM."""
    zone = zone_for(words, gfp)
    if order < 0 or zone < 0 or words[H_CLOSED] != 0:
        return ENOMEM
    if zone == ZONE_NORMAL:
        pfn = pop_block_slow(words, order, KIND_PAGES)
        if pfn != 0:
            if gfp & GFP_ZERO_BIT:
                zero_memory(words, pfn << PAGE_SHIFT, pfn, 1 << order)
            return pfn
    lock(words)
    pfn = fetch_retry_locked(words, zone, order, KIND_PAGES, gfp, pages_of_order(order))
    unlock(words)
    return pfn


@entry
def alloc_run(words: Words, pages: int, gfp: int) -> int:
    """Return the first pfn of any number of contiguous pages, or ENOMEM."""
    zone = zone_for(words, gfp)
    if pages <= 0 or zone < 0 or words[H_CLOSED] != 0:
        return ENOMEM
    lock(words)
    pfn = alloc_run_locked(words, zone, pages, gfp)
    best = 0
    while pfn < 0:
        best = try_again_locked(words, zone, gfp, best)
        if best == 0:
            break
        pfn = alloc_run_locked(words, zone, pages, gfp)
    if pfn > 0:
        words[H_BLOCKS] += 1
    unlock(words)
    return pfn


@kernel
def free_any_block_locked(words: Words, pfn: int) -> None:
    """Free the block or run that begins at ``pfn``, or keep it; the caller has checked that there is one."""
    if kind_of(words, pfn) != KIND_RUN and keep_block_locked(words, pfn) == 1:
        return
    words[H_BLOCKS] -= 1
    if kind_of(words, pfn) == KIND_RUN:
        free_run_locked(words, pfn)
    else:
        free_block_locked(words, pfn)


@entry
def free_pages(words: Words, pfn: int, order: int) -> int:
    """Free a block from :func:`alloc_pages`; EINVAL if it is none or its order is another (-1: any, runs too)."""
    status = EINVAL
    kind = kind_of(words, pfn)
    if kind == KIND_PAGES and order in (-1, order_at(words, pfn)) and push_block(words, pfn) == 1:
        return OK
    lock(words)
    kind = kind_of(words, pfn)
    if (kind == KIND_RUN and order == -1) or (kind == KIND_PAGES and order in (-1, order_at(words, pfn))):
        free_any_block_locked(words, pfn)
        status = OK
    unlock(words)
    return status


@entry
def alloc_pages_bulk(words: Words, count: int, gfp: int, out: Words) -> int:
    """Fill ``out[:count]`` with pfns of single pages; return how many there were (kernel: alloc_pages_bulk)."""
    zone = zone_for(words, gfp)
    if zone < 0 or words[H_CLOSED] != 0:
        return 0
    lock(words)
    done = 0
    best = 0
    while done < count:
        pfn = get_block_locked(words, zone, 0, KIND_PAGES, gfp)
        if pfn < 0:
            best = try_again_locked(words, zone, gfp, best)
            if best != 0:
                continue
            break
        out[done] = pfn
        done += 1
        best = 0
    words[H_BLOCKS] += done
    unlock(words)
    return done
