"""The records of threads: pages with a sheaf descriptor for each sheaf index, made when needed, kept when a thread ends.

A record is its thread's, named by its slot (threads.py); a thread that ends leaves its record, with its sheaves, for the next
one, on the list of idle records. Everything here is done with the arena lock.

Invariant: H_NR_RECORDS = records of slots + idle ones, each a KIND_RECORD page.
"""

from __future__ import annotations

from realalloc.mm.atomic import atomic_store, thread_identity
from realalloc.mm.buddy import free_block_locked
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    D_BASE,
    D_MAGIC,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    GFP_ZERO_BIT,
    H_END_PFN,
    H_IDLE_RECORDS,
    H_NR_RECORDS,
    H_SHEAVES,
    H_ZERO,
    KIND_RECORD,
    NULL_RECORD,
    PAGE_SHIFT,
    PAGE_WORDS,
    R_NEXT,
    RECORD_WORDS,
    SHEAF_DESC_WORDS,
    T_KEPT,
    T_KEY,
    T_RECORD,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
    WORD_BYTES,
    ZONE_NORMAL,
)
from realalloc.mm.pages import kind_of
from realalloc.mm.threads import new_slot, own_slot
from realalloc.mm.watermark import get_block_locked


@kernel
def clear_sheaves(words: Words, d: int) -> None:
    """Leave a sheaf descriptor without sheaves: nothing can be popped or put."""
    words[d + D_TOP] = H_ZERO
    words[d + D_BASE] = H_ZERO + 1
    words[d + D_PUT] = H_ZERO
    words[d + D_PUT_BASE] = H_ZERO + 1
    words[d + D_PUT_END] = H_ZERO
    words[d + D_MAGIC] = 0


@kernel
def _take_record(words: Words) -> int:
    record = words[H_IDLE_RECORDS]
    if record != 0:
        words[H_IDLE_RECORDS] = words[record + R_NEXT]
        words[record + R_NEXT] = 0
        return record
    pfn = get_block_locked(words, ZONE_NORMAL, 0, KIND_RECORD, GFP_ZERO_BIT)  # a convenience: never of the reserve
    if pfn < 0:
        return NULL_RECORD
    words[H_NR_RECORDS] += 1
    record = pfn * PAGE_WORDS
    for d in range(record, record + RECORD_WORDS, SHEAF_DESC_WORDS):
        clear_sheaves(words, d)
    return record


@kernel
def own_record_locked(words: Words) -> int:
    """Return the calling thread's record, made if need be; NULL_RECORD if there is no slot or no page for it."""
    me = thread_identity()
    slot = own_slot(words, me)
    if words[H_SHEAVES] == 0:
        return NULL_RECORD
    if slot == 0:
        slot = new_slot(words, me)
        if slot == 0:
            return NULL_RECORD
    if words[slot + T_KEPT] == NULL_RECORD:
        words[slot + T_KEPT] = _take_record(words)
        atomic_store(words, slot + T_RECORD, words[slot + T_KEPT])
    return words[slot + T_KEPT]


@kernel
def next_record(words: Words, before: int) -> int:
    """Walk the records of all slots, then the idle ones: pass 0 first, then what came back; 0 at the end.

    A place is named by its slot, or by the word index of an idle record, which is behind all slots.
    """
    at = before + THREAD_WORDS if before != 0 else THREADS
    if before > NULL_RECORD:
        return words[before + R_NEXT]
    while at < NULL_RECORD:
        if words[at + T_KEY] != 0:
            return at
        at += THREAD_WORDS
    return words[H_IDLE_RECORDS]


@kernel
def record_at(words: Words, place: int) -> int:
    """Return the record at a place that :func:`next_record` named."""
    return words[place + T_KEPT] if place < NULL_RECORD else place


@kernel
def _is_record(words: Words, record: int) -> int:
    return 1 if record % PAGE_WORDS == 0 and kind_of(words, record // PAGE_WORDS) == KIND_RECORD else 0


@kernel
def bad_records(words: Words) -> int:
    """Tell whether slots or idle records lead to what is none, or there are others than H_NR_RECORDS: a walker asks first."""
    count = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0 and words[slot + T_KEPT] != NULL_RECORD:
            if _is_record(words, words[slot + T_KEPT]) == 0:
                return 1
            count += 1
    record = words[H_IDLE_RECORDS]
    while record != 0:
        if _is_record(words, record) == 0 or count >= min(words[H_NR_RECORDS], words[H_END_PFN]):
            return 1
        count += 1
        record = words[record + R_NEXT]
    return 1 if count != words[H_NR_RECORDS] else 0


@kernel
def release_records_locked(words: Words) -> int:
    """Give the pages of all records back; all threads are locked out and the records are empty. Return the pages."""
    pages = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        record = words[slot + T_KEPT]
        if words[slot + T_KEY] != 0 and record != NULL_RECORD:
            words[slot + T_KEPT] = NULL_RECORD
            words[slot + T_RECORD] = NULL_RECORD
            free_block_locked(words, record * WORD_BYTES >> PAGE_SHIFT)
            pages += 1
    record = words[H_IDLE_RECORDS]
    while record != 0:
        after = words[record + R_NEXT]
        free_block_locked(words, record * WORD_BYTES >> PAGE_SHIFT)
        record = after
        pages += 1
    words[H_IDLE_RECORDS] = 0
    words[H_NR_RECORDS] -= pages
    return pages
