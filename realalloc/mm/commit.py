"""Which pages of zone NORMAL may hold memory, how many they may be, and how their memory goes back to the system.

A page is committed when it is handed out, and stays so when it is freed: it is dirty. Memory goes back in runs. A *huge* unit
is 2 MiB that the system was advised to back by one huge page: one touch makes all of it resident, so it is committed as a
whole, and only who asks for it (``split``) takes a part of it away: its huge page is refused first.

Invariant: H_COMMITTED_PAGES = set resident bits <= H_LIMIT_PAGES, and every allocated page is committed, so that
    dirty pages = H_COMMITTED_PAGES - H_ALLOCATED_PAGES - free pages of zone DMA, whose pages always hold memory.
Invariant: Y_SMALL = dirty pages in listed blocks below MIN_RUN_ORDER; a set bit k of Y_CLEAN: no listed block of order k has
    memory that the system would take. Both are hints for speed: neither admits a page.
May not: call anything of the buddy's; it walks its lists, and changes the order of the blocks in them alone.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.bits import bit
from realalloc.mm.freelist import first, push_back, remove
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    DECAY,
    ENOMEM,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_HUGE,
    H_HUGEMAP,
    H_LIMIT_PAGES,
    H_MAX_ORDER,
    H_NR_ZONES,
    HUGE_ALWAYS,
    HUGE_AUTO,
    HUGE_ORDER,
    HUGE_PAGES,
    KIND_FREE,
    OK,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    PRESSURE,
    PSI_RECLAIMS,
    Y_CLEAN,
    Y_SMALL,
    Z_FREE_PAGES,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.mobility import count_listed, head_for
from realalloc.mm.pages import (
    clear_resident_locked,
    count_resident,
    is_resident,
    kind_of,
    links_at,
    pages_at,
    set_resident_locked,
    zone_at,
)
from realalloc.mm.pressure import account_stall_locked
from realalloc.mm.prim import MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, madvise, monotonic_ns

LOOKS = 512  # blocks looked at for each time the lock is held: 5 us
DROP_PAGES = HUGE_PAGES  # pages given back for each time, up to twice as many: 0.1 to 0.3 ms
MIN_RUN_ORDER = 4  # 64 KiB: decay leaves smaller free blocks alone
MIN_RUN_PAGES = 1 << MIN_RUN_ORDER
SPARE_HUGE_PAGES = HUGE_PAGES // 8  # a unit of which a request leaves more than this unused is not asked to be huge


@kernel
def dirty_pages(words: Words) -> int:
    """Count free pages of zone NORMAL that may hold memory."""
    locked = words[zone_at(ZONE_DMA) + Z_FREE_PAGES] if words[H_NR_ZONES] > 1 else 0
    return words[H_COMMITTED_PAGES] - words[H_ALLOCATED_PAGES] - locked


@kernel
def purgeable_pages(words: Words) -> int:
    """Count dirty pages in free blocks that decay gives back."""
    return max(0, dirty_pages(words) - max(0, words[DECAY + Y_SMALL]))


@kernel
def small_dirty(words: Words, pfn: int, end: int) -> int:
    """Count dirty pages in free blocks, too small for decay, between two blocks."""
    dirty = 0
    while pfn < end:
        pages = pages_at(words, pfn)
        if kind_of(words, pfn) == KIND_FREE and pages < MIN_RUN_PAGES:
            dirty += count_resident(words, pfn, pfn + pages)
        pfn += pages
    return dirty


@kernel
def account_listed(words: Words, pfn: int, order: int, sign: int) -> None:
    """Hear that a free block of zone NORMAL comes onto a list (1), or goes (-1)."""
    if order < MIN_RUN_ORDER:
        words[DECAY + Y_SMALL] += sign * count_resident(words, pfn, pfn + (1 << order))
    if sign == 1:
        words[DECAY + Y_CLEAN] &= ~bit(order)


@kernel
def is_huge(words: Words, unit: int) -> int:
    """Tell whether a unit becomes resident as a whole."""
    flag = words[words[H_HUGEMAP] + (unit >> 6)] >> (unit & 63) & 1
    return flag ^ 1 if words[H_HUGE] == HUGE_ALWAYS else flag


@kernel
def _flip_huge(words: Words, unit: int) -> None:
    words[words[H_HUGEMAP] + (unit >> 6)] ^= bit(unit & 63)


@kernel
def _advise(words: Words, pfn: int, pages: int, advice: int) -> int:
    return madvise(address_of(words) + (pfn << PAGE_SHIFT), pages << PAGE_SHIFT, advice)


@kernel
def refuse_huge(words: Words, unit: int) -> int:
    """Have a unit backed by small pages from now on; OK if it is."""
    if is_huge(words, unit) == 0:
        return OK
    status = _advise(words, unit << HUGE_ORDER, HUGE_PAGES, MADV_NOHUGEPAGE)
    if status == OK:
        _flip_huge(words, unit)
    return status


@kernel
def _want_huge(words: Words, begin: int, end: int) -> None:
    """Have the whole units in ``[begin, end)`` backed by huge pages, where the system has them."""
    if _advise(words, begin, end - begin, MADV_HUGEPAGE) == OK:
        for unit in range((begin + HUGE_PAGES - 1) >> HUGE_ORDER, end >> HUGE_ORDER):
            if is_huge(words, unit) == 0:
                _flip_huge(words, unit)


@kernel
def _begin_of(words: Words, pfn: int) -> int:
    """Return where what becomes resident with a page begins."""
    return pfn >> HUGE_ORDER << HUGE_ORDER if is_huge(words, pfn >> HUGE_ORDER) == 1 else pfn


@kernel
def _end_of(words: Words, end: int) -> int:
    """Return the end of what becomes resident with the page before ``end``."""
    unit = (end - 1) >> HUGE_ORDER
    return (unit + 1) << HUGE_ORDER if is_huge(words, unit) == 1 else end


@kernel
def _fresh(words: Words, pfn: int, pages: int) -> int:
    """Count what committing pages would add to the committed ones."""
    begin = _begin_of(words, pfn)
    end = _end_of(words, pfn + pages)
    return end - begin - count_resident(words, begin, end)


@entry
def drop_locked(words: Words, pfn: int, pages: int, split: int) -> int:
    """Give the memory of free pages back, run by run; return how many pages that were.

    A huge unit that goes as a whole is an ordinary one afterwards, but for huge_pages=True; a part of one stays unless
    ``split``.
    """
    end = pfn + pages
    head = pfn >> HUGE_ORDER
    tail = end >> HUGE_ORDER
    if pfn & (HUGE_PAGES - 1) != 0 or head == tail:
        if is_huge(words, head) == 1 and (split == 0 or refuse_huge(words, head) != OK):
            pfn = min(end, (head + 1) << HUGE_ORDER)
        head += 1
    cut = 1 if end & (HUGE_PAGES - 1) != 0 and head <= tail and is_huge(words, tail) == 1 else 0
    if cut == 1 and (split == 0 or refuse_huge(words, tail) != OK):
        end = tail << HUGE_ORDER
    if words[H_HUGE] == HUGE_AUTO:
        for unit in range(head, tail):
            refuse_huge(words, unit)  # one that stays huge is committed as a whole again
    dropped = 0
    while pfn < end:
        begin = pfn
        while pfn < end and is_resident(words, pfn) == 1:
            pfn += 1
        if pfn > begin and _advise(words, begin, pfn - begin, MADV_DONTNEED) == OK:
            dropped += clear_resident_locked(words, begin, pfn - begin)
        while pfn < end and is_resident(words, pfn) == 0:
            pfn += 1
    if words[H_HUGE] == HUGE_ALWAYS:
        for unit in range(head, tail):  # one that was refused, and is empty now, may be huge again
            if is_huge(words, unit) == 0 and count_resident(words, unit << HUGE_ORDER, (unit + 1) << HUGE_ORDER) == 0:
                _want_huge(words, unit << HUGE_ORDER, (unit + 1) << HUGE_ORDER)
    return dropped


@kernel
def _drop_some(words: Words, pfn: int, order: int, wanted: int, split: int) -> int:
    """Give memory of a free block back: as many pages as wanted, rounded up to runs, huge units rounded to the nearest."""
    dropped = 0
    at = pfn
    end = pfn + (1 << order)
    while at < end and dropped < wanted:
        step = min(DROP_PAGES, (wanted - dropped + MIN_RUN_PAGES - 1) & -MIN_RUN_PAGES)
        if 2 * step >= HUGE_PAGES and at & (HUGE_PAGES - 1) == 0 and is_huge(words, at >> HUGE_ORDER) == 1:
            step = HUGE_PAGES
        stop = min(at + step, end)
        if count_resident(words, at, stop) != 0:
            dropped += drop_locked(words, at, stop - at, split)
        at = stop
    if order < MIN_RUN_ORDER:
        words[DECAY + Y_SMALL] -= dropped
    return dropped


@entry
def purge_list_locked(words: Words, order: int, unmovable: int, wanted: int, split: int) -> int:
    """Give back memory of free blocks of one list, from its front, about ``wanted`` pages; blocks that were looked at go to
    its end. Return blocks looked at << 32 | pages given back; both are bounded.
    """
    links = links_at(words)
    many = min(count_listed(words, ZONE_NORMAL, order, unmovable), LOOKS)
    head = head_for(words, ZONE_NORMAL, order, unmovable)
    wanted = min(wanted, DROP_PAGES)
    looked = 0
    dropped = 0
    while looked < many and dropped < wanted:
        pfn = first(words, head)
        if count_resident(words, pfn, pfn + (1 << order)) != 0:
            dropped += _drop_some(words, pfn, order, wanted - dropped, split)
        if dropped >= wanted:  # the next step goes on with this block
            break
        remove(words, head, links, PAGE_STRUCT_WORDS, pfn)
        push_back(words, head, links, PAGE_STRUCT_WORDS, pfn)
        looked += 1
    return looked << 32 | dropped


@kernel
def is_clean(words: Words, order: int) -> int:
    """Tell whether no free block of an order has memory that could go."""
    return words[DECAY + Y_CLEAN] >> order & 1


@kernel
def _purge_all_locked(words: Words, order: int, unmovable: int, wanted: int, split: int) -> int:
    dropped = 0
    left = count_listed(words, ZONE_NORMAL, order, unmovable)
    while left > 0 and dropped < wanted:
        done = purge_list_locked(words, order, unmovable, wanted - dropped, split)
        dropped += done & 0xFFFFFFFF
        left -= done >> 32
    return dropped


@entry
def purge_locked(words: Words, wanted: int, lowest: int, split: int) -> int:
    """Give back memory of free blocks of ``lowest`` order and larger, the largest first; return the pages."""
    dropped = 0
    for order in range(words[H_MAX_ORDER], lowest - 1, -1):
        before = dropped
        if is_clean(words, order) == 0:
            dropped += _purge_all_locked(words, order, 0, wanted - dropped, split)
            dropped += _purge_all_locked(words, order, 1, wanted - dropped, split)
        if (
            dropped == before and dropped < wanted and split == 1
        ):  # at the limit each request would look at all of them again
            words[DECAY + Y_CLEAN] |= bit(order)
    return dropped


@kernel
def _purge_stepwise(words: Words, order: int, unmovable: int, wanted: int, split: int) -> int:
    dropped = 0
    left = count_listed(words, ZONE_NORMAL, order, unmovable)
    while left > 0 and dropped < wanted:
        lock(words)
        done = purge_list_locked(words, order, unmovable, wanted - dropped, split)
        unlock(words)
        dropped += done & 0xFFFFFFFF
        left -= done >> 32
        if done == 0:
            break
    return dropped


@entry
def purge(words: Words, wanted: int, lowest: int, split: int) -> int:
    """The same, the lock held for one bounded step at a time."""
    dropped = 0
    for order in range(words[H_MAX_ORDER], lowest - 1, -1):
        if is_clean(words, order) == 0:
            dropped += _purge_stepwise(words, order, 0, wanted - dropped, split)
            dropped += _purge_stepwise(words, order, 1, wanted - dropped, split)
    return dropped


@kernel
def _admit(words: Words, pfn: int, pages: int) -> int:
    """Make room under the limit for pages that are going to be committed; ENOMEM if there is none."""
    over = words[H_COMMITTED_PAGES] + _fresh(words, pfn, pages) - words[H_LIMIT_PAGES]
    if over <= 0:
        return OK
    refuse_huge(words, pfn >> HUGE_ORDER)  # what lies around the pages need not come with them
    refuse_huge(words, (pfn + pages - 1) >> HUGE_ORDER)
    over = words[H_COMMITTED_PAGES] + _fresh(words, pfn, pages) - words[H_LIMIT_PAGES]
    if over > 0 and over <= dirty_pages(words):
        begin = monotonic_ns()
        over -= purge_locked(words, over, 0, 1)
        words[PRESSURE + PSI_RECLAIMS] += 1
        account_stall_locked(words, monotonic_ns() - begin, 1)
    return OK if over <= 0 else ENOMEM


@kernel
def filled_units(asked: int) -> int:
    """Return the pages of the huge units that a request for so many pages fills, from its first page on; or nearly fills."""
    return (asked + SPARE_HUGE_PAGES) & -HUGE_PAGES


@entry
def commit_locked(words: Words, pfn: int, pages: int, asked: int) -> int:
    """Let pages that were taken off the free lists hold memory; ENOMEM, with none of them committed, over the limit.

    Of a block, the units of 2 MiB that the request for ``asked`` pages fills (0: it is no block) are backed by huge pages
    where that is the arena's mode. In others small pages become resident as they are touched.
    """
    if words[H_COMMITTED_PAGES] + pages + 2 * HUGE_PAGES > words[H_LIMIT_PAGES] and _admit(words, pfn, pages) != OK:
        return ENOMEM
    begin = _begin_of(words, pfn)
    end = _end_of(words, pfn + pages)
    before = small_dirty(words, begin, end) if end - begin != pages else 0
    fresh = set_resident_locked(words, begin, end - begin)
    if end - begin != pages:  # free neighbours in a huge unit are dirty now
        words[DECAY + Y_CLEAN] = 0
        words[DECAY + Y_SMALL] += small_dirty(words, begin, end) - before
    if fresh != 0 and filled_units(asked) != 0 and words[H_HUGE] == HUGE_AUTO:
        _want_huge(words, pfn, pfn + filled_units(asked))
    return OK


@entry
def set_limit(words: Words, pages: int) -> int:
    """Set how many pages may be committed, giving back free ones; ENOMEM, with the limit unchanged, if more are in use."""
    lock(words)
    over = words[H_COMMITTED_PAGES] - pages
    if over > 0:
        purge_locked(words, over, 0, 1)
    status = OK if words[H_COMMITTED_PAGES] <= pages else ENOMEM
    if status == OK:
        words[H_LIMIT_PAGES] = pages
    unlock(words)
    return status
