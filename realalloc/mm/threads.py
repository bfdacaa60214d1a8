"""Threads: a slot each, and the door between a thread at its sheaves and who wants to drain them.

A thread finds its slot by a hash of its identity: there, at its *near* place, or behind it where others were first. Fast
paths look at the near place only. The slot names its record: a page with a sheaf descriptor for each sheaf index. The owner
reads and writes its record with plain loads and stores and no lock; whoever else wants to, the *drainer*, holds the arena
lock and pays for both:

    owner                                    drainer, with the arena lock
    a  INSIDE = 1                            1  RECORD = NULL_RECORD, for every other thread
    b  compiler fence                        2  membarrier: a full barrier on every running thread
    c  read RECORD, work there               3  wait until INSIDE = 0
    d  INSIDE = 0                            4  read and write the records
                                             5  RECORD = KEPT

Either c comes after the barrier and finds NULL_RECORD, where there is nothing to pop and no room to put, or a came before it
and the drainer waits (docs/invariants.md). An owner that is locked out goes the slow way, which waits for the arena lock;
with the lock, it may use its own record too.

A slot belongs to its thread until that thread ends: the C library then calls the destructor that ``thread_watch`` asked for.
So who has seen its KEY in a slot may store INSIDE there. Only the thread itself moves to another slot, with the lock: to
nearer, once a place is free. A record outlives its thread (records.py). NULL_RECORD stands for no record.

C functions that are bound to an arena do not even compute a hash: each thread keeps what its slot is in a word of its own at a
fixed distance from its thread pointer (lease/threadword.py), where it is 0, for NOBODY's, until it comes the slow way.

Invariant: RECORD = KEPT, or NULL_RECORD while a drainer is at work. A record is written by its owner with INSIDE = 1, or by
the holder of the arena lock: the owner itself, or a drainer.
Invariant: a thread's word, where words[KEPT_AT] is not 0, is 0 or its slot - NOBODY; only itself writes it. NOBODY has
no KEY, and the record NULL_RECORD for ever.
Invariant: H_NR_SLOTS = slots with a KEY, DISTANCE = places from the near one of KEY to the slot, H_FARTHEST = the largest.
"""

from __future__ import annotations

from realalloc.mm.atomic import (
    atomic_load,
    atomic_store,
    compiler_fence,
    lock,
    loud,
    quiet,
    relaxed_load,
    relaxed_store,
    set_thread_word,
    thread_identity,
    thread_word,
    unlock,
    unordered_load,
)
from realalloc.mm.jit import JIT, Words, entry, kernel
from realalloc.mm.layout import (
    H_FARTHEST,
    H_NR_SLOTS,
    KEPT_AT,
    NOBODY,
    NULL_RECORD,
    OK,
    PAGE_WORDS,
    RECORD_WORDS,
    T_DISTANCE,
    T_INSIDE,
    T_KEPT,
    T_KEY,
    T_RECORD,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
)
from realalloc.mm.prim import (
    MEMBARRIER_PRIVATE_EXPEDITED,
    MEMBARRIER_REGISTER_PRIVATE_EXPEDITED,
    membarrier,
    sched_yield,
    thread_watch,
)


def barriers_work() -> bool:
    """Tell whether a drainer can make itself heard: membarrier(2) may be missing or forbidden."""
    return not JIT or int(membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED)) == 0


# Stacks, and with them thread pointers, are some multiple of a page apart, or of 2 MiB where the system aligns them: so the
# place comes from a product. The factor, odd and an immediate operand, was searched for: consecutive stacks of 64 KiB to
# 16 MiB, aligned or not, go to different places nearly as long as there are any (tests/mm/test_threads.py).
HASH_FACTOR = 0x5AED3913
HASH_SHIFT = 40  # six bits from here on depend on all bits of an address from 9 to 45


@kernel
def near_place(me: int) -> int:
    """Return the word index of the place that a thread looks at first for its slot."""
    return THREADS + (me * HASH_FACTOR >> HASH_SHIFT & (THREAD_SLOTS - 1)) * THREAD_WORDS


@kernel
def _next_place(place: int) -> int:
    return place + THREAD_WORDS if place + THREAD_WORDS < NULL_RECORD else THREADS


@kernel
def own_slot(words: Words, me: int) -> int:
    """Return the word index of a thread's slot, 0 if it has none."""
    place = near_place(me)
    farther = relaxed_load(words, H_FARTHEST)  # never less than this thread's own distance
    while relaxed_load(words, place + T_KEY) != me:
        if farther == 0:
            return 0
        farther -= 1
        place = _next_place(place)
    return place


@kernel
def leave(words: Words, slot: int) -> None:
    """Leave the sheaves."""
    atomic_store(words, slot + T_INSIDE, 0)
    loud()


@kernel
def record_inside(words: Words, slot: int) -> int:
    """Go to the sheaves of an own slot and return the record, NULL_RECORD if locked out. Pairs with :func:`leave`."""
    quiet()
    relaxed_store(words, slot + T_INSIDE, 1)
    compiler_fence()
    return atomic_load(words, slot + T_RECORD)  # acquire: what the last drainer wrote is seen from here on


@kernel
def measure_distances(words: Words) -> None:
    """Find out how far a thread has to look."""
    farthest = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0:
            farthest = max(farthest, words[slot + T_DISTANCE])
    relaxed_store(words, H_FARTHEST, farthest)


@entry
def keep_slots(words: Words, at: int) -> int:
    """From now on threads keep what their slot is ``at`` bytes from their thread pointers, where it is 0 in all of them."""
    lock(words)
    words[NOBODY + T_KEY] = 0
    words[NOBODY + T_INSIDE] = 0
    words[NOBODY + T_RECORD] = NULL_RECORD
    words[KEPT_AT] = at
    unlock(words)
    return OK


@kernel
def kept_slot(at: int) -> int:
    """Return the calling thread's slot as it keeps it, NOBODY if it does not: one load, finding it takes 8 instructions."""
    return NOBODY + thread_word(at)


@kernel
def keep_slot(words: Words) -> None:
    """Have the calling thread keep its slot, if it has one."""
    at = words[KEPT_AT]
    slot = own_slot(words, thread_identity()) if at != 0 else 0
    if slot != 0:
        set_thread_word(at, slot - NOBODY)


@kernel
def forget_slot(words: Words) -> None:
    """Have the calling thread use nobody's slot, as its own is about to be somebody else's."""
    if words[KEPT_AT] != 0:
        set_thread_word(words[KEPT_AT], 0)


@entry
def come_near(words: Words) -> int:
    """Move the calling thread's slot to the first free place from its near one on; return its slot, 0 if it has none."""
    lock(words)
    me = thread_identity()
    slot = own_slot(words, me)
    place = near_place(me)
    distance = 0
    while place != slot and slot != 0 and words[place + T_KEY] != 0:
        place = _next_place(place)
        distance += 1
    if slot != 0 and place != slot:
        forget_slot(words)
        words[place + T_INSIDE] = 0
        words[place + T_DISTANCE] = distance
        words[place + T_KEPT] = words[slot + T_KEPT]
        words[place + T_RECORD] = words[slot + T_RECORD]
        atomic_store(words, place + T_KEY, me)
        atomic_store(words, slot + T_KEY, 0)
        measure_distances(words)
        slot = place
    unlock(words)
    return slot


@entry
def enter_far(words: Words) -> int:
    """Find the calling thread's slot behind its near place; 0 if it has none. Without the lock: who can be nearer moves."""
    me = thread_identity()
    place = near_place(me)
    farther = relaxed_load(words, H_FARTHEST)
    nearer = 0
    key = relaxed_load(words, place + T_KEY)
    while key != me:
        if farther == 0:
            return 0
        nearer |= 1 if key == 0 else 0
        farther -= 1
        place = _next_place(place)
        key = relaxed_load(words, place + T_KEY)
    return come_near(words) if nearer == 1 else place


@kernel
def enter(words: Words) -> int:
    """Find the calling thread's slot; 0 if it has none."""
    me = thread_identity()
    near = near_place(me)
    return near if relaxed_load(words, near + T_KEY) == me else enter_far(words)


@kernel
def my_place() -> int:
    """Return the calling thread's near place. Who asks before the first branch has it out of a user's loop (0.1 ns a pair)."""
    return near_place(thread_identity())


@kernel
def enter_near(words: Words, near: int) -> int:
    """Find the calling thread's slot at :func:`my_place` only: less code where it is inlined.

    Only the thread itself puts its identity there, or takes it away, and by a call: what it has seen stays true until then.
    """
    return near if unordered_load(words, near + T_KEY) == thread_identity() else 0


@kernel
def new_slot(words: Words, me: int) -> int:
    """Give a thread the first free slot from its near place on; 0 if all are taken."""
    if words[H_NR_SLOTS] == THREAD_SLOTS:
        return 0
    slot = near_place(me)
    distance = 0
    while words[slot + T_KEY] != 0:
        slot = _next_place(slot)
        distance += 1
    words[slot + T_INSIDE] = 0
    words[slot + T_RECORD] = NULL_RECORD
    words[slot + T_KEPT] = NULL_RECORD
    words[slot + T_DISTANCE] = distance
    if distance > words[H_FARTHEST]:
        relaxed_store(words, H_FARTHEST, distance)
    words[H_NR_SLOTS] += 1
    atomic_store(words, slot + T_KEY, me)
    thread_watch(me)
    return slot


@kernel
def lock_out_locked(words: Words) -> None:
    """Lock every other thread out of its sheaves, and wait for those who are there."""
    mine = own_slot(words, thread_identity())
    others = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0 and words[slot + T_KEPT] != NULL_RECORD and slot != mine:
            relaxed_store(words, slot + T_RECORD, NULL_RECORD)
            others += 1
    if others == 0:
        return
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED)
    membarrier(MEMBARRIER_PRIVATE_EXPEDITED)
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        while words[slot + T_KEY] != 0 and slot != mine and atomic_load(words, slot + T_INSIDE) != 0:
            sched_yield()


@kernel
def let_in_locked(words: Words) -> None:
    """Let the others at their sheaves again."""
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0:
            atomic_store(words, slot + T_RECORD, words[slot + T_KEPT])


@kernel
def bad_slots(words: Words) -> int:
    """Tell whether the slots break the last invariant."""
    taken = 0
    farthest = 0
    wrong = 0
    for slot in range(THREADS, THREADS + THREAD_SLOTS * THREAD_WORDS, THREAD_WORDS):
        if words[slot + T_KEY] != 0:
            place = near_place(relaxed_load(words, slot + T_KEY))
            if not 0 <= words[slot + T_DISTANCE] < THREAD_SLOTS:
                return 1
            for _ in range(words[slot + T_DISTANCE]):
                place = _next_place(place)
            taken += 1
            farthest = max(farthest, words[slot + T_DISTANCE])
            wrong += 1 if place != slot else 0
    at = words[KEPT_AT]
    if at != 0:
        kept = kept_slot(at)
        wrong += 1 if kept != NOBODY and kept != own_slot(words, thread_identity()) else 0
        wrong += 1 if words[NOBODY + T_KEY] != 0 or words[NOBODY + T_RECORD] != NULL_RECORD else 0
    return 1 if wrong != 0 or taken != words[H_NR_SLOTS] or farthest != words[H_FARTHEST] else 0


assert RECORD_WORDS == PAGE_WORDS
