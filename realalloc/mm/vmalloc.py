"""vmalloc: scattered blocks of pages mapped into one contiguous range of addresses.

1. The window behind the arena holds addresses only: it is PROT_NONE. An area takes whole granules of it, room for its
   pages and at least one guard page, which stays PROT_NONE: running off the end faults.
2. The pages of an area keep their page frames, in KIND_AREA blocks chained by PG_LINK, but their page-table entries move
   into the window (chain.py). RSS counts them once.
3. A freed area stays mapped (lazy.py), up to a bound on H_VM_LAZY_PAGES: a quarter of the arena, and beyond LAZY_PAGES no more
   than what is live, or twice what was freed last. A new area is made of kept ones before it is made of fresh memory.

Invariant: an area's blocks hold exactly V_PAGES pages, and name its first granule in PG_MAP0.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.backlog import account_freed
from realalloc.mm.chain import collect_blocks, free_chain, map_chain, unmap_chain
from realalloc.mm.commit import purgeable_pages
from realalloc.mm.freelist import count_list
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_LAZY,
    AREA_LIVE,
    AREA_NONE,
    AREA_WORDS,
    BAD_AREA,
    BAD_AREA_BLOCKS,
    BAD_AREA_SUM,
    DECAY,
    EINVAL,
    ENOMEM,
    GFP_ZERO_BIT,
    GRANULE_BYTES,
    GRANULE_PAGES,
    GRANULE_SHIFT,
    H_END_PFN,
    H_VM_AREAS,
    H_VM_FREE,
    H_VM_FRONTIER,
    H_VM_LAZY,
    H_VM_LAZY_PAGES,
    H_VM_PAGES,
    H_VM_REFUSED_PAGES,
    H_VMAP,
    HUGE_ORDER,
    HUGE_PAGES,
    KIND_AREA,
    LIST_PREV_MASK,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    PG_LINK,
    PG_MAP0,
    V_BYTES,
    V_FIRST,
    V_LINK,
    V_PAGES,
    V_STAMP,
    V_TAG,
    Y_EPOCHS,
    Y_NS,
    Y_SERVED,
)
from realalloc.mm.lazy import destroy_area_locked, purge_lazy_locked, purge_old_lazy_locked, reuse_lazy, undo_lazy
from realalloc.mm.pages import kind_of, page_at, pages_at
from realalloc.mm.prim import forget
from realalloc.mm.watermark import may_reclaim
from realalloc.mm.window import (
    area_at,
    area_granules,
    area_kind,
    area_offset,
    free_addresses,
    granule_of,
    list_area,
    set_area,
    take_addresses,
)
from realalloc.mm.zeroing import zero_chain

HUGE_GRANULES = (PAGE_BYTES << HUGE_ORDER) // GRANULE_BYTES
LAZY_SHARE_SHIFT = 2  # a quarter
LAZY_PAGES = 1 << 14  # 64 MiB


@kernel
def _new_area(words: Words, pages: int, gfp: int) -> int:
    """Make and map an area; its granule, or ENOMEM with nothing taken.

    Where free pages that hold memory are too few, kept areas are taken apart for theirs, the oldest first: to move page-table
    entries costs less than to fault fresh pages in, and nothing more becomes resident. For less than 2 MiB nobody does that.
    """
    while (
        pages >= HUGE_PAGES
        and may_reclaim(words, gfp) == 1
        and words[H_VM_LAZY_PAGES] > 0
        and purgeable_pages(words) < pages
    ):
        undo_lazy(words, words[H_VM_LAZY] & LIST_PREV_MASK, 0)
    head = collect_blocks(words, pages, gfp)
    if head < 0 and words[H_VM_LAZY_PAGES] > 0 and may_reclaim(words, gfp) == 1:
        purge_lazy_locked(words, 0)
        head = collect_blocks(words, pages, gfp)
    if head < 0:
        return ENOMEM
    count = (pages + GRANULE_PAGES) // GRANULE_PAGES  # at least one page more than needed: the guard
    align = HUGE_GRANULES if pages >= 1 << HUGE_ORDER else 1
    granule = take_addresses(words, count, align)
    if granule == 0 and words[H_VM_LAZY_PAGES] > 0:
        purge_lazy_locked(words, 0)
        granule = take_addresses(words, count, align)
    if granule == 0:
        free_chain(words, head, 0)
        return ENOMEM
    area = area_at(words, granule)
    words[area + V_FIRST] = head
    words[area + V_PAGES] = pages
    pfn = head
    while pfn != 0:
        words[page_at(words, pfn) + PG_MAP0] = granule
        pfn = words[page_at(words, pfn) + PG_LINK]
    mapped = map_chain(words, head, area_offset(words, granule), pages)
    if mapped != pages:
        unmap_chain(words, head, area_offset(words, granule), mapped)
        forget(address_of(words) + area_offset(words, granule), count << GRANULE_SHIFT)
        free_chain(words, head, 0)
        free_addresses(words, granule)
        words[H_VM_REFUSED_PAGES] = pages
        return ENOMEM
    return granule


@entry
def vmalloc_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of a new area in the window, or ENOMEM."""
    pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
    words[H_VM_REFUSED_PAGES] = 0
    if pages <= 0 or pages > words[H_END_PFN]:
        return ENOMEM
    granule = reuse_lazy(words, pages)
    if granule != 0:
        pages = words[area_at(words, granule) + V_PAGES]
        if gfp & GFP_ZERO_BIT:
            zero_chain(words, words[area_at(words, granule) + V_FIRST], area_offset(words, granule))
    else:
        granule = _new_area(words, pages, gfp)
        if granule < 0:
            return granule
    words[area_at(words, granule) + V_BYTES] = nbytes
    words[H_VM_PAGES] += pages
    words[H_VM_AREAS] += 1
    return area_offset(words, granule)


@entry
def vfree_locked(words: Words, offset: int) -> int:
    """Free an area; EINVAL if no live one begins at ``offset``."""
    granule = granule_of(words, offset)
    if granule == 0:
        return EINVAL
    pages = words[area_at(words, granule) + V_PAGES]
    words[H_VM_PAGES] -= pages
    words[H_VM_AREAS] -= 1
    most = min(words[H_END_PFN] >> LAZY_SHARE_SHIFT, max(LAZY_PAGES, words[H_VM_PAGES], 2 * pages))
    oldest = words[H_VM_LAZY] & LIST_PREV_MASK
    while oldest != 0 and pages <= most and words[H_VM_LAZY_PAGES] + pages > most:
        undo_lazy(words, oldest, 0)
        oldest = words[H_VM_LAZY] & LIST_PREV_MASK
    if words[H_VM_LAZY_PAGES] + pages > most:
        destroy_area_locked(words, granule, 0)
        return OK
    set_area(words, granule, area_granules(words, granule), AREA_LAZY)
    list_area(words, H_VM_LAZY, granule)
    words[H_VM_LAZY_PAGES] += pages
    words[area_at(words, granule) + V_STAMP] = words[DECAY + Y_EPOCHS]
    account_freed(words, pages)
    if words[DECAY + Y_NS] == 0 or words[DECAY + Y_SERVED] == 0:
        purge_old_lazy_locked(words)
    return OK


@entry
def validate_area_locked(words: Words, granule: int) -> int:
    """Check one live or lazy area; return its pages or a broken invariant."""
    pfn = words[area_at(words, granule) + V_FIRST]
    wanted = words[area_at(words, granule) + V_PAGES]
    pages = 0
    if wanted > words[H_END_PFN]:
        return BAD_AREA_BLOCKS
    while pfn != 0:
        if pages >= wanted or kind_of(words, pfn) != KIND_AREA or words[page_at(words, pfn) + PG_MAP0] != granule:
            return BAD_AREA_BLOCKS
        pages += pages_at(words, pfn)
        pfn = words[page_at(words, pfn) + PG_LINK]
    if pages != wanted or pages >= area_granules(words, granule) * GRANULE_PAGES:
        return BAD_AREA_BLOCKS
    return pages


@entry
def validate_vmalloc_locked(words: Words) -> int:
    """Check the invariants at the heads of this file and of window.py; OK or the broken one."""
    granule = 1
    pages_live = 0
    pages_lazy = 0
    free_areas = 0
    lazy_areas = 0
    live_areas = 0
    previous = AREA_NONE
    while granule < words[H_VM_FRONTIER]:
        kind = area_kind(words, granule)
        count = area_granules(words, granule)
        if kind == AREA_NONE or not 0 < count <= words[H_VM_FRONTIER] - granule:
            return BAD_AREA
        if words[area_at(words, granule + count - 1) + V_TAG] != count:
            return BAD_AREA
        if kind == AREA_FREE:
            if previous == AREA_FREE:
                return BAD_AREA
            free_areas += 1
        else:
            pages = validate_area_locked(words, granule)
            if pages < 0:
                return pages
            pages_live += pages if kind == AREA_LIVE else 0
            pages_lazy += pages if kind == AREA_LAZY else 0
            live_areas += 1 if kind == AREA_LIVE else 0
            lazy_areas += 1 if kind == AREA_LAZY else 0
        previous = kind
        granule += count
    if granule != words[H_VM_FRONTIER] or live_areas != words[H_VM_AREAS]:
        return BAD_AREA
    if pages_live != words[H_VM_PAGES] or pages_lazy != words[H_VM_LAZY_PAGES]:
        return BAD_AREA_SUM
    links = words[H_VMAP] + V_LINK
    if count_list(words, H_VM_FREE, links, AREA_WORDS, granule, free_areas) != free_areas:
        return BAD_AREA
    lazy = count_list(words, H_VM_LAZY, links, AREA_WORDS, granule, lazy_areas)
    return OK if lazy == lazy_areas else BAD_AREA
