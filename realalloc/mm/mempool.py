"""Mempools: a reserve of elements that are there before they are needed.

1. The reserve is an array of element offsets, filled when the pool is made; every page of every element is touched then.
2. ``alloc`` takes from the reserve first and asks the backing allocator when it is empty (or the other way round, the
   kernel's order, with P_ALLOC_FIRST). ``free`` refills the reserve first.
3. An element that comes back while somebody waits moves P_SEQ, under the lock, and wakes the sleepers on it.

Guarantee: curr_nr + out + missing >= capacity, where out = gets - puts and missing is what a failed top-up still owes: an
element is only given to the backing allocator while the reserve is full. So whoever waits gets one when users return theirs.
Invariant: 0 <= curr_nr <= capacity = max(1, min_nr), and every reserved element is a live block of the backing allocator.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, atomic_load, atomic_store, lock, unlock
from realalloc.mm.buddy import alloc_block_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked, kmalloc_locked, kmalloc_retry_locked, ksize_locked, zero_words
from realalloc.mm.layout import (
    BACKING_CACHE,
    BACKING_PAGES,
    BAD_POOL,
    BAD_POOL_ELEMENT,
    EBUSY,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    H_POOLS,
    KIND_PAGES,
    OK,
    P_ALLOC_FIRST,
    P_ARG,
    P_BACKING,
    P_CAPACITY,
    P_CURR_NR,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_FAILS,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_LOW,
    P_MIN_NR,
    P_MISSING,
    P_NEXT,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    P_SEQ,
    P_WAITERS,
    P_ZONE,
    PAGE_SHIFT,
    PAGE_WORDS,
    POOL_WORDS,
    WORD_BYTES,
    ZONE_DMA,
)
from realalloc.mm.pages import zero_range
from realalloc.mm.prim import futex_wake_all
from realalloc.mm.reclaim import reclaim_locked
from realalloc.mm.slab import cache_alloc_locked, cache_free_locked, is_live_object


@kernel
def _backing_alloc(words: Words, p: int, gfp: int) -> int:
    if words[p + P_BACKING] == BACKING_CACHE:
        return cache_alloc_locked(words, words[p + P_ARG])
    if words[p + P_BACKING] == BACKING_PAGES:
        pfn = alloc_block_locked(words, words[p + P_ZONE], words[p + P_ARG], KIND_PAGES, 0)
        if pfn < 0:
            return pfn
        words[H_BLOCKS] += 1
        return pfn << PAGE_SHIFT
    return kmalloc_locked(words, words[p + P_ARG], gfp)


@kernel
def _backing_free(words: Words, p: int, offset: int) -> int:
    if words[p + P_BACKING] == BACKING_CACHE:
        return cache_free_locked(words, words[p + P_ARG], offset)
    return kfree_locked(words, offset)


@kernel
def _prefault(words: Words, offset: int, nbytes: int) -> None:
    at = offset // WORD_BYTES
    end = (offset + nbytes - 1) // WORD_BYTES
    while at <= end:
        atomic_store(words, at, atomic_load(words, at))  # plain words[at] = words[at] would be optimised away
        at = (at // PAGE_WORDS + 1) * PAGE_WORDS


@kernel
def _elements(words: Words, p: int) -> int:
    return words[p + P_ELEMENTS_BYTES] // WORD_BYTES


@entry
def pool_create(
    words: Words, min_nr: int, backing: int, arg: int, element_bytes: int, alloc_first: int, zone: int
) -> int:
    """Make a pool with an empty reserve; return its word index or ENOMEM. :func:`pool_fill` comes next."""
    capacity = max(1, min_nr)
    lock(words)
    where = kmalloc_retry_locked(words, POOL_WORDS * WORD_BYTES, 0)
    elements = kmalloc_retry_locked(words, capacity * WORD_BYTES, 0)
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
    words[p + P_ALLOC_FIRST] = alloc_first
    words[p + P_ZONE] = zone
    words[p + P_ELEMENTS_BYTES] = elements
    words[p + P_CAPACITY] = capacity
    words[p + P_MISSING] = capacity
    words[p + P_NEXT] = words[H_POOLS]
    words[H_POOLS] = p
    unlock(words)
    return p


@kernel
def _push(words: Words, p: int, offset: int) -> None:
    words[_elements(words, p) + words[p + P_CURR_NR]] = offset
    words[p + P_CURR_NR] += 1


@kernel
def _pop(words: Words, p: int) -> int:
    left = words[p + P_CURR_NR] - 1
    words[p + P_CURR_NR] = left
    words[p + P_LOW] = min(words[p + P_LOW], left)
    return words[_elements(words, p) + left]


@kernel
def _wake(words: Words, p: int) -> None:
    lock(words)
    words[p + P_SEQ] += 1
    sleepers = words[p + P_WAITERS]
    unlock(words)
    if sleepers != 0:
        futex_wake_all(address_of(words) + (p + P_SEQ) * WORD_BYTES)


@entry
def pool_fill(words: Words, p: int) -> int:
    """Top the reserve up from the backing allocator; OK, or why it stopped. Elements are prefaulted.

    The lock is held for one element at a time: page faults are slow.
    """
    status = OK
    while status == OK and words[p + P_MISSING] > 0:
        lock(words)
        gfp = GFP_DMA_BIT if words[p + P_ZONE] == ZONE_DMA else 0
        offset = _backing_alloc(words, p, gfp)
        if offset == ENOMEM and reclaim_locked(words) > 0:
            offset = _backing_alloc(words, p, gfp)
        unlock(words)
        if offset < 0:
            return offset
        _prefault(words, offset, words[p + P_ELEMENT_BYTES])
        lock(words)
        if words[p + P_MISSING] > 0 and words[p + P_CURR_NR] < words[p + P_CAPACITY]:
            words[p + P_MISSING] -= 1
            _push(words, p, offset)
        else:  # others returned theirs meanwhile
            words[p + P_MISSING] = 0
            _backing_free(words, p, offset)
        words[p + P_LOW] = words[p + P_CURR_NR]
        unlock(words)
    _wake(words, p)
    return status


@kernel
def _pool_take(words: Words, p: int, gfp: int) -> int:
    if words[p + P_ALLOC_FIRST] == 0 and words[p + P_CURR_NR] > 0:
        words[p + P_GETS_RESERVE] += 1
        return _pop(words, p)
    zone_gfp = gfp | (GFP_DMA_BIT if words[p + P_ZONE] == ZONE_DMA else 0)
    offset = _backing_alloc(words, p, zone_gfp)
    if offset < 0 and words[p + P_CURR_NR] > 0:
        words[p + P_GETS_RESERVE] += 1
        return _pop(words, p)
    if offset == ENOMEM and reclaim_locked(words) > 0:
        offset = _backing_alloc(words, p, zone_gfp)
    if offset > 0:
        words[p + P_GETS_ALLOC] += 1
    else:
        words[p + P_FAILS] += 1
    return offset


@entry
def pool_alloc(words: Words, p: int, gfp: int) -> int:
    """Return the offset of an element, ENOMEM, or EAGAIN if the face must construct a slab first. Never sleeps."""
    lock(words)
    offset = _pool_take(words, p, gfp) if words[H_CLOSED] == 0 else ENOMEM
    unlock(words)
    if offset > 0 and gfp & GFP_ZERO_BIT:
        zero_words(words, offset, words[p + P_ELEMENT_BYTES])
    return offset


@entry
def pool_alloc_reserved(words: Words, p: int) -> int:
    """Return an element of the reserve, ENOMEM if it is empty (kernel: mempool_alloc_preallocated)."""
    lock(words)
    offset = ENOMEM
    if words[H_CLOSED] == 0 and words[p + P_CURR_NR] > 0:
        words[p + P_GETS_RESERVE] += 1
        offset = _pop(words, p)
    unlock(words)
    return offset


@entry
def pool_free(words: Words, p: int, offset: int) -> int:
    """Take an element back: into the reserve if that has room, else to the backing allocator."""
    lock(words)
    status = OK
    if words[p + P_CURR_NR] < words[p + P_CAPACITY]:
        words[p + P_PUTS_RESERVE] += 1
        _push(words, p, offset)
    else:
        status = _backing_free(words, p, offset)
        if status == OK:
            words[p + P_PUTS_FREE] += 1
    words[p + P_SEQ] += 1
    sleepers = words[p + P_WAITERS]
    unlock(words)
    if sleepers != 0:
        futex_wake_all(address_of(words) + (p + P_SEQ) * WORD_BYTES)
    return status


@kernel
def pool_out(words: Words, p: int) -> int:
    """Count elements that users hold."""
    gets = words[p + P_GETS_RESERVE] + words[p + P_GETS_ALLOC]
    return gets - words[p + P_PUTS_RESERVE] - words[p + P_PUTS_FREE]


@entry
def pool_wait_begin(words: Words, p: int) -> int:
    """Announce a sleeper; return the sequence that it must have seen before it looks for an element again."""
    lock(words)
    words[p + P_WAITERS] += 1
    sequence = words[p + P_SEQ]
    unlock(words)
    return sequence


@entry
def pool_wait_end(words: Words, p: int) -> int:
    """Take the announcement back."""
    lock(words)
    words[p + P_WAITERS] -= 1
    unlock(words)
    return OK


@entry
def pool_resize(words: Words, p: int, min_nr: int) -> int:
    """Change min_nr: surplus elements go back now; :func:`pool_fill` adds missing ones. ENOMEM changes nothing."""
    capacity = max(1, min_nr)
    lock(words)
    fresh = kmalloc_retry_locked(words, capacity * WORD_BYTES, 0)
    if fresh > 0:
        while words[p + P_CURR_NR] > capacity:
            _backing_free(words, p, _pop(words, p))
        for k in range(words[p + P_CURR_NR]):
            words[fresh // WORD_BYTES + k] = words[_elements(words, p) + k]
        kfree_locked(words, words[p + P_ELEMENTS_BYTES])
        words[p + P_ELEMENTS_BYTES] = fresh
        words[p + P_MIN_NR] = min_nr
        words[p + P_CAPACITY] = capacity
        words[p + P_MISSING] = max(0, capacity - words[p + P_CURR_NR] - pool_out(words, p))
        words[p + P_LOW] = words[p + P_CURR_NR]
    unlock(words)
    return OK if fresh > 0 else ENOMEM


@entry
def pool_destroy(words: Words, p: int) -> int:
    """Give reserve and descriptor back; EBUSY, with nothing changed, while elements are out or somebody waits, who is
    woken to look: a sleeper will still touch the descriptor.
    """
    _wake(words, p)
    lock(words)
    if pool_out(words, p) != 0 or words[p + P_WAITERS] != 0:
        unlock(words)
        return EBUSY
    while words[p + P_CURR_NR] > 0:
        _backing_free(words, p, _pop(words, p))
    kfree_locked(words, words[p + P_ELEMENTS_BYTES])
    if words[H_POOLS] == p:
        words[H_POOLS] = words[p + P_NEXT]
    else:
        before = words[H_POOLS]
        while words[before + P_NEXT] != p:
            before = words[before + P_NEXT]
        words[before + P_NEXT] = words[p + P_NEXT]
    kfree_locked(words, p * WORD_BYTES)
    unlock(words)
    return OK


@entry
def wake_pools(words: Words) -> int:
    """Wake whoever waits on any pool: the arena closes."""
    p = words[H_POOLS]
    while p != 0:
        _wake(words, p)
        p = words[p + P_NEXT]
    return OK


@entry
def after_fork(words: Words) -> int:
    """Forget the sleepers of the parent: their threads do not exist in the child."""
    p = words[H_POOLS]
    while p != 0:
        words[p + P_WAITERS] = 0
        p = words[p + P_NEXT]
    return OK


@kernel
def _validate_pool_locked(words: Words, p: int) -> int:
    curr = words[p + P_CURR_NR]
    capacity = words[p + P_CAPACITY]
    if not 0 <= curr <= capacity or capacity != max(1, words[p + P_MIN_NR]) or pool_out(words, p) < 0:
        return BAD_POOL
    if curr + pool_out(words, p) + words[p + P_MISSING] < capacity or words[p + P_WAITERS] < 0:
        return BAD_POOL
    for k in range(curr):
        offset = words[_elements(words, p) + k]
        if words[p + P_BACKING] == BACKING_CACHE:
            if is_live_object(words, words[p + P_ARG], offset) == 0:
                return BAD_POOL_ELEMENT
        elif ksize_locked(words, offset) < words[p + P_ELEMENT_BYTES]:
            return BAD_POOL_ELEMENT
        if k > 0 and words[_elements(words, p) + k - 1] == offset:
            return BAD_POOL_ELEMENT
    return OK


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
