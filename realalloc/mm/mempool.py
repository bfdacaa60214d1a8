"""Mempools: a reserve of elements that are there before they are needed.

1. The reserve is an array of element offsets, filled when the pool is made; every page of every element is touched then.
2. ``alloc`` takes from the reserve first and asks the backing allocator when it is empty (or the other way round, the
   kernel's order, with ORDER_ALLOC_FIRST). ``free`` refills the reserve first. With ORDER_RESERVE_ONLY there are never more
   than capacity elements: the backing allocator is asked for what is missing, and nothing else.
3. Who must wait queues (:mod:`realalloc.mm.mempool_wait`). While somebody does, the reserve is the queue's, and so is what the
   backing allocator gives to somebody who may wait: nobody overtakes. Who may not wait can still have a fresh element.
4. With BACKING_OBJECT elements are numbers of the face's objects: it makes and frees them, everything else is the same
   (:mod:`realalloc.mm.mempool_face`).

Guarantee: curr_nr + out + missing >= capacity, where out = gets - puts and missing is what a failed top-up still owes: an
element is only given to the backing allocator while the reserve is full. So whoever waits gets one when users return theirs.
With ORDER_RESERVE_ONLY it is an equation, unless a resize has left more than capacity out: then nothing is missing.
Invariant: 0 <= curr_nr <= capacity = max(1, min_nr), and every reserved element is a live block of the backing allocator.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.charge import detach_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked, kmalloc_retry_locked
from realalloc.mm.layout import (
    BAD_POOL,
    BAD_POOL_ELEMENT,
    BAD_POOL_POISON,
    EBUSY,
    ENOMEM,
    GFP_ORDINARY,
    GFP_WAIT_BIT,
    GFP_ZERO_BIT,
    H_CLOSED,
    H_POOLS,
    N_NEED,
    N_NEXT,
    OK,
    ORDER_ALLOC_FIRST,
    ORDER_RESERVE_ONLY,
    P_ARG,
    P_BACKING,
    P_BUDGET,
    P_CAPACITY,
    P_CURR_NR,
    P_DAMAGED,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_FAIL_INTERVAL,
    P_FAILS,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_GRANTED,
    P_HEAD,
    P_LOW,
    P_MADE_NS,
    P_MIN_NR,
    P_MISSING,
    P_NEXT,
    P_NODES,
    P_ORDER,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    P_REFILL_HIGH,
    P_REFILL_LOW,
    P_SHELF,
    P_STATE,
    P_WAITERS,
    P_WIPE,
    P_ZONE,
    POOL_DETACHED,
    POOL_LIVE,
    POOL_WORDS,
    SURPLUS,
    WIPE_POISON_ON_FREE,
    WORD_BYTES,
)
from realalloc.mm.pages import zero_range
from realalloc.mm.prim import monotonic_ns
from realalloc.mm.reserve import (
    adopt_element,
    backing_alloc_locked,
    backing_free_locked,
    backing_retry_locked,
    elements_at,
    fill_words,
    is_element,
    is_poisoned,
    pop_element,
    prefault,
    push_element,
    supply_locked,
    wipe_freed,
    wipe_taken,
)
from realalloc.mm.waiters import (
    account_locked,
    free_chunks_locked,
    grant_locked,
    init_nodes_locked,
    pool_out,
    spare_elements,
    validate_queue_locked,
    wake_all_locked,
)

OUT_OF_RESERVE = -1 << 32  # far below every status
REFILL_BATCH = 8  # elements that one free tops the reserve up by, at most


@entry
def pool_create(words: Words, min_nr: int, backing: int, arg: int, element_bytes: int, order: int, zone: int) -> int:
    """Make a pool with an empty reserve; return its word index or ENOMEM. :func:`pool_fill` comes next."""
    capacity = max(1, min_nr)
    lock(words)
    where = kmalloc_retry_locked(words, POOL_WORDS * WORD_BYTES, GFP_ORDINARY)
    elements = kmalloc_retry_locked(words, capacity * WORD_BYTES, GFP_ORDINARY)
    if where < 0 or elements < 0 or words[H_CLOSED] != 0:
        if where > 0:
            kfree_locked(words, where)
        if elements > 0:
            kfree_locked(words, elements)
        unlock(words)
        return ENOMEM
    p = where // WORD_BYTES
    zero_range(words, p, POOL_WORDS)
    words[p + P_MIN_NR] = min_nr
    words[p + P_BACKING] = backing
    words[p + P_ARG] = arg
    words[p + P_ELEMENT_BYTES] = element_bytes
    words[p + P_ORDER] = order
    words[p + P_ZONE] = zone
    words[p + P_ELEMENTS_BYTES] = elements
    words[p + P_CAPACITY] = capacity
    words[p + P_MISSING] = capacity
    words[p + P_FAIL_INTERVAL] = 1
    words[p + P_MADE_NS] = monotonic_ns()
    init_nodes_locked(words, p)
    words[p + P_NEXT] = words[H_POOLS]
    words[H_POOLS] = p
    unlock(words)
    return p


@entry
def pool_fill(words: Words, p: int) -> int:
    """Top the reserve up from the backing allocator by what it is owed; OK, or why it stopped. Elements are prefaulted.

    The lock is held for one element at a time: page faults are slow.
    """
    status = OK
    while status == OK and words[p + P_MISSING] > 0:
        lock(words)
        offset = backing_retry_locked(words, p, GFP_ORDINARY)
        unlock(words)
        if offset < 0:
            return offset
        prefault(words, offset, words[p + P_ELEMENT_BYTES])
        wipe_freed(words, p, offset)
        lock(words)
        if words[p + P_MISSING] > 0 and words[p + P_CURR_NR] < words[p + P_CAPACITY]:
            adopt_element(words, p, offset)
        else:  # others returned theirs meanwhile
            words[p + P_MISSING] = 0
            backing_free_locked(words, p, offset)
        words[p + P_LOW] = words[p + P_CURR_NR]
        grant_locked(words, p)
        unlock(words)
    return status


@entry
def pool_refill(words: Words, p: int, target: int) -> int:
    """Top the reserve up, beyond what it is owed; OK, or why it stopped."""
    lock(words)
    status = supply_locked(words, p, target, target) if words[H_CLOSED] == 0 else ENOMEM
    grant_locked(words, p)
    unlock(words)
    return status


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


@kernel
def _largest_need(words: Words, p: int) -> int:
    largest = 0
    node = words[p + P_HEAD]
    while node != 0:
        largest = max(largest, words[node + N_NEED])
        node = words[node + N_NEXT]
    return largest


@entry
def pool_resize(words: Words, p: int, min_nr: int, out: Words) -> int:
    """Change min_nr: surplus elements go back now; :func:`pool_fill` adds missing ones. ENOMEM changes nothing.

    What is granted stays: the reserve cannot shrink below it, EBUSY. ``out[0]`` counts elements that the face must free
    (BACKING_OBJECT), their numbers follow.
    """
    capacity = max(1, min_nr)
    lock(words)
    out[0] = 0
    if capacity < words[p + P_GRANTED] or _largest_need(words, p) > capacity:
        unlock(words)
        return EBUSY
    fresh = kmalloc_retry_locked(words, capacity * WORD_BYTES, GFP_ORDINARY)
    if fresh > 0:
        words[p + P_CAPACITY] = capacity
        while words[p + P_CURR_NR] > capacity or (is_too_many(words, p) == 1 and spare_elements(words, p) > 0):
            offset = pop_element(words, p)
            if backing_free_locked(words, p, offset) == SURPLUS:
                out[0] += 1
                out[out[0]] = offset
        for k in range(words[p + P_CURR_NR]):
            words[fresh // WORD_BYTES + k] = words[elements_at(words, p) + k]
        kfree_locked(words, words[p + P_ELEMENTS_BYTES])
        words[p + P_ELEMENTS_BYTES] = fresh
        words[p + P_MIN_NR] = min_nr
        words[p + P_MISSING] = max(0, capacity - words[p + P_CURR_NR] - pool_out(words, p))
        words[p + P_LOW] = words[p + P_CURR_NR]
    unlock(words)
    return OK if fresh > 0 else ENOMEM


@entry
def pool_destroy(words: Words, p: int, force: int, out: Words) -> int:
    """End a pool: its reserve goes back. EBUSY, with nothing changed, while elements are out or somebody waits; both are
    woken or left to end by themselves with ``force``. Numbers of objects go to ``out`` as in :func:`pool_resize`.
    """
    lock(words)
    out[0] = 0
    if force == 0 and (pool_out(words, p) != 0 or words[p + P_NODES] != 0):
        unlock(words)
        return EBUSY
    words[p + P_STATE] = POOL_DETACHED
    words[p + P_SHELF] = 0
    wake_all_locked(words, p)
    while words[p + P_CURR_NR] > 0:
        offset = pop_element(words, p)
        if backing_free_locked(words, p, offset) == SURPLUS:
            out[0] += 1
            out[out[0]] = offset
    kfree_locked(words, words[p + P_ELEMENTS_BYTES])
    words[p + P_ELEMENTS_BYTES] = 0
    words[p + P_CAPACITY] = 0
    words[p + P_REFILL_LOW] = 0
    if words[H_POOLS] == p:
        words[H_POOLS] = words[p + P_NEXT]
    else:
        before = words[H_POOLS]
        while words[before + P_NEXT] != p:
            before = words[before + P_NEXT]
        words[before + P_NEXT] = words[p + P_NEXT]
    end_if_last(words, p)
    unlock(words)
    return OK


@entry
def _validate_pool_locked(words: Words, p: int) -> int:
    curr = words[p + P_CURR_NR]
    capacity = words[p + P_CAPACITY]
    if not 0 <= curr <= capacity or capacity != max(1, words[p + P_MIN_NR]) or pool_out(words, p) < 0:
        return BAD_POOL
    missing = words[p + P_MISSING]
    if curr + pool_out(words, p) + missing < capacity or words[p + P_WAITERS] < 0 or missing < 0:
        return BAD_POOL
    if words[p + P_ORDER] == ORDER_RESERVE_ONLY and missing > 0 and curr + pool_out(words, p) + missing > capacity:
        return BAD_POOL
    for k in range(curr):
        offset = words[elements_at(words, p) + k]
        if is_element(words, p, offset) == 0 or (k > 0 and words[elements_at(words, p) + k - 1] == offset):
            return BAD_POOL_ELEMENT
        if words[p + P_WIPE] & WIPE_POISON_ON_FREE and is_poisoned(words, p, offset) == 0:
            return BAD_POOL_POISON
    if words[p + P_DAMAGED] != 0:
        return BAD_POOL_POISON
    return validate_queue_locked(words, p)


@entry
def validate_pool(words: Words, p: int) -> int:
    """Check the guarantee and the invariant at the head of this file for one pool; OK or the broken one."""
    lock(words)
    status = _validate_pool_locked(words, p)
    unlock(words)
    return status


@entry
def validate_pools(words: Words) -> int:
    """Check every pool; OK or the broken invariant."""
    lock(words)
    status = OK
    p = words[H_POOLS]
    while p != 0 and status == OK:
        status = _validate_pool_locked(words, p)
        p = words[p + P_NEXT]
    unlock(words)
    return status
