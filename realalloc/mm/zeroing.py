"""Memory that shall read as zero: what may hold something is given back, huge unit by huge unit, or written over.

A page that is not resident reads as zero already. A huge unit that is given back is zeroed by the system when it is touched,
in one fault, as fast as it would be here; what is never touched costs nothing. Small pages are zeroed here: 512 faults cost
five times as much as the memset that they save.

Invariant: the books do not change, as who is zeroed for has the pages, or gets them: they are committed, whatever they hold.
Guarantee: an arena whose memory never goes back by itself (decay < 0) keeps it here, too; what the system does not take, as
it is locked, is written over.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.commit import filled_units, is_huge
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    DECAY,
    H_HUGE,
    HUGE_AUTO,
    HUGE_ORDER,
    HUGE_PAGES,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_SHIFT,
    PAGE_WORDS,
    PG_LINK,
    WORD_BYTES,
    Y_NS,
    ZONE_NORMAL,
)
from realalloc.mm.pages import clear_resident_locked, count_resident, info_at, is_resident, page_at, zero_range
from realalloc.mm.prim import MADV_DONTNEED, madvise


@kernel
def _give_back(words: Words, offset: int, pages: int) -> int:
    return madvise(address_of(words) + offset, pages << PAGE_SHIFT, MADV_DONTNEED)


@kernel
def _end_of_units(words: Words, pfn: int, end: int) -> int:
    """Return where the whole huge units that begin at ``pfn`` end; ``pfn`` if none does."""
    while pfn & (HUGE_PAGES - 1) == 0 and pfn + HUGE_PAGES <= end and is_huge(words, pfn >> HUGE_ORDER) == 1:
        pfn += HUGE_PAGES
    return pfn


@entry
def zero_memory(words: Words, offset: int, pfn: int, pages: int) -> int:
    """Make the memory of pages that the caller owns read as zero; it lies at ``offset``, for an area in the window."""
    moved = offset - (pfn << PAGE_SHIFT)
    goes = 1 if moved & ((HUGE_PAGES << PAGE_SHIFT) - 1) == 0 and words[DECAY + Y_NS] >= 0 else 0
    end = pfn + pages
    while pfn < end:
        begin = pfn
        if is_resident(words, pfn) == 0:
            pfn += 1
            continue
        pfn = _end_of_units(words, begin, end) if goes == 1 else begin
        if pfn > begin and _give_back(words, (begin << PAGE_SHIFT) + moved, pfn - begin) == OK:
            continue
        stop = min(end, max(pfn, (begin | (HUGE_PAGES - 1)) + 1))  # a unit at a time: the next may be a huge one
        pfn = begin
        while pfn < stop and is_resident(words, pfn) == 1:
            pfn += 1
        at = begin * PAGE_WORDS + moved // WORD_BYTES
        zero_range(words, at, (pfn - begin) * PAGE_WORDS)  # one memset a run, not one a page
    return OK


@entry
def zero_block_locked(words: Words, zone: int, pfn: int, order: int, asked: int) -> int:
    """Make a block that was taken off the free lists, and is to be committed for ``asked`` pages, read as zero.

    Units of small pages that are all resident go back first, where the system may be asked for huge pages instead: the commit
    that follows finds them fresh.
    """
    if filled_units(asked) != 0 and zone == ZONE_NORMAL and words[H_HUGE] == HUGE_AUTO and words[DECAY + Y_NS] >= 0:
        for unit in range(pfn >> HUGE_ORDER, (pfn + filled_units(asked)) >> HUGE_ORDER):
            begin = unit << HUGE_ORDER
            whole = is_huge(words, unit) == 0 and count_resident(words, begin, begin + HUGE_PAGES) == HUGE_PAGES
            if whole and _give_back(words, begin << PAGE_SHIFT, HUGE_PAGES) == OK:
                clear_resident_locked(words, begin, HUGE_PAGES)
    return zero_memory(words, pfn << PAGE_SHIFT, pfn, 1 << order)


@entry
def zero_chain(words: Words, pfn: int, offset: int) -> int:
    """Make an area at ``offset``, whose blocks are chained, read as zero: adjacent blocks at once."""
    while pfn != 0:
        begin = pfn
        pages = 0
        while pfn == begin + pages and pfn != 0:
            pages += 1 << (words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK)
            pfn = words[page_at(words, pfn) + PG_LINK]
        zero_memory(words, offset, begin, pages)
        offset += pages << PAGE_SHIFT
    return OK
