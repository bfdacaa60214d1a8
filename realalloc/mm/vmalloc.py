"""vmalloc: scattered blocks of pages mapped into one contiguous range of addresses.

1. The window behind the arena holds addresses only: it is PROT_NONE. An area takes whole granules of it, room for its
   pages and at least one guard page, which stays PROT_NONE: running off the end faults.
2. The pages of an area keep their page frames, in KIND_AREA blocks chained by PG_LINK, but their page-table entries move
   into the window (mremap with MREMAP_DONTUNMAP, one call for each run of adjacent pages). RSS counts them once.
3. A freed area stays mapped (lazy), to be handed out again without any call, for as many pages or up to an eighth less.
   Memory pressure, ``trim``, decay and a bound on H_VM_LAZY_PAGES send pages back, the oldest area first: a quarter of the
   arena, and beyond LAZY_PAGES no more than what is live, or twice what was freed last. A new area is made of them before it
   is made of fresh memory.

Invariant: an area's blocks hold exactly V_PAGES pages, and name its first granule in PG_MAP0.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.backlog import account_freed
from realalloc.mm.buddy import alloc_block_locked, free_block_locked, free_pages_total
from realalloc.mm.commit import purgeable_pages, refuse_huge
from realalloc.mm.freelist import count_list, first
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
    DECAY_EPOCHS,
    EINVAL,
    ENOMEM,
    GFP_ZERO_BIT,
    GRANULE_BYTES,
    GRANULE_PAGES,
    GRANULE_SHIFT,
    H_END_PFN,
    H_MAX_ORDER,
    H_VM_AREAS,
    H_VM_FREE,
    H_VM_FRONTIER,
    H_VM_LAZY,
    H_VM_LAZY_PAGES,
    H_VM_PAGES,
    H_VMAP,
    HUGE_ORDER,
    HUGE_PAGES,
    KIND_AREA,
    KIND_MASK,
    LIST_PREV_MASK,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
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
    Y_PURGED,
    Y_SERVED,
    Z_COUNTS,
    ZONE_NORMAL,
)
from realalloc.mm.pages import clear_resident_locked, info_at, page_at, zone_at
from realalloc.mm.prim import MADV_DONTNEED, forget, is_several, madvise, may_move, move_pages, renew
from realalloc.mm.watermark import may_reclaim, may_take
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
    unlist_area,
)
from realalloc.mm.zeroing import zero_chain

HUGE_GRANULES = (PAGE_BYTES << HUGE_ORDER) // GRANULE_BYTES
LAZY_SHARE_SHIFT = 2  # a quarter
LAZY_PAGES = 1 << 14  # 64 MiB
LAZY_SLACK_SHIFT = 3  # an eighth: of sizes that vary a little, nearly each one would be mapped anew
LAZY_LOOKS = 64


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


@entry
def destroy_area_locked(words: Words, granule: int, drop: int) -> int:
    """Take an unlisted area apart: addresses to the window, pages to the buddy, resident unless ``drop``."""
    pages = words[area_at(words, granule) + V_PAGES]
    if drop == 0:
        unmap_chain(words, words[area_at(words, granule) + V_FIRST], area_offset(words, granule), pages)
    window = address_of(words) + area_offset(words, granule)
    if forget(window, pages << PAGE_SHIFT) != OK:  # no room for one more mapping: no fault there, but no memory either
        madvise(window, pages << PAGE_SHIFT, MADV_DONTNEED)
    free_chain(words, words[area_at(words, granule) + V_FIRST], drop)
    free_addresses(words, granule)
    return OK


@entry
def purge_lazy_locked(words: Words, drop: int) -> int:
    """Take all lazily kept areas apart; return their pages."""
    pages = words[H_VM_LAZY_PAGES]
    granule = first(words, H_VM_LAZY)
    while granule != 0:
        unlist_area(words, H_VM_LAZY, granule)
        destroy_area_locked(words, granule, drop)
        granule = first(words, H_VM_LAZY)
    words[H_VM_LAZY_PAGES] = 0
    return pages


@entry
def undo_oldest_lazy_locked(words: Words) -> int:
    """Take the lazily kept area that was freed first apart, its memory stays; return its pages, 0 if there is none."""
    granule = words[H_VM_LAZY] & LIST_PREV_MASK
    return _undo_lazy(words, granule, 0) if granule != 0 else 0


@kernel
def _undo_lazy(words: Words, granule: int, drop: int) -> int:
    """Take one lazily kept area apart; return its pages."""
    pages = words[area_at(words, granule) + V_PAGES]
    unlist_area(words, H_VM_LAZY, granule)
    words[H_VM_LAZY_PAGES] -= pages
    destroy_area_locked(words, granule, drop)
    return pages


@kernel
def is_lazy_old(words: Words) -> int:
    """Tell whether the lazily kept area that was freed first has outstayed the decay time."""
    granule = words[H_VM_LAZY] & LIST_PREV_MASK
    if granule == 0 or words[DECAY + Y_NS] < 0:
        return 0
    age = words[DECAY + Y_EPOCHS] - words[area_at(words, granule) + V_STAMP]
    return 1 if age >= DECAY_EPOCHS or words[DECAY + Y_NS] == 0 else 0


@entry
def purge_old_lazy_locked(words: Words) -> int:
    """Take the lazily kept area that was freed first apart, memory too, if its decay time is over; return its pages."""
    if is_lazy_old(words) == 0:
        return 0
    pages = _undo_lazy(words, words[H_VM_LAZY] & LIST_PREV_MASK, 1)
    words[DECAY + Y_PURGED] += pages
    return pages


@kernel
def _reuse_lazy(words: Words, pages: int) -> int:
    """Take the lazily kept area that fits ``pages`` pages best, if its slack is not too much; its granule or 0."""
    links = words[H_VMAP] + V_LINK
    best = 0
    least = pages + (pages >> LAZY_SLACK_SHIFT) + 1
    looks = LAZY_LOOKS
    granule = first(words, H_VM_LAZY)
    while granule != 0 and least != pages and looks > 0:
        have = words[area_at(words, granule) + V_PAGES]
        if pages <= have < least:
            best = granule
            least = have
        granule = words[links + granule * AREA_WORDS] >> 32
        looks -= 1
    if best != 0:
        unlist_area(words, H_VM_LAZY, best)
        words[H_VM_LAZY_PAGES] -= least
        set_area(words, best, area_granules(words, best), AREA_LIVE)
    return best


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
        _undo_lazy(words, words[H_VM_LAZY] & LIST_PREV_MASK, 0)
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
        return ENOMEM
    return granule


@entry
def vmalloc_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of a new area in the window, or ENOMEM."""
    pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
    if pages <= 0 or pages > words[H_END_PFN]:
        return ENOMEM
    granule = _reuse_lazy(words, pages)
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
        _undo_lazy(words, oldest, 0)
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


@kernel
def _validate_area(words: Words, granule: int) -> int:
    """Check one live or lazy area; return its pages or a broken invariant."""
    pfn = words[area_at(words, granule) + V_FIRST]
    wanted = words[area_at(words, granule) + V_PAGES]
    pages = 0
    while pfn != 0:
        info = words[info_at(pfn)]
        if pages >= wanted or info & KIND_MASK != KIND_AREA or words[page_at(words, pfn) + PG_MAP0] != granule:
            return BAD_AREA_BLOCKS
        pages += 1 << (info >> ORDER_SHIFT & ORDER_MASK)
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
        if kind == AREA_NONE or count <= 0 or words[area_at(words, granule + count - 1) + V_TAG] != count:
            return BAD_AREA
        if kind == AREA_FREE:
            if previous == AREA_FREE:
                return BAD_AREA
            free_areas += 1
        else:
            pages = _validate_area(words, granule)
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
    if count_list(words, H_VM_FREE, links, AREA_WORDS, free_areas) != free_areas:
        return BAD_AREA
    return OK if count_list(words, H_VM_LAZY, links, AREA_WORDS, lazy_areas) == lazy_areas else BAD_AREA
