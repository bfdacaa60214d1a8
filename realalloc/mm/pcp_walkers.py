"""The walker of page blocks that threads keep: whether they are what pcp.py says, slots and records what theirs say.

It locks every other thread out of its sheaves, marks each block that it meets in one, and unmarks them all: a block that two
sheaves have is met twice. It leaves everything as it was, damage too.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_SHEAF,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_TOP,
    H_NR_RECORDS,
    KIND_CACHED,
    KIND_RECORD,
    OK,
    PAGE_MARKED,
    PAGE_SHIFT,
    SHEAF_BLOCK_ORDERS,
    T_RECENT_INFO,
    T_RECENT_PLACE,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.pages import info_at, kind_of, order_at, pages_at, zone_at
from realalloc.mm.pcp import block_place
from realalloc.mm.records import bad_records, next_record, record_at
from realalloc.mm.sheaf import count_of, count_put, place_of
from realalloc.mm.threads import bad_slots, let_in_locked, lock_out_locked
from realalloc.mm.walkers import bad_sheaves


@kernel
def _mark(words: Words, order: int, begin: int, end: int) -> int:
    """Mark the blocks in words ``[begin, end)``; return how many are no cached ones of the order, or marked already."""
    wrong = 0
    for at in range(begin, end):
        pfn = words[at] >> PAGE_SHIFT
        if kind_of(words, pfn) != KIND_CACHED or words[info_at(pfn)] & PAGE_MARKED != 0:
            wrong += 1
        else:
            wrong += 1 if order_at(words, pfn) != order else 0
            words[info_at(pfn)] |= PAGE_MARKED
    return wrong


@kernel
def _mark_all(words: Words) -> int:
    """Mark all blocks in sheaves; return how many there are, or -1 if anything is wrong."""
    found = 0
    wrong = 0
    place = next_record(words, 0)
    while place != 0:
        for order in range(SHEAF_BLOCK_ORDERS):
            d = record_at(words, place) + block_place(order)
            if bad_sheaves(words, d) == 1:
                wrong += 1
            else:
                found += count_of(words, d) + count_put(words, d)
                wrong += _mark(words, order, words[d + D_BASE], words[d + D_TOP] + 1)
                wrong += _mark(words, order, words[d + D_PUT_BASE], words[d + D_PUT] + 1)
        place = next_record(words, place)
    return found if wrong == 0 else -1


@kernel
def _unmark_all(words: Words) -> int:
    """Unmark all cached blocks; return how many there are, and how many records in the upper half."""
    zone = zone_at(ZONE_NORMAL)
    pfn = words[zone + Z_START_PFN]
    found = 0
    while pfn < words[zone + Z_FRONTIER_PFN]:
        kind = kind_of(words, pfn)
        if kind == KIND_CACHED:
            found += 1
            words[info_at(pfn)] &= ~PAGE_MARKED
        found += 1 << 32 if kind == KIND_RECORD else 0
        pfn += pages_at(words, pfn)
    return found


@kernel
def _bad_hints(words: Words) -> int:
    wrong = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        wrong += 1 if place_of(words[slot + T_RECENT_INFO]) != words[slot + T_RECENT_PLACE] else 0
    return wrong


@entry
def validate_kept_blocks(words: Words) -> int:
    """Check the invariants at the heads of pcp.py and records.py, and the last one of threads.py; OK or BAD_SHEAF."""
    lock(words)
    lock_out_locked(words)
    sound = bad_records(words) == 0 and bad_slots(words) == 0 and _bad_hints(words) == 0
    if sound:
        blocks = _mark_all(words)
        sound = _unmark_all(words) == words[H_NR_RECORDS] << 32 | blocks and blocks >= 0
    let_in_locked(words)
    unlock(words)
    return OK if sound else BAD_SHEAF
