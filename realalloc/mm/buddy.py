"""The page allocator: binary buddies in zones, with a frontier behind which nothing was ever touched.

1. A block of order k is ``1 << k`` pages, aligned to its size. A request takes the free block that mobility.py chooses and
   hands out its lower half until it fits; the upper halves go on the free lists (kernel: ``__rmqueue``, ``expand``).
2. A freed block merges with its buddy ``pfn ^ (1 << order)`` while that is free, whole and of the same order
   (kernel: ``__free_one_page``). The buddy test stays inside ``[start, frontier)`` of the zone.
3. Pages in ``[frontier, end)`` are free without being on a list: their struct pages are zero and not resident. When no
   list is to serve, the frontier moves up by one aligned block. So a 1 TiB arena costs what it uses.

Invariant, per zone:     start + listed free pages + allocated pages = frontier <= end
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.backlog import account_freed
from realalloc.mm.bits import ctz
from realalloc.mm.commit import MIN_RUN_ORDER, account_listed, commit_locked, dirty_pages, drop_locked, is_huge
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_COMMITTED,
    BAD_PAGE_STATE,
    BAD_PAGE_SUM,
    BAD_UNMERGED,
    DECAY,
    ENOMEM,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_LIMIT_PAGES,
    H_MAX_ORDER,
    H_NR_ZONES,
    H_PEAK_ALLOCATED_PAGES,
    HUGE_ORDER,
    HUGE_PAGES,
    KIND_FREE,
    KIND_MASK,
    KIND_NONE,
    KIND_TAIL,
    MAX_MAX_ORDER,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    PG_LINK,
    Y_LOW,
    Y_NS,
    Z_ALLOCS,
    Z_END_PFN,
    Z_FREE_PAGES,
    Z_FREES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_MASK,
    ZONE_NORMAL,
    ZONE_SHIFT,
)
from realalloc.mm.mobility import (
    find_foreign,
    find_free,
    hold_block,
    is_unmovable,
    list_push,
    list_take,
    page_block_order,
    release_block,
    validate_lists,
    validate_page_blocks,
)
from realalloc.mm.pages import (
    count_resident,
    info_at,
    kind_of,
    order_at,
    page_at,
    pages_at,
    set_resident_locked,
    zone_at,
    zone_of,
)
from realalloc.mm.zeroing import zero_block_locked


@kernel
def _list_add(words: Words, zone: int, pfn: int, order: int, at_end: int) -> None:
    words[info_at(pfn)] = KIND_FREE | order << ORDER_SHIFT | zone << ZONE_SHIFT
    if zone == ZONE_NORMAL:
        account_listed(words, pfn, order, 1)
    list_push(words, zone, pfn, order, at_end)


@kernel
def list_remove(words: Words, zone: int, pfn: int, order: int) -> None:
    """Take a free block off its list; its first page becomes KIND_NONE."""
    words[info_at(pfn)] = KIND_NONE
    if zone == ZONE_NORMAL:
        account_listed(words, pfn, order, -1)
    list_take(words, zone, pfn, order)


@kernel
def is_free_block(words: Words, zone: int, pfn: int, order: int) -> int:
    """Tell whether a free block of exactly this order begins at ``pfn``, inside the zone's reached part."""
    z = zone_at(zone)
    if pfn < words[z + Z_START_PFN] or pfn + (1 << order) > words[z + Z_FRONTIER_PFN]:
        return 0
    wanted = KIND_FREE | order << ORDER_SHIFT
    return 1 if words[info_at(pfn)] & (KIND_MASK | ORDER_MASK << ORDER_SHIFT) == wanted else 0


@entry
def insert_free_locked(words: Words, zone: int, pfn: int, order: int) -> int:
    """Put a block on the free lists, merged as far as it goes; return pfn << 8 | order of what became of it. Page counters are
    the caller's.
    """
    max_order = words[H_MAX_ORDER]
    while order < max_order:
        buddy = pfn ^ (1 << order)
        if is_free_block(words, zone, buddy, order) == 0:
            break
        list_remove(words, zone, buddy, order)
        pfn &= ~(1 << order)
        order += 1
    at_end = 0
    if order < max_order - 1:  # likely to merge soon: keep it off the front (kernel: buddy_merge_likely)
        at_end = is_free_block(words, zone, (pfn & ~(1 << order)) ^ (1 << (order + 1)), order + 1)
    _list_add(words, zone, pfn, order, at_end)
    return pfn << 8 | order


@kernel
def _grow_once(words: Words, zone: int) -> int:
    z = zone_at(zone)
    pfn = words[z + Z_FRONTIER_PFN]
    left = words[z + Z_END_PFN] - pfn
    if left <= 0:
        return 0
    order = min(words[H_MAX_ORDER], ctz(pfn))
    while 1 << order > left:
        order -= 1
    words[z + Z_FRONTIER_PFN] = pfn + (1 << order)
    words[z + Z_FREE_PAGES] += 1 << order
    insert_free_locked(words, zone, pfn, order)
    return 1 << order


@entry
def grow(words: Words, zone: int) -> int:
    """Move the frontier up by the largest aligned block that fits, and on to the end of a huge unit; return the pages, 0 at
    the zone's end.
    """
    pages = _grow_once(words, zone)
    frontier = zone_at(zone) + Z_FRONTIER_PFN
    while pages != 0 and words[frontier] & (HUGE_PAGES - 1) != 0 and is_huge(words, words[frontier] >> HUGE_ORDER) == 1:
        pages += _grow_once(words, zone)
    return pages


@kernel
def reach_page_block(words: Words, zone: int) -> None:
    """Move a lowered frontier up to the end of its page block: whether that is free whole has to be seen on the lists."""
    z = zone_at(zone)
    mask = (1 << page_block_order(words, zone)) - 1
    while words[z + Z_FRONTIER_PFN] & mask != 0 and words[z + Z_FRONTIER_PFN] != words[z + Z_START_PFN]:
        if _grow_once(words, zone) == 0:
            return


@kernel
def account_allocated(words: Words, pages: int) -> None:
    """Count pages, which are committed, as allocated."""
    allocated = words[H_ALLOCATED_PAGES] + pages
    words[H_ALLOCATED_PAGES] = allocated
    words[DECAY + Y_LOW] = min(words[DECAY + Y_LOW], words[H_COMMITTED_PAGES] - allocated)
    words[H_PEAK_ALLOCATED_PAGES] = max(words[H_PEAK_ALLOCATED_PAGES], allocated)


@entry
def take_block_locked(words: Words, zone: int, order: int, unmovable: int) -> int:
    """Take a block off the lists, for unmovable pages or others, and split it down to ``order``; return its pfn or 0."""
    pfn = find_free(words, zone, order, unmovable)
    while pfn == 0 and grow(words, zone) != 0:
        pfn = find_free(words, zone, order, unmovable)
    if pfn == 0 and unmovable == 0:
        pfn = find_foreign(words, zone, order)
    if pfn == 0:
        return 0
    if unmovable == 1:
        hold_block(words, zone, pfn, 1 << order)
    found = order_at(words, pfn)
    list_remove(words, zone, pfn, found)
    while found > order:
        found -= 1
        _list_add(words, zone, pfn + (1 << found), found, 0)
    return pfn


@entry
def alloc_part_locked(words: Words, zone: int, order: int, kind: int, zero: int, asked: int) -> int:
    """Allocate a block of one kind; return its pfn or ENOMEM. ``zero`` asks for pages that read as zero; its first ``asked``
    pages are those that are going to be used.
    """
    if order > words[H_MAX_ORDER]:
        return ENOMEM
    pfn = take_block_locked(words, zone, order, is_unmovable(kind))
    if pfn == 0:
        return ENOMEM
    if zero != 0:
        zero_block_locked(words, zone, pfn, order, asked)
    if commit_locked(words, pfn, 1 << order, asked) != OK:
        if is_unmovable(kind) == 1:
            release_block(words, zone, pfn, 1 << order)
        insert_free_locked(words, zone, pfn, order)
        return ENOMEM
    z = zone_at(zone)
    words[z + Z_FREE_PAGES] -= 1 << order
    words[z + Z_ALLOCS] += 1
    words[info_at(pfn)] = kind | order << ORDER_SHIFT | zone << ZONE_SHIFT
    words[page_at(words, pfn) + PG_LINK] = 0
    account_allocated(words, 1 << order)
    return pfn


@kernel
def pages_of_order(order: int) -> int:
    """Return the pages of a block of an order, and some number for what is none: it is refused where it is looked at."""
    return 1 << min(max(order, 0), MAX_MAX_ORDER)


@entry
def alloc_block_locked(words: Words, zone: int, order: int, kind: int, zero: int) -> int:
    """Allocate a block of which all pages are going to be used."""
    return alloc_part_locked(words, zone, order, kind, zero, pages_of_order(order))


@kernel
def _put_back(words: Words, zone: int, pfn: int, order: int) -> None:
    """Put freed pages on the lists; without decay, the memory of what they have merged to goes back at once."""
    merged = insert_free_locked(words, zone, pfn, order)
    if words[DECAY + Y_NS] == 0 and merged & 0xFF >= MIN_RUN_ORDER and zone == ZONE_NORMAL:
        drop_locked(words, merged >> 8, 1 << (merged & 0xFF), 0)


@entry
def free_block_locked(words: Words, pfn: int) -> int:
    """Free a block whose first page is ``pfn``; the caller has checked that it is one."""
    info = words[info_at(pfn)]
    order = info >> ORDER_SHIFT & ORDER_MASK
    zone = info >> ZONE_SHIFT & ZONE_MASK
    z = zone_at(zone)
    if is_unmovable(info & KIND_MASK) == 1:
        release_block(words, zone, pfn, 1 << order)
    words[info_at(pfn)] = KIND_NONE
    words[z + Z_FREE_PAGES] += 1 << order
    words[z + Z_FREES] += 1
    words[H_ALLOCATED_PAGES] -= 1 << order
    _put_back(words, zone, pfn, order)
    account_freed(words, 1 << order)
    return OK


@entry
def insert_span_locked(words: Words, zone: int, pfn: int, pages: int) -> int:
    """Put any contiguous pages on the free lists, as the largest aligned blocks. Page counters are the caller's."""
    end = pfn + pages
    while pfn < end:
        order = min(words[H_MAX_ORDER], ctz(pfn))
        while pfn + (1 << order) > end:
            order -= 1
        _put_back(words, zone, pfn, order)
        pfn += 1 << order
    return OK


@entry
def free_span_locked(words: Words, zone: int, pfn: int, pages: int) -> int:
    """Free any contiguous pages."""
    words[zone_at(zone) + Z_FREE_PAGES] += pages
    words[H_ALLOCATED_PAGES] -= pages
    insert_span_locked(words, zone, pfn, pages)
    account_freed(words, pages)
    return OK


@entry
def reach(words: Words, zone: int, pages: int) -> int:
    """Move the frontier over the first ``pages`` pages of a fresh zone and mark them resident: they have been made so."""
    lock(words)
    z = zone_at(zone)
    while words[z + Z_FRONTIER_PFN] - words[z + Z_START_PFN] < pages:
        grow(words, zone)
    set_resident_locked(words, words[z + Z_START_PFN], pages)
    unlock(words)
    return pages


@kernel
def free_pages_total(words: Words, zone: int) -> int:
    """Count pages of a zone that can be had: listed ones and those behind the frontier, in the normal one no more than the
    limit admits.
    """
    z = zone_at(zone)
    free = words[z + Z_FREE_PAGES] + words[z + Z_END_PFN] - words[z + Z_FRONTIER_PFN]
    if zone != ZONE_NORMAL:
        return free
    return max(0, min(free, words[H_LIMIT_PAGES] - words[H_COMMITTED_PAGES] + dirty_pages(words)))


@kernel
def _validate_blocks(words: Words, zone: int) -> int:
    """Walk block by block from start to frontier; return allocated pages or a broken invariant."""
    z = zone_at(zone)
    pfn = words[z + Z_START_PFN]
    free = 0
    allocated = 0
    while pfn < words[z + Z_FRONTIER_PFN]:
        kind = kind_of(words, pfn)
        pages = pages_at(words, pfn)
        if kind == KIND_NONE or kind == KIND_TAIL or zone_of(words, pfn) != zone or pages <= 0:
            return BAD_PAGE_STATE
        for inner in range(pfn + 1, min(pfn + pages, words[z + Z_FRONTIER_PFN])):
            inner_kind = words[info_at(inner)] & KIND_MASK
            if inner_kind != KIND_NONE and inner_kind != KIND_TAIL:
                return BAD_PAGE_STATE
        if kind == KIND_FREE:
            free += pages
            order = order_at(words, pfn)
            if order < words[H_MAX_ORDER] and is_free_block(words, zone, pfn ^ (1 << order), order) == 1:
                return BAD_UNMERGED
        else:
            allocated += pages
        pfn += pages
    if pfn != words[z + Z_FRONTIER_PFN] or free != words[z + Z_FREE_PAGES]:
        return BAD_PAGE_SUM
    if words[z + Z_FRONTIER_PFN] > words[z + Z_END_PFN]:
        return BAD_PAGE_SUM
    return allocated


@entry
def validate_buddy(words: Words) -> int:
    """Check the invariants at the heads of this file and of mobility.py; OK or the broken one."""
    lock(words)
    allocated = 0
    resident = 0
    status = OK
    for zone in range(words[H_NR_ZONES]):
        resident += count_resident(words, words[zone_at(zone) + Z_START_PFN], words[zone_at(zone) + Z_FRONTIER_PFN])
        if status == OK:
            status = validate_lists(words, zone)
        if status == OK:
            found = _validate_blocks(words, zone)
            if found < 0:
                status = found
            allocated += found
        if status == OK:
            status = validate_page_blocks(words, zone)
    if status == OK and allocated != words[H_ALLOCATED_PAGES]:
        status = BAD_PAGE_SUM
    if status == OK and (resident != words[H_COMMITTED_PAGES] or resident > words[H_LIMIT_PAGES]):
        status = BAD_COMMITTED
    unlock(words)
    return status
