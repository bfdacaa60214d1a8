"""The life of a pool: made, filled, resized, destroyed; and whether it is whole.

The rules that these keep, guarantee and invariant, are those of :mod:`realalloc.mm.mempool`.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.descriptors import bad_chain, holds, is_descriptor
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked, kmalloc_retry_locked
from realalloc.mm.layout import (
    BAD_POOL,
    BAD_POOL_ELEMENT,
    BAD_POOL_POISON,
    EBUSY,
    ENOMEM,
    GFP_ORDINARY,
    H_CLOSED,
    H_END_PFN,
    H_POOLS,
    N_NEED,
    N_NEXT,
    OK,
    ORDER_RESERVE_ONLY,
    P_ARG,
    P_BACKING,
    P_CAPACITY,
    P_CURR_NR,
    P_DAMAGED,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_FAIL_INTERVAL,
    P_GRANTED,
    P_HEAD,
    P_LOW,
    P_MADE_NS,
    P_MIN_NR,
    P_MISSING,
    P_NEXT,
    P_NODES,
    P_ORDER,
    P_REFILL_LOW,
    P_SHELF,
    P_STATE,
    P_WAITERS,
    P_WIPE,
    P_ZONE,
    PAGE_WORDS,
    POOL_DETACHED,
    POOL_WORDS,
    SURPLUS,
    WIPE_POISON_ON_FREE,
    WORD_BYTES,
)
from realalloc.mm.mempool import end_if_last, is_too_many
from realalloc.mm.pages import zero_range
from realalloc.mm.prim import monotonic_ns
from realalloc.mm.reserve import (
    adopt_element,
    backing_free_locked,
    backing_retry_locked,
    elements_at,
    is_element,
    is_poisoned,
    pop_element,
    prefault,
    supply_locked,
    wipe_freed,
)
from realalloc.mm.waiters import (
    grant_locked,
    init_nodes_locked,
    pool_out,
    spare_elements,
    validate_queue_locked,
    wake_all_locked,
)


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


@kernel
def _is_poison(words: Words, p: int, offset: int) -> int:
    """Tell whether an element is all poison, where it is memory of the arena at all."""
    return is_poisoned(words, p, offset) if holds(words, offset, words[p + P_ELEMENT_BYTES]) == 1 else 0


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
    if (
        capacity > words[H_END_PFN] * PAGE_WORDS
        or holds(words, words[p + P_ELEMENTS_BYTES], capacity * WORD_BYTES) == 0
    ):
        return BAD_POOL
    for k in range(curr):
        offset = words[elements_at(words, p) + k]
        if is_element(words, p, offset) == 0 or (k > 0 and words[elements_at(words, p) + k - 1] == offset):
            return BAD_POOL_ELEMENT
        if words[p + P_WIPE] & WIPE_POISON_ON_FREE and _is_poison(words, p, offset) == 0:
            return BAD_POOL_POISON
    if words[p + P_DAMAGED] != 0:
        return BAD_POOL_POISON
    return validate_queue_locked(words, p)


@entry
def validate_pool(words: Words, p: int) -> int:
    """Check the guarantee and the invariant at the head of this file for one pool; OK or the broken one."""
    lock(words)
    status = _validate_pool_locked(words, p) if is_descriptor(words, p, POOL_WORDS) == 1 else BAD_POOL
    unlock(words)
    return status


@entry
def validate_pools(words: Words) -> int:
    """Check every pool; OK or the broken invariant."""
    lock(words)
    p = words[H_POOLS]
    status = BAD_POOL if bad_chain(words, p, P_NEXT, POOL_WORDS) == 1 else OK
    while p != 0 and status == OK:
        status = _validate_pool_locked(words, p)
        p = words[p + P_NEXT]
    unlock(words)
    return status
