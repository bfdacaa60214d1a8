"""Mempools: a reserve of elements that are there before they are needed; taking them and giving them back.

1. The reserve is an array of element offsets, filled when the pool is made; every page of every element is touched then.
2. ``alloc`` takes from the reserve first and asks the backing allocator when it is empty (or the other way round, the
   kernel's order, with ORDER_ALLOC_FIRST). ``free`` refills the reserve first. With ORDER_RESERVE_ONLY there are never more
   than capacity elements: the backing allocator is asked for what is missing, and nothing else.
3. Who must wait queues (:mod:`realalloc.mm.mempool_wait`). While somebody does, the reserve is the queue's, and so is what the
   backing allocator gives to somebody who may wait: nobody overtakes. Who may not wait can still have a fresh element.
4. With BACKING_OBJECT elements are numbers of the face's objects: it makes and frees them, everything else is the same
   (:mod:`realalloc.mm.mempool_face`).
5. Pools are made, resized and destroyed in :mod:`realalloc.mm.mempool_life`.

Guarantee: curr_nr + out + missing >= capacity, where out = gets - puts and missing is what a failed top-up still owes: an
element is only given to the backing allocator while the reserve is full. So whoever waits gets one when users return theirs.
With ORDER_RESERVE_ONLY it is an equation, unless a resize has left more than capacity out: then nothing is missing.
Invariant: 0 <= curr_nr <= capacity = max(1, min_nr), and every reserved element is a live block of the backing allocator.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.charge import detach_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked
from realalloc.mm.layout import (
    ENOMEM,
    GFP_WAIT_BIT,
    GFP_ZERO_BIT,
    H_CLOSED,
    OK,
    ORDER_ALLOC_FIRST,
    ORDER_RESERVE_ONLY,
    P_BUDGET,
    P_CAPACITY,
    P_CURR_NR,
    P_FAILS,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_MISSING,
    P_NODES,
    P_ORDER,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    P_REFILL_HIGH,
    P_REFILL_LOW,
    P_STATE,
    P_WAITERS,
    P_WIPE,
    POOL_DETACHED,
    POOL_LIVE,
    WORD_BYTES,
)
from realalloc.mm.reserve import (
    backing_alloc_locked,
    backing_free_locked,
    backing_retry_locked,
    fill_words,
    pop_element,
    push_element,
    supply_locked,
    wipe_freed,
    wipe_taken,
)
from realalloc.mm.waiters import (
    account_locked,
    free_chunks_locked,
    grant_locked,
    pool_out,
    spare_elements,
)

OUT_OF_RESERVE = -1 << 32  # far below every status
REFILL_BATCH = 8  # elements that one free tops the reserve up by, at most


@kernel
def pop_reserved(words: Words, p: int) -> int:
    """Take an element of the reserve, which has one, and count it as out."""
    account_locked(words, p)
    words[p + P_GETS_RESERVE] += 1
    return pop_element(words, p)


@kernel
def _fresh(words: Words, p: int, gfp: int, last: int) -> int:
    """Ask the backing allocator; where nothing else is ``last``, reclaiming once if pages have run out."""
    if words[p + P_ORDER] == ORDER_RESERVE_ONLY and words[p + P_MISSING] == 0:
        return ENOMEM
    offset = backing_retry_locked(words, p, gfp) if last == 1 else backing_alloc_locked(words, p, gfp)
    if offset > 0:
        account_locked(words, p)
        words[p + P_GETS_ALLOC] += 1
        words[p + P_MISSING] -= 1 if words[p + P_ORDER] == ORDER_RESERVE_ONLY else 0
    return offset


@kernel
def _take_locked(words: Words, p: int, gfp: int) -> int:
    """Take an element: ``offset << 1 | 1`` of the reserve, ``offset << 1`` a fresh one, or a status."""
    if words[p + P_WAITERS] > 0 and gfp & GFP_WAIT_BIT:
        return ENOMEM  # it will queue
    mine = spare_elements(words, p) if words[p + P_WAITERS] == 0 else 0
    if words[p + P_ORDER] != ORDER_ALLOC_FIRST and mine > 0:
        return pop_reserved(words, p) << 1 | 1
    offset = _fresh(words, p, gfp, 0 if mine > 0 else 1)
    if offset < 0 and mine > 0:
        return pop_reserved(words, p) << 1 | 1
    if offset < 0:
        words[p + P_FAILS] += 1
        return offset
    return offset << 1


@kernel
def handed(words: Words, p: int, taken: int) -> int:
    """Finish what was taken, without the lock; return the offset or the status."""
    if taken < 0:
        return taken
    if words[p + P_WIPE] != 0:
        wipe_taken(words, p, taken >> 1, taken & 1)
    return taken >> 1


@entry
def pool_alloc(words: Words, p: int, gfp: int) -> int:
    """Return the offset of an element, ENOMEM, or EAGAIN if the face must construct a slab first. Never sleeps."""
    lock(words)
    gone = words[H_CLOSED] != 0 or words[p + P_STATE] != POOL_LIVE
    taken = _take_locked(words, p, gfp) if not gone else ENOMEM
    unlock(words)
    offset = handed(words, p, taken)
    if offset > 0 and gfp & GFP_ZERO_BIT:
        fill_words(words, p, offset, 0)
    return offset


@entry
def pool_alloc_reserved(words: Words, p: int) -> int:
    """Return an element of the reserve, ENOMEM if nobody waiting leaves one (kernel: mempool_alloc_preallocated)."""
    lock(words)
    taken = ENOMEM
    if words[H_CLOSED] == 0 and words[p + P_STATE] == POOL_LIVE and words[p + P_WAITERS] == 0:
        taken = pop_reserved(words, p) << 1 | 1 if spare_elements(words, p) > 0 else ENOMEM
    unlock(words)
    return handed(words, p, taken)


@entry
def end_if_last(words: Words, p: int) -> int:
    """Free the descriptor of a detached pool with its last element or waiter."""
    if words[p + P_STATE] == POOL_DETACHED and pool_out(words, p) == 0 and words[p + P_NODES] == 0:
        free_chunks_locked(words, p)
        detach_locked(words, p + P_BUDGET)
        kfree_locked(words, p * WORD_BYTES)
    return OK


@kernel
def is_too_many(words: Words, p: int) -> int:
    """Tell whether a pool that may have capacity elements still has more of them than a resize allowed."""
    if words[p + P_ORDER] != ORDER_RESERVE_ONLY:
        return 0
    return 1 if words[p + P_CURR_NR] + pool_out(words, p) > words[p + P_CAPACITY] else 0


@entry
def pool_return(words: Words, p: int, offset: int) -> int:
    """Take an element back: into the reserve if that has room, and return its place there; else to the backing allocator,
    and return its status + OUT_OF_RESERVE.
    """
    if words[p + P_WIPE] != 0:
        wipe_freed(words, p, offset)
    lock(words)
    account_locked(words, p)
    if words[p + P_CURR_NR] < words[p + P_CAPACITY] and is_too_many(words, p) == 0:
        words[p + P_PUTS_RESERVE] += 1
        status = words[p + P_CURR_NR]
        push_element(words, p, offset)
        if words[p + P_WAITERS] > 0:
            grant_locked(words, p)
        if words[p + P_CURR_NR] < words[p + P_REFILL_LOW]:
            supply_locked(words, p, words[p + P_REFILL_HIGH], REFILL_BATCH)
            grant_locked(words, p)
    else:
        status = backing_free_locked(words, p, offset)
        words[p + P_PUTS_FREE] += 1 if status >= OK else 0
        status += OUT_OF_RESERVE
        end_if_last(words, p)
    unlock(words)
    return status


@entry
def pool_free(words: Words, p: int, offset: int) -> int:
    """Take an element back: into the reserve if that has room, else to the backing allocator (SURPLUS: by the face)."""
    status = pool_return(words, p, offset)
    return OK if status >= 0 else status - OUT_OF_RESERVE
