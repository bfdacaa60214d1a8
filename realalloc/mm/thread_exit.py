"""Threads that are no more: they end, a fork has not copied them, or the arena closes over them.

Slots are those of :mod:`realalloc.mm.threads`, records those of :mod:`realalloc.mm.records`.
"""

from __future__ import annotations

from realalloc.mm.atomic import (
    atomic_store,
    lock,
    set_thread_word,
    thread_identity,
    thread_word,
    unlock,
    unlock_in_child,
)
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    H_IDLE_RECORDS,
    H_NR_SLOTS,
    H_SHEAVES,
    KEPT_AT,
    NOBODY,
    NULL_RECORD,
    OK,
    R_NEXT,
    T_INSIDE,
    T_KEPT,
    T_KEY,
    T_RECORD,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
)
from realalloc.mm.prim import EFAULT, futex_sleep
from realalloc.mm.threads import forget_slot, let_in_locked, lock_out_locked, measure_distances, own_slot


@kernel
def _vacate(words: Words, slot: int) -> None:
    record = words[slot + T_KEPT]
    if record != NULL_RECORD:
        words[record + R_NEXT] = words[H_IDLE_RECORDS]
        words[H_IDLE_RECORDS] = record
    words[slot + T_INSIDE] = 0
    words[H_NR_SLOTS] -= 1
    atomic_store(words, slot + T_KEY, 0)


@entry
def thread_ends(words: Words, me: int) -> int:
    """Vacate the slot of a thread that ends; its record waits for the next one."""
    lock(words)
    slot = own_slot(words, me)
    if slot != 0:
        if me == thread_identity():
            forget_slot(words)
        _vacate(words, slot)
        measure_distances(words)
    unlock(words)
    return OK


@entry
def freeze(words: Words) -> int:
    """Take the arena lock and lock all other threads out: for ``fork()``, whose child must not see one at work."""
    lock(words)
    lock_out_locked(words)
    return OK


@entry
def thaw(words: Words) -> int:
    """End what :func:`freeze` began."""
    let_in_locked(words)
    unlock(words)
    return OK


@entry
def thaw_in_child(words: Words) -> int:
    """End in the child of a fork what :func:`freeze` began."""
    let_in_locked(words)
    unlock_in_child(words)
    return OK


@kernel
def _forget_slot_of(words: Words, key: int, slot: int) -> None:
    """Have a thread that a fork has not copied keep no slot: one that gets its stack would begin with it.

    The C library clears the stacks that it finds in the child, but not that of a thread that was ending just then. Whose end
    was never heard of may have no stack any more: the system looks whether there is one.
    """
    at = words[KEPT_AT]
    if at != 0 and futex_sleep(key + at, 0, 0) != -EFAULT:
        there = at + key - thread_identity()
        if thread_word(there) == slot - NOBODY:
            set_thread_word(there, 0)


@entry
def forget_other_threads(words: Words) -> int:
    """Vacate all other slots: in the child of a fork their threads do not exist."""
    lock(words)
    mine = own_slot(words, thread_identity())
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0 and slot != mine:
            _forget_slot_of(words, words[slot + T_KEY], slot)
            _vacate(words, slot)
    measure_distances(words)
    unlock(words)
    return OK


@entry
def retire_threads(words: Words) -> int:
    """Send every thread the slow way for ever: the arena closes. What is in the sheaves goes with its memory."""
    lock(words)
    words[H_SHEAVES] = 0
    lock_out_locked(words)
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        words[slot + T_RECORD] = NULL_RECORD
        words[slot + T_KEPT] = NULL_RECORD
    unlock(words)
    return OK
