"""The reserve of a mempool and the backing allocator behind it: an array of elements, wiped and made to fail by policy.

Everything here is done with the arena lock, but for wiping and touching an element that nobody else has.

Invariant: 0 <= curr_nr <= capacity; words [0, curr_nr) of the array are elements, the next to be taken last.
"""

from __future__ import annotations

from realalloc.mm.atomic import atomic_add, atomic_load, atomic_store
from realalloc.mm.charge import charge_locked, uncharge_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import kfree_locked, kmalloc_locked, ksize_locked, usable_bytes
from realalloc.mm.layout import (
    BACKING_CACHE,
    BACKING_OBJECT,
    BACKING_PAGES,
    CHARGE_ELEMENTS,
    ENOMEM,
    FAIL_BITS,
    GFP_DMA_BIT,
    GFP_NOMEMALLOC_BIT,
    GFP_NORETRY_BIT,
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    H_BLOCKS,
    KIND_PAGES,
    OK,
    ORDER_RESERVE_ONLY,
    P_ARG,
    P_BACKING,
    P_BUDGET,
    P_CAPACITY,
    P_CURR_NR,
    P_DAMAGED,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_FAIL_BELOW,
    P_FAIL_CALLS,
    P_FAIL_INTERVAL,
    P_FAIL_STATE,
    P_FAIL_TIMES,
    P_FAILED,
    P_LOW,
    P_MISSING,
    P_ORDER,
    P_REFILLS,
    P_WIPE,
    P_ZONE,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_WORDS,
    POISON_FREE,
    POISON_INUSE,
    SURPLUS,
    WIPE_POISON_ON_ALLOC,
    WIPE_POISON_ON_FREE,
    WIPE_ZERO_ON_ALLOC,
    WIPE_ZERO_ON_FREE,
    WORD_BYTES,
    ZONE_DMA,
)
from realalloc.mm.reclaim import try_again_locked
from realalloc.mm.slab import cache_alloc_locked, cache_free_locked, is_live_object
from realalloc.mm.watermark import get_block_locked


@kernel
def is_injected(words: Words, p: int) -> int:
    """Tell whether this call of the backing allocator is to fail (kernel: should_fail)."""
    if words[p + P_FAIL_TIMES] == 0:
        return 0
    words[p + P_FAIL_CALLS] += 1
    draw = (words[p + P_FAIL_STATE] * 1103515245 + 12345) & 0x7FFFFFFF
    words[p + P_FAIL_STATE] = draw
    if words[p + P_FAIL_CALLS] % words[p + P_FAIL_INTERVAL] != 0 or draw >> (31 - FAIL_BITS) >= words[p + P_FAIL_BELOW]:
        return 0
    words[p + P_FAIL_TIMES] -= 1 if words[p + P_FAIL_TIMES] > 0 else 0
    words[p + P_FAILED] += 1
    return 1


@kernel
def charge_of(words: Words, p: int) -> int:
    """Return what an element of kmalloc or of pages charges to the pool's budget."""
    if words[p + P_BACKING] == BACKING_PAGES:
        return PAGE_BYTES << words[p + P_ARG]
    return usable_bytes(words, words[p + P_ARG], GFP_DMA_BIT if words[p + P_ZONE] == ZONE_DMA else 0)


@kernel
def _from_backing_locked(words: Words, p: int, gfp: int) -> int:
    if words[p + P_BACKING] == BACKING_CACHE:
        return cache_alloc_locked(words, words[p + P_ARG], gfp)
    if words[p + P_BACKING] == BACKING_PAGES:
        pfn = get_block_locked(words, words[p + P_ZONE], words[p + P_ARG], KIND_PAGES, gfp & ~GFP_ZERO_BIT)
        if pfn < 0:
            return pfn
        words[H_BLOCKS] += 1
        return pfn << PAGE_SHIFT
    return kmalloc_locked(words, words[p + P_ARG], gfp | (GFP_DMA_BIT if words[p + P_ZONE] == ZONE_DMA else 0))


@entry
def backing_alloc_locked(words: Words, p: int, gfp: int) -> int:
    """Ask the backing allocator; an offset, ENOMEM or EAGAIN (constructor needed)."""
    if words[p + P_BACKING] >= BACKING_OBJECT or is_injected(words, p) == 1:
        return ENOMEM
    if words[p + P_BUDGET] == 0:
        return _from_backing_locked(words, p, gfp | GFP_NOMEMALLOC_BIT)
    if charge_locked(words, words[p + P_BUDGET], CHARGE_ELEMENTS, charge_of(words, p)) != OK:
        return ENOMEM
    offset = _from_backing_locked(words, p, gfp | GFP_NOMEMALLOC_BIT)
    if offset < 0:
        uncharge_locked(words, words[p + P_BUDGET], CHARGE_ELEMENTS, charge_of(words, p))
    return offset


@kernel
def backing_retry_locked(words: Words, p: int, gfp: int) -> int:
    """The same, reclaiming once if pages have run out."""
    offset = backing_alloc_locked(words, p, gfp)
    best = 0
    while offset == ENOMEM and words[p + P_FAIL_TIMES] == 0:
        best = try_again_locked(words, words[p + P_ZONE], gfp | GFP_NORETRY_BIT, best)
        if best == 0:
            break
        offset = backing_alloc_locked(words, p, gfp)
    return offset


@entry
def backing_free_locked(words: Words, p: int, offset: int) -> int:
    """Give an element to the backing allocator; SURPLUS if that is the face."""
    if words[p + P_BACKING] >= BACKING_OBJECT:
        return SURPLUS
    if words[p + P_BACKING] == BACKING_CACHE:
        return cache_free_locked(words, words[p + P_ARG], offset)
    status = kfree_locked(words, offset)
    if status == OK and words[p + P_BUDGET] != 0:
        uncharge_locked(words, words[p + P_BUDGET], CHARGE_ELEMENTS, charge_of(words, p))
    return status


@kernel
def prefault(words: Words, offset: int, nbytes: int) -> None:
    """Touch every page of an element."""
    at = offset // WORD_BYTES
    end = (offset + nbytes - 1) // WORD_BYTES
    while at <= end:
        atomic_store(words, at, atomic_load(words, at))  # plain words[at] = words[at] would be optimised away
        at = (at // PAGE_WORDS + 1) * PAGE_WORDS


@kernel
def element_words(words: Words, p: int) -> int:
    """Return the words of an element, the last one whole."""
    return (words[p + P_ELEMENT_BYTES] + WORD_BYTES - 1) // WORD_BYTES


@kernel
def fill_words(words: Words, p: int, offset: int, value: int) -> None:
    """Fill an element."""
    first = offset // WORD_BYTES
    for at in range(first, first + element_words(words, p)):
        words[at] = value


@entry
def wipe_freed(words: Words, p: int, offset: int) -> int:
    """Do what the pool's policy wants of an element that nobody has."""
    if words[p + P_WIPE] & WIPE_POISON_ON_FREE:
        fill_words(words, p, offset, POISON_FREE)
    elif words[p + P_WIPE] & WIPE_ZERO_ON_FREE:
        fill_words(words, p, offset, 0)
    return OK


@kernel
def is_poisoned(words: Words, p: int, offset: int) -> int:
    """Tell whether nobody has written into a poisoned element."""
    first = offset // WORD_BYTES
    for at in range(first, first + element_words(words, p)):
        if words[at] != POISON_FREE:
            return 0
    return 1


@entry
def wipe_taken(words: Words, p: int, offset: int, reserved: int) -> int:
    """Do what the policy wants of an element that is handed out; poison is looked at first where it must be whole."""
    if reserved == 1 and words[p + P_WIPE] & WIPE_POISON_ON_FREE and is_poisoned(words, p, offset) == 0:
        atomic_add(words, p + P_DAMAGED, 1)
    if words[p + P_WIPE] & WIPE_POISON_ON_ALLOC:
        fill_words(words, p, offset, POISON_INUSE)
    elif words[p + P_WIPE] & WIPE_ZERO_ON_ALLOC:
        fill_words(words, p, offset, 0)
    return OK


@kernel
def elements_at(words: Words, p: int) -> int:
    """Return the word index of the array of reserved elements."""
    return words[p + P_ELEMENTS_BYTES] // WORD_BYTES


@kernel
def push_element(words: Words, p: int, offset: int) -> None:
    """Put an element into the reserve, which has room."""
    words[elements_at(words, p) + words[p + P_CURR_NR]] = offset
    words[p + P_CURR_NR] += 1


@kernel
def pop_element(words: Words, p: int) -> int:
    """Take an element out of the reserve, which has one."""
    left = words[p + P_CURR_NR] - 1
    words[p + P_CURR_NR] = left
    words[p + P_LOW] = min(words[p + P_LOW], left)
    return words[elements_at(words, p) + left]


@kernel
def adopt_element(words: Words, p: int, offset: int) -> None:
    """Put a fresh element into the reserve."""
    words[p + P_MISSING] -= 1 if words[p + P_MISSING] > 0 else 0
    words[p + P_REFILLS] += 1
    push_element(words, p, offset)


@kernel
def owes(words: Words, p: int) -> int:
    """Return how many elements the backing allocator may add to the reserve."""
    room = words[p + P_CAPACITY] - words[p + P_CURR_NR]
    return min(room, words[p + P_MISSING]) if words[p + P_ORDER] == ORDER_RESERVE_ONLY else room


@entry
def supply_locked(words: Words, p: int, target: int, batch: int) -> int:
    """Bring the reserve up to ``target`` elements from the backing allocator, by at most ``batch``; return what stopped it."""
    target = min(target, words[p + P_CURR_NR] + owes(words, p))
    while words[p + P_CURR_NR] < target and batch > 0:
        offset = backing_retry_locked(words, p, GFP_ORDINARY)
        if offset < 0:
            return offset
        wipe_freed(words, p, offset)
        adopt_element(words, p, offset)
        batch -= 1
    return OK


@kernel
def is_element(words: Words, p: int, offset: int) -> int:
    """Tell whether this can be an element: a live block of the backing allocator."""
    if words[p + P_BACKING] >= BACKING_OBJECT:
        return 1 if offset > 0 else 0
    if words[p + P_BACKING] == BACKING_CACHE:
        return is_live_object(words, words[p + P_ARG], offset)
    return 1 if ksize_locked(words, offset) >= words[p + P_ELEMENT_BYTES] else 0
