"""Pages are grouped by lifetime: slabs and thread records (UNMOVABLE) apart from blocks, runs and areas (MOVABLE).

The first are small and live long, the others come and go whole: with one slab page in each page block of 2 MiB, none of
them is ever free again. A page block is UNMOVABLE as long as it has an unmovable page, or is pinned (not wholly of one zone,
it can never be free whole); otherwise it is MOVABLE. Free blocks below its order are on lists by type; others have none.

    UNMOVABLE asks   its own smallest; the largest of MOVABLE, whose page block it claims; a whole page block, listed or fresh
    MOVABLE asks     its own smallest; a whole page block, listed or fresh; the smallest of UNMOVABLE, which stays so

(kernel: __rmqueue, __rmqueue_claim, __rmqueue_steal; it claims by a count of half the page block, and prefers whole ones.)
Invariant: M_BLOCKS counts the pages of KIND_SLAB and KIND_RECORD in each page block; a free block below the page block's
order is on the list of the type that this count gives; M_COUNTS counts the UNMOVABLE lists, Z_COUNTS both.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.freelist import count_list, first, next_of, push_back, push_front, remove
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_FREE_COUNT,
    BAD_FREE_LIST,
    BAD_PAGE_BLOCK,
    H_END_PFN,
    H_MAX_ORDER,
    H_META_PAGES,
    H_MOBILITY,
    H_NR_ZONES,
    KIND_FREE,
    KIND_RECORD,
    KIND_SLAB,
    M_BLOCKS,
    M_COUNTS,
    M_HEADS,
    M_PINNED,
    M_WORDS,
    OK,
    PAGE_STRUCT_WORDS,
    Z_COUNTS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    Z_HEADS,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.pages import kind_of, links_at, order_at, pages_at, zone_at, zone_of


@kernel
def is_unmovable(kind: int) -> int:
    """Tell whether blocks of a kind are small and live long."""
    return 1 if kind == KIND_SLAB or kind == KIND_RECORD else 0


@kernel
def _groups_at(words: Words, zone: int) -> int:
    return words[H_MOBILITY] + zone * M_WORDS


@kernel
def page_block_order(words: Words, zone: int) -> int:
    """Return the order of a zone's page blocks, 0 if it is not grouped."""
    return words[zone_at(zone) + Z_PAGE_BLOCK_ORDER]


@kernel
def _count_at(words: Words, pfn: int, order: int) -> int:
    return words[H_MOBILITY] + M_BLOCKS + (pfn >> order)


@kernel
def _is_grouped(words: Words, zone: int, pfn: int, order: int) -> int:
    """Tell whether a free block's place is on an UNMOVABLE list, by what is in its page block."""
    whole = page_block_order(words, zone)
    return 1 if order < whole and words[_count_at(words, pfn, whole)] != 0 else 0


@kernel
def head_for(words: Words, zone: int, order: int, unmovable: int) -> int:
    """Return the head of a type's list, of an order below the page blocks' if it is UNMOVABLE."""
    return _groups_at(words, zone) + M_HEADS + order if unmovable == 1 else zone_at(zone) + Z_HEADS + order


@kernel
def count_listed(words: Words, zone: int, order: int, unmovable: int) -> int:
    """Count the free blocks of an order on the lists of one type."""
    own = words[_groups_at(words, zone) + M_COUNTS + order] if order < page_block_order(words, zone) else 0
    return own if unmovable == 1 else words[zone_at(zone) + Z_COUNTS + order] - own


@kernel
def _head_of(words: Words, zone: int, pfn: int, order: int) -> int:
    return head_for(words, zone, order, _is_grouped(words, zone, pfn, order))


@kernel
def list_push(words: Words, zone: int, pfn: int, order: int, at_end: int) -> None:
    """Put a free block on the list where it belongs."""
    head = zone_at(zone) + Z_HEADS + order
    if _is_grouped(words, zone, pfn, order) == 1:
        head = _groups_at(words, zone) + M_HEADS + order
        words[head - M_HEADS + M_COUNTS] += 1
    if at_end:
        push_back(words, head, links_at(words), PAGE_STRUCT_WORDS, pfn)
    else:
        push_front(words, head, links_at(words), PAGE_STRUCT_WORDS, pfn)
    words[zone_at(zone) + Z_COUNTS + order] += 1


@kernel
def list_take(words: Words, zone: int, pfn: int, order: int) -> None:
    """Take a free block off its list."""
    head = zone_at(zone) + Z_HEADS + order
    if _is_grouped(words, zone, pfn, order) == 1:
        head = _groups_at(words, zone) + M_HEADS + order
        words[head - M_HEADS + M_COUNTS] -= 1
    remove(words, head, links_at(words), PAGE_STRUCT_WORDS, pfn)
    words[zone_at(zone) + Z_COUNTS + order] -= 1


@kernel
def _smallest(words: Words, heads: int, order: int, end: int) -> int:
    """Return the first free block of the lowest order in ``[order, end)`` that has one, or 0."""
    for k in range(order, end):
        if words[heads + k] != 0:
            return words[heads + k] >> 32
    return 0


@kernel
def _largest(words: Words, heads: int, order: int, end: int) -> int:
    for k in range(end - 1, order - 1, -1):
        if words[heads + k] != 0:
            return words[heads + k] >> 32
    return 0


@kernel
def _is_begun(words: Words, zone: int, whole: int) -> int:
    """Tell whether the frontier stands in a page block, or before one that the zone's end cuts off."""
    frontier = words[zone_at(zone) + Z_FRONTIER_PFN]
    left = words[zone_at(zone) + Z_END_PFN] - frontier
    return 1 if left > 0 and (frontier & ((1 << whole) - 1) != 0 or left < 1 << whole) else 0


@kernel
def find_free(words: Words, zone: int, order: int, unmovable: int) -> int:
    """Choose the free block that serves a request; return its pfn, 0 if the frontier has to move first."""
    heads = zone_at(zone) + Z_HEADS
    whole = page_block_order(words, zone)
    if order < whole:
        own = _groups_at(words, zone) + M_HEADS if unmovable == 1 else heads
        pfn = _smallest(words, own, order, whole)
        if pfn == 0 and unmovable == 1:
            pfn = _largest(words, heads, order, whole)
        if pfn != 0 or _is_begun(words, zone, whole) == 1:
            return pfn
        order = whole
    return _smallest(words, heads, order, words[H_MAX_ORDER] + 1)


@kernel
def find_foreign(words: Words, zone: int, order: int) -> int:
    """Choose the free block of UNMOVABLE that serves a request for MOVABLE pages, or 0."""
    return _smallest(words, _groups_at(words, zone) + M_HEADS, order, page_block_order(words, zone))


@kernel
def _regroup(words: Words, zone: int, pfn: int, whole: int, unmovable: int) -> None:
    """Move the free blocks of a page block to the lists of the other type."""
    begin = pfn >> whole << whole
    at = max(begin, words[zone_at(zone) + Z_START_PFN])
    end = min(begin + (1 << whole), words[zone_at(zone) + Z_FRONTIER_PFN])
    while at < end:  # it may begin inside a run, whose pages are stepped over one by one
        if kind_of(words, at) == KIND_FREE:
            order = order_at(words, at)
            remove(words, head_for(words, zone, order, 1 - unmovable), links_at(words), PAGE_STRUCT_WORDS, at)
            push_back(words, head_for(words, zone, order, unmovable), links_at(words), PAGE_STRUCT_WORDS, at)
            words[_groups_at(words, zone) + M_COUNTS + order] += 2 * unmovable - 1
        at += pages_at(words, at)


@kernel
def hold_block(words: Words, zone: int, pfn: int, pages: int) -> None:
    """Hear that a part of the free block at ``pfn``, still listed, is going to be unmovable."""
    whole = page_block_order(words, zone)
    if whole == 0:
        return
    count = _count_at(words, pfn, whole)
    if words[count] == 0 and order_at(words, pfn) < whole:
        _regroup(words, zone, pfn, whole, 1)
    words[count] += pages


@kernel
def release_block(words: Words, zone: int, pfn: int, pages: int) -> None:
    """Hear that unmovable pages are going to be free: they are not listed yet."""
    whole = page_block_order(words, zone)
    if whole == 0:
        return
    count = _count_at(words, pfn, whole)
    if words[count] == pages:
        _regroup(words, zone, pfn, whole, 0)
    words[count] -= pages


@entry
def ungroup(words: Words) -> int:
    """Put all free blocks on the lists without a type, and group no more. For comparisons: nobody else needs it."""
    lock(words)
    for zone in range(words[H_NR_ZONES]):
        groups = _groups_at(words, zone)
        for order in range(page_block_order(words, zone)):
            while words[groups + M_HEADS + order] != 0:
                pfn = words[groups + M_HEADS + order] >> 32
                remove(words, groups + M_HEADS + order, links_at(words), PAGE_STRUCT_WORDS, pfn)
                push_back(words, zone_at(zone) + Z_HEADS + order, links_at(words), PAGE_STRUCT_WORDS, pfn)
            words[groups + M_COUNTS + order] = 0
        words[zone_at(zone) + Z_PAGE_BLOCK_ORDER] = 0
    unlock(words)
    return OK


@kernel
def _validate_list(words: Words, zone: int, order: int, unmovable: int) -> int:
    head = head_for(words, zone, order, unmovable)
    count = count_listed(words, zone, order, unmovable)
    z = zone_at(zone)
    if count_list(words, head, links_at(words), PAGE_STRUCT_WORDS, words[H_END_PFN], count) != count:
        return BAD_FREE_LIST
    pfn = first(words, head)
    while pfn != 0:
        if pfn & ((1 << order) - 1) != 0 or kind_of(words, pfn) != KIND_FREE or order_at(words, pfn) != order:
            return BAD_FREE_LIST
        if pfn < words[z + Z_START_PFN] or pfn + (1 << order) > words[z + Z_FRONTIER_PFN]:
            return BAD_FREE_LIST
        if _head_of(words, zone, pfn, order) != head:
            return BAD_PAGE_BLOCK
        pfn = next_of(words, links_at(words), PAGE_STRUCT_WORDS, pfn)
    return OK


@kernel
def validate_lists(words: Words, zone: int) -> int:
    """Check the lists of both types, and that they add up to the zone's free pages; OK or the broken invariant."""
    listed = 0
    for order in range(words[H_MAX_ORDER] + 1):
        status = _validate_list(words, zone, order, 0)
        if status == OK and order < page_block_order(words, zone):
            status = _validate_list(words, zone, order, 1)
        if status != OK:
            return status
        listed += words[zone_at(zone) + Z_COUNTS + order] << order
    return OK if listed == words[zone_at(zone) + Z_FREE_PAGES] else BAD_FREE_COUNT


@kernel
def _count_unmovable(words: Words, begin: int, end: int) -> int:
    pages = 0
    pfn = max(begin, words[H_META_PAGES])
    while pfn < end:
        if is_unmovable(kind_of(words, pfn)) == 1 and page_block_order(words, zone_of(words, pfn)) != 0:
            pages += pages_at(words, pfn)
        pfn += pages_at(words, pfn)
    return pages


@kernel
def validate_page_blocks(words: Words, zone: int) -> int:
    """Check the counts of unmovable pages up to the frontier; OK or BAD_PAGE_BLOCK."""
    whole = page_block_order(words, zone)
    pfn = words[zone_at(zone) + Z_START_PFN] >> whole << whole
    while whole != 0 and pfn < words[zone_at(zone) + Z_FRONTIER_PFN]:
        end = min(pfn + (1 << whole), words[zone_at(ZONE_NORMAL) + Z_FRONTIER_PFN])
        if words[_count_at(words, pfn, whole)] & (M_PINNED - 1) != _count_unmovable(words, pfn, end):
            return BAD_PAGE_BLOCK
        pfn += 1 << whole
    return OK
