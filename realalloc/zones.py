"""Free and used pages of an arena's zones, counted for people: under the limit, frontier included.

Reads words without the lock: each number is right, numbers of one look may be a few operations apart.
"""

from __future__ import annotations

import numpy as np

from realalloc import fragmentation
from realalloc.gfp import GFP_DMA
from realalloc.mm import layout as at
from realalloc.mm.drain import cached_objects
from realalloc.mm.jit import Words
from realalloc.mm.watermark import mark_for
from realalloc.sizes import format_bytes

ZONE_NAMES = ("Normal", "DMA")
PAGE = at.PAGE_BYTES
SETTLE_TRIES = 8  # to read a count and what is taken off it with no change between


def zone_words(words: Words, zone: int) -> list[int]:
    """Copy a zone's descriptor."""
    start = at.ZONES + zone * at.ZONE_WORDS
    return [int(value) for value in words[start : start + at.ZONE_WORDS]]


def zone_free_pages(words: Words, zone: int) -> int:
    """Count pages of a zone that can be had: listed, and behind the frontier, as many as the limit admits."""
    z = zone_words(words, zone)
    free = z[at.Z_FREE_PAGES] + z[at.Z_END_PFN] - z[at.Z_FRONTIER_PFN]
    return free if zone == at.ZONE_DMA else max(0, min(free, limit_pages(words) - used_pages(words)))


def zone_pages(words: Words, zone: int) -> int:
    """Count the pages of a zone that may hold memory at one time."""
    z = zone_words(words, zone)
    pages = z[at.Z_END_PFN] - z[at.Z_START_PFN]
    return pages if zone == at.ZONE_DMA else min(pages, limit_pages(words))


def limit_pages(words: Words) -> int:
    """Return how many pages of the normal zone may hold memory."""
    return int(words[at.H_LIMIT_PAGES]) - _locked_pages(words)


def _locked_pages(words: Words) -> int:
    return int(words[at.ZONES + at.Z_START_PFN]) - int(words[at.H_META_PAGES])


def used_pages(words: Words) -> int:
    """Return how many pages of the normal zone are allocated."""
    return int(words[at.H_ALLOCATED_PAGES]) - _locked_pages(words) + zone_words(words, at.ZONE_DMA)[at.Z_FREE_PAGES]


def dirty_pages(words: Words) -> int:
    """Return how many free pages of the normal zone may hold memory."""
    return max(0, int(words[at.H_COMMITTED_PAGES]) - _locked_pages(words) - used_pages(words))


def _free_before(words: Words, start: int, pfn: int, max_order: int) -> int:
    """Return the order of the free block that ends at a pfn which is no end of a largest block, -1 if there is none."""
    for order in range(min(max_order, (pfn & -pfn).bit_length())):
        begin = pfn - (1 << order)
        info = int(words[at.INFOS + begin]) if begin >= start else 0
        wanted = at.KIND_FREE | order << at.ORDER_SHIFT
        if pfn & ((1 << max_order) - 1) and info & (at.KIND_MASK | at.ORDER_MASK << at.ORDER_SHIFT) == wanted:
            return order
    return -1


def free_blocks(words: Words, zone: int) -> list[int]:
    """Count free blocks by order; pages behind the frontier count as the blocks they will become."""
    z = zone_words(words, zone)
    orders = int(words[at.H_MAX_ORDER]) + 1
    counts = z[at.Z_COUNTS : at.Z_COUNTS + orders]
    pfn, limit = z[at.Z_FRONTIER_PFN], z[at.Z_END_PFN]
    while pfn < limit and (order := _free_before(words, z[at.Z_START_PFN], pfn, orders - 1)) >= 0:
        counts[order] -= 1  # it will merge with pages that are not reached yet
        pfn -= 1 << order
    while pfn < limit:
        order = min(orders - 1, (pfn & -pfn).bit_length() - 1, (limit - pfn).bit_length() - 1)
        many = (limit - pfn) >> order if order == orders - 1 else 1
        counts[order] += many
        pfn += many << order
    return counts


def _is_unmovable(words: Words, order: int, pfn: int, whole: int) -> bool:
    return order < whole and int(words[int(words[at.H_MOBILITY]) + at.M_BLOCKS + (pfn >> whole)]) != 0


def unmovable_blocks(words: Words, zone: int) -> list[int]:
    """Count those of :func:`free_blocks` that lie in UNMOVABLE page blocks: all of them where a zone is not grouped."""
    groups = int(words[at.H_MOBILITY]) + zone * at.M_WORDS
    whole = zone_words(words, zone)[at.Z_PAGE_BLOCK_ORDER]
    if whole == 0:
        return free_blocks(words, zone)
    counts = [int(count) for count in words[groups + at.M_COUNTS : groups + at.M_COUNTS + whole]]
    counts += [0] * (int(words[at.H_MAX_ORDER]) + 1 - whole)
    z = zone_words(words, zone)
    pfn, limit = z[at.Z_FRONTIER_PFN], z[at.Z_END_PFN]
    while pfn < limit and (order := _free_before(words, z[at.Z_START_PFN], pfn, int(words[at.H_MAX_ORDER]))) >= 0:
        pfn -= 1 << order
        counts[order] -= _is_unmovable(words, order, pfn, whole)
    while pfn < limit and (order := min((pfn & -pfn).bit_length(), (limit - pfn).bit_length()) - 1) < whole:
        counts[order] += _is_unmovable(words, order, pfn, whole)
        pfn += 1 << order
    return counts


def page_blocks(words: Words, zone: int) -> tuple[int, int]:
    """Count UNMOVABLE and MOVABLE page blocks, those at a zone's borders included."""
    whole = zone_words(words, zone)[at.Z_PAGE_BLOCK_ORDER]
    order = whole or min(at.HUGE_ORDER, int(words[at.H_MAX_ORDER]))
    z = zone_words(words, zone)
    first, behind = z[at.Z_START_PFN] >> order, -(-z[at.Z_END_PFN] >> order)
    if whole == 0:
        return behind - first, 0
    blocks = int(words[at.H_MOBILITY]) + at.M_BLOCKS
    reached = -(-z[at.Z_FRONTIER_PFN] >> order)
    unmovable = int(np.count_nonzero(words[blocks + first : blocks + max(reached, first + 1)]))
    return unmovable, behind - first - unmovable


def largest_free(words: Words, zone: int) -> int:
    """Return the bytes of the largest block that can be had now, from lists and frontier, under the limit."""
    return fragmentation.largest_block(free_blocks(words, zone), zone_free_pages(words, zone)) * PAGE


def kept_blocks(words: Words) -> list[int]:
    """Count the page blocks that threads keep, by order."""
    return [int(cached_objects(words, at.SHEAF_BLOCKS + order)) for order in range(at.SHEAF_BLOCK_ORDERS)]


def live_blocks(words: Words) -> int:
    """Count page blocks that users have: not those that threads keep. Both are of one moment, though kswapd may drain."""
    count = 0
    for _ in range(SETTLE_TRIES):
        blocks = int(words[at.H_BLOCKS])
        count = blocks - sum(kept_blocks(words))
        if blocks == words[at.H_BLOCKS]:
            break
    return count


def shortage(words: Words, gfp: int, nbytes: int = 0, *, mapped: bool = False) -> str:
    """Say what is free, and which knob to turn: the second half of an OutOfMemory.

    ``nbytes``: contiguous bytes wanted; ``mapped``: scattered pages were to be mapped side by side.
    """
    zone = at.ZONE_DMA if gfp & GFP_DMA else at.ZONE_NORMAL
    if zone >= words[at.H_NR_ZONES]:
        return "this arena has no locked zone; make it with Arena(..., lock=bytes)"
    z = zone_words(words, zone)
    free = zone_free_pages(words, zone) * PAGE
    most = zone_pages(words, zone) * PAGE
    if zone == at.ZONE_DMA:
        knob = "raise lock="
    else:
        bound = limit_pages(words) < z[at.Z_END_PFN] - z[at.Z_START_PFN]
        knob = "raise limit= or set_limit()" if bound else "raise the arena's size"
    why = fragmentation.why(free_blocks(words, zone), nbytes) if nbytes <= free else ""
    why += _reserved(words, zone, gfp, free // PAGE, nbytes)
    refused = int(words[at.H_VM_REFUSED_PAGES]) if mapped and zone == at.ZONE_NORMAL else 0
    advice = f"free some, or {knob}"
    if mapped and zone == at.ZONE_DMA:
        why += ", where no vmalloc area can be"
    if refused:
        why = f" but the system refused to map {format_bytes(refused * PAGE)} of scattered pages side by side (mremap)"
        advice = (
            f"raise vm.max_map_count or ulimit -v, let a sandbox allow mremap, or ask for "
            f"{format_bytes(PAGE << int(words[at.H_MAX_ORDER]))} at most, which are in one piece"
        )
    return (
        f"{format_bytes(free)} of {format_bytes(most)} free in zone {ZONE_NAMES[zone]}{why}, largest block "
        f"{format_bytes(largest_free(words, zone))}, {int(words[at.H_LEASES])} buffers leased to Python; {advice}"
    )


def _reserved(words: Words, zone: int, gfp: int, free: int, nbytes: int) -> str:
    """Say that the reserve refused a request, and who could have it; nothing where it did not."""
    lowest = zone_words(words, zone)[at.Z_MIN_PAGES]
    mark = int(mark_for(words, zone, gfp))
    if mark == 0 or free - max(1, -(-nbytes // PAGE)) >= mark:
        return ""
    who = "GFP_ATOMIC may use some" if mark == lowest else f"these flags may use {lowest - mark}"
    return f", the rest is below the min watermark of {lowest} pages: {who}, or lower min_free="
