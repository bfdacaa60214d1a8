"""Growing a block without copying it: into free neighbours, or by moving its page-table entries.

    a page block (KIND_LARGE)   merges with the free buddies behind it, while it is the lower one of each pair
    a vmalloc area              takes more pages; where the addresses behind it are not free, its page-table entries move to a
                                range that is long enough (mremap), its pages stay what they are

Guarantees: the contents stay, whatever fails: where entries cannot move back, bytes are copied. ENOMEM changes nothing.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.bits import order_of_pages
from realalloc.mm.buddy import account_allocated, grow, insert_span_locked, is_free_block, list_remove
from realalloc.mm.chain import collect_blocks, free_chain, map_chain, move_range, unmap_chain
from realalloc.mm.commit import commit_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import ksize_locked
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_LIVE,
    AREA_NONE,
    EINVAL,
    ENOMEM,
    GFP_ORDINARY,
    GRANULE_PAGES,
    GRANULE_SHIFT,
    H_CLOSED,
    H_MAX_ORDER,
    H_VM_FREE,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_PAGES,
    H_VM_START_BYTES,
    HUGE_ORDER,
    KIND_LARGE,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_WORDS,
    PG_LINK,
    PG_MAP0,
    V_BYTES,
    V_FIRST,
    V_INFO,
    V_PAGES,
    WORD_BYTES,
    Z_FREE_PAGES,
    Z_FRONTIER_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.pages import info_at, kind_of, order_at, page_at, zone_at, zone_of
from realalloc.mm.pcp import block_info
from realalloc.mm.prim import forget
from realalloc.mm.reclaim import reclaim_locked
from realalloc.mm.vmalloc import HUGE_GRANULES
from realalloc.mm.watermark import may_take
from realalloc.mm.window import (
    area_at,
    area_granules,
    area_kind,
    area_offset,
    free_addresses,
    granule_of,
    set_area,
    take_addresses,
    unlist_area,
)


@kernel
def _grow_block_locked(words: Words, pfn: int, order: int) -> int:
    """Grow a large block to ``order`` over its free buddies; ENOMEM, with nothing changed, if one is in use."""
    have = order_at(words, pfn)
    if order > words[H_MAX_ORDER] or pfn & ((1 << order) - 1) != 0 or zone_of(words, pfn) != ZONE_NORMAL:
        return ENOMEM
    z = zone_at(ZONE_NORMAL)
    more = (1 << order) - (1 << have)
    if may_take(words, ZONE_NORMAL, more, GFP_ORDINARY) == 0:
        return ENOMEM
    for k in range(have, order):
        if words[z + Z_FRONTIER_PFN] == pfn + (1 << k):  # never reached: free, but on no list
            grow(words, ZONE_NORMAL)
        if is_free_block(words, ZONE_NORMAL, pfn + (1 << k), k) == 0:
            return ENOMEM
    for k in range(have, order):
        list_remove(words, ZONE_NORMAL, pfn + (1 << k), k)
    if commit_locked(words, pfn + (1 << have), more, 0) != OK:
        insert_span_locked(words, ZONE_NORMAL, pfn + (1 << have), more)
        return ENOMEM
    words[z + Z_FREE_PAGES] -= more
    account_allocated(words, more)
    words[info_at(pfn)] = block_info(order, KIND_LARGE)
    return OK


@kernel
def _extend_addresses(words: Words, granule: int, count: int) -> int:
    """Give a live area ``count`` granules where it is; 0, with nothing changed, if those behind it are in use."""
    have = area_granules(words, granule)
    behind = granule + have
    if have >= count:
        return granule
    if behind == words[H_VM_FRONTIER]:
        if granule + count > words[H_VM_GRANULES]:
            return 0
        words[H_VM_FRONTIER] = granule + count
    else:
        size = area_granules(words, behind) if area_kind(words, behind) == AREA_FREE else 0
        if have + size < count:
            return 0
        unlist_area(words, H_VM_FREE, behind)
        words[area_at(words, behind) + V_INFO] = AREA_NONE
        set_area(words, granule, count, AREA_LIVE)
        if have + size > count:
            set_area(words, granule + count, have + size - count, AREA_LIVE)
            free_addresses(words, granule + count)
    set_area(words, granule, count, AREA_LIVE)
    return granule


@kernel
def _move_contents(words: Words, source: int, target: int, pages: int) -> int:
    """Move an area's page-table entries; where that fails half-way, copy back what had moved, and return ENOMEM."""
    status = move_range(words, source, target, pages)
    if status == OK:
        return OK
    moved = -status - 1
    at = source // WORD_BYTES
    begin = target // WORD_BYTES
    for k in range(moved * PAGE_WORDS):
        words[at + k] = words[begin + k]
    return ENOMEM


@kernel
def _grow_area_locked(words: Words, granule: int, nbytes: int) -> int:
    """Grow a live area; return the granule that it begins at now, or ENOMEM with nothing changed."""
    have = words[area_at(words, granule) + V_PAGES]
    pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
    head = collect_blocks(words, pages - have, GFP_ORDINARY)
    if head < 0:
        return ENOMEM
    count = (pages + GRANULE_PAGES) // GRANULE_PAGES  # at least one page more than needed: the guard
    target = _extend_addresses(words, granule, count) if pages < 1 << HUGE_ORDER or granule % HUGE_GRANULES == 0 else 0
    if target == 0:
        target = take_addresses(words, count, HUGE_GRANULES if pages >= 1 << HUGE_ORDER else 1)
    if target == 0:
        free_chain(words, head, 0)
        return ENOMEM
    behind = area_offset(words, target) + (have << PAGE_SHIFT)
    mapped = map_chain(words, head, behind, pages - have)
    failed = mapped != pages - have
    if not failed and target != granule:
        failed = _move_contents(words, area_offset(words, granule), area_offset(words, target), have) != OK
    if failed:
        unmap_chain(words, head, behind, mapped)
        free_chain(words, head, 0)
        if target != granule:
            forget(address_of(words) + area_offset(words, target), count << GRANULE_SHIFT)
            free_addresses(words, target)
        else:
            forget(address_of(words) + behind, (pages - have) << PAGE_SHIFT)
        return ENOMEM
    first = words[area_at(words, granule) + V_FIRST]
    last = first
    pfn = first
    while pfn != 0:
        words[page_at(words, pfn) + PG_MAP0] = target
        last = pfn
        pfn = words[page_at(words, pfn) + PG_LINK]
    words[page_at(words, last) + PG_LINK] = head
    pfn = head
    while pfn != 0:
        words[page_at(words, pfn) + PG_MAP0] = target
        pfn = words[page_at(words, pfn) + PG_LINK]
    if target != granule:
        forget(address_of(words) + area_offset(words, granule), have << PAGE_SHIFT)
        free_addresses(words, granule)
    area = area_at(words, target)
    words[area + V_FIRST] = first
    words[area + V_PAGES] = pages
    words[area + V_BYTES] = nbytes
    words[H_VM_PAGES] += pages - have
    return target


@kernel
def _grow_locked(words: Words, offset: int, nbytes: int) -> int:
    if offset >= words[H_VM_START_BYTES]:
        granule = _grow_area_locked(words, granule_of(words, offset), nbytes)
        return area_offset(words, granule) if granule > 0 else ENOMEM
    pfn = offset >> PAGE_SHIFT
    if kind_of(words, pfn) != KIND_LARGE:
        return ENOMEM
    order = order_of_pages((nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT)
    return offset if _grow_block_locked(words, pfn, order) == OK else ENOMEM


@entry
def krealloc_in_place(words: Words, offset: int, nbytes: int) -> int:
    """Make the live block at ``offset`` have ``nbytes`` without copying; return its offset, which is another one where an
    area moved with its pages. ENOMEM if that cannot be, EINVAL if no live block begins there; both change nothing.
    """
    lock(words)
    have = ksize_locked(words, offset)
    result = offset
    if have <= 0 or nbytes <= 0:
        result = EINVAL
    elif nbytes > have:
        result = ENOMEM
        if words[H_CLOSED] == 0:
            result = _grow_locked(words, offset, nbytes)
            if result < 0 and offset >= words[H_VM_START_BYTES] and reclaim_locked(words) > 0:
                result = _grow_locked(words, offset, nbytes)
    unlock(words)
    return result
