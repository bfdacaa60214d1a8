"""Sheaves: arrays of free objects that a thread keeps for itself, in front of the slabs of a cache.

1. For each sheaf index a record has a descriptor of two sheaves, read and written without a lock: objects are popped from the
   *main* one and put onto the *spare* one. With one array for both, each pair would wait for its own store: top, object, page,
   cache, top is a chain of 36 cycles (13.6 ns a pair measured, 9.7 with two). There are no links in the objects.
2. An empty main sheaf is exchanged for the spare one if that has more than a quarter, else for a full one of the thread's
   *stock* (stock.py); a full spare one for an empty main one, or an empty one in stock. All that without the lock. With the
   lock, once for up to MAX_SHEAF_OBJECTS objects: an empty main sheaf is exchanged for a full one of the cache's *barn*, or
   filled from the slabs; a full spare one for an empty one while stock or barn take full ones, or flushed to the slabs
   (Bonwick's magazines, the kernel's sheaves).
3. Nothing is owned: an object goes to a sheaf of the thread that frees it. What flows from one thread to another goes through
   the barn, a sheaf at a time.
4. For the slabs an object in a sheaf is in use. The map of its slab is what makes a free exact: a second one is refused while
   the first is on top, or back in the slab, and is counted (H_BAD_FREES) when its sheaf is flushed. In between it is in two
   sheaves' places, and may get two owners, as after any second free in C; the structures stay whole.

Invariant, per descriptor: BASE - 1 <= TOP, PUT_BASE - 1 <= PUT <= PUT_END, and the words at BASE - 1 and PUT_BASE - 1 are 0.
Without sheaves all tops and ends are H_ZERO, a word that is 0: empty and full at once.
Invariant, per cache: every object in a sheaf is in use by its slab's map, and in one sheaf only.
"""

from __future__ import annotations

from typing import Final

from realalloc.mm.atomic import prefetch_for_write
from realalloc.mm.barn import (
    barn_get,
    barn_put,
    free_sheaf_locked,
    get_empty,
    get_room,
    new_sheaf_locked,
    put_empty,
    widen_barn_locked,
)
from realalloc.mm.bits import product_of_one
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_BARN_FULL,
    C_MAGIC,
    C_NR_BARN_FULL,
    C_OBJECTS,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    D_BASE,
    D_LAST,
    D_MAGIC,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    H_BAD_FREES,
    H_ZERO,
    MAX_FILL_BYTES,
    MIN_SHEAF_OBJECTS,
    NULL_RECORD,
    S_COUNT,
    S_OBJECTS,
    SHEAF_DESC_WORDS,
    SHEAF_INDICES,
    SHEAF_SHIFT,
)
from realalloc.mm.records import own_record_locked
from realalloc.mm.slab import cache_alloc_locked, free_objects_locked, take_objects_locked
from realalloc.mm.stock import (
    stock_empty,
    stock_full,
    stock_may_grow,
    take_empty,
    take_full,
)
from realalloc.mm.threads import enter, enter_near, leave, record_inside

FEW_SHIFT: Final = 2  # a quarter of a sheaf or less is not worth an exchange
PLACE_SHIFT = SHEAF_SHIFT - 3  # a sheaf index in a struct page, as a place in a record
PLACE_MASK = (SHEAF_INDICES - 1) << 3

assert SHEAF_DESC_WORDS == 1 << 3


@kernel
def place_of(info: int) -> int:
    """Return where a record has the descriptor for what a struct page says."""
    return info >> PLACE_SHIFT & PLACE_MASK


@kernel
def pop_in(words: Words, slot: int, place: int) -> int:
    """Take the top object of the main sheaf in the calling thread's slot, or nobody's; 0 if that is empty or locked."""
    d = record_inside(words, slot) + place
    top = words[d + D_TOP]
    offset = words[top]
    if offset != 0:
        words[d + D_TOP] = top - 1
        prefetch_for_write(words, offset)  # a caller's stores wait for a line one after the other, prefetches do not
    leave(words, slot)
    return offset


@kernel
def pop(words: Words, near: int, place: int) -> int:
    """Take the top object of the calling thread's main sheaf; 0 if that is empty or cannot be had without the lock.

    ``near`` is :func:`my_place`, ``place`` where the record has the descriptor (C_SHEAF).
    """
    slot = enter_near(words, near)
    return pop_in(words, slot, place) if slot != 0 else 0


@kernel
def put(words: Words, d: int, offset: int) -> int:
    """Put an object onto a descriptor's spare sheaf; 0 if that is full, or has this very object on top."""
    top = words[d + D_PUT]
    if top == words[d + D_PUT_END] or words[top] == offset:
        return 0
    words[top + 1] = offset
    words[d + D_PUT] = top + 1
    return 1


@kernel
def count_of(words: Words, d: int) -> int:
    """Count the objects of a descriptor's main sheaf."""
    return words[d + D_TOP] - words[d + D_BASE] + 1


@kernel
def count_put(words: Words, d: int) -> int:
    """Count the objects of a descriptor's spare sheaf."""
    return words[d + D_PUT] - words[d + D_PUT_BASE] + 1


@kernel
def has_sheaves(words: Words, d: int) -> int:
    """Tell whether a descriptor has its sheaves, always both."""
    return 1 if words[d + D_PUT_END] != H_ZERO else 0


@kernel
def is_worth_exchanging(words: Words, d: int) -> int:
    """Tell whether the spare sheaf has enough to become the main one: an exchange for each few objects is a call for each.

    Who replaces the oldest of 32 objects of 512 B had one object going round: 15.5 ns a step, 7 with a quarter of a sheaf.
    """
    return 1 if count_put(words, d) > (words[d + D_PUT_END] - words[d + D_PUT_BASE] + 1) >> FEW_SHIFT else 0


@kernel
def exchange(words: Words, d: int) -> None:
    """Make the spare sheaf the main one, and the other way round."""
    top = words[d + D_TOP]
    base = words[d + D_BASE]
    capacity = words[d + D_PUT_END] - words[d + D_PUT_BASE]
    words[d + D_TOP] = words[d + D_PUT]
    words[d + D_BASE] = words[d + D_PUT_BASE]
    words[d + D_PUT] = top
    words[d + D_PUT_BASE] = base
    words[d + D_PUT_END] = base + capacity


@kernel
def free_main(words: Words, d: int) -> int:
    """Take the main sheaf off a descriptor, to be replaced at once; return it."""
    sheaf = words[d + D_BASE] - S_OBJECTS
    words[sheaf + S_COUNT] = count_of(words, d)
    return sheaf


@kernel
def free_put(words: Words, d: int) -> int:
    """Take the spare sheaf off a descriptor, to be replaced at once; return it."""
    sheaf = words[d + D_PUT_BASE] - S_OBJECTS
    words[sheaf + S_COUNT] = count_put(words, d)
    return sheaf


@kernel
def set_main(words: Words, d: int, sheaf: int) -> None:
    """Make a sheaf the main one."""
    words[d + D_BASE] = sheaf + S_OBJECTS
    words[d + D_TOP] = sheaf + S_OBJECTS + words[sheaf + S_COUNT] - 1


@kernel
def set_put(words: Words, d: int, sheaf: int, capacity: int) -> None:
    """Make a sheaf the spare one."""
    words[d + D_PUT_BASE] = sheaf + S_OBJECTS
    words[d + D_PUT] = sheaf + S_OBJECTS + words[sheaf + S_COUNT] - 1
    words[d + D_PUT_END] = sheaf + S_OBJECTS + capacity - 1


@kernel
def _find_full(words: Words, d: int) -> int:
    """Make an empty main sheaf of a descriptor hold what the thread has itself: the spare one, or one in stock; 1 if done."""
    if is_worth_exchanging(words, d) == 1:
        exchange(words, d)
        return 1
    full = take_full(words, d)
    if full != 0:
        stock_empty(words, d, free_main(words, d))
        set_main(words, d, full)
    return 1 if full != 0 else 0


@kernel
def exchange_and_pop(words: Words, place: int) -> int:
    """Pop, if need be what the calling thread has put; 0 if there is nothing, or a lock is needed."""
    slot = enter(words)
    if slot == 0:
        return 0
    offset = 0
    d = record_inside(words, slot) + place
    if count_of(words, d) == 0:
        _find_full(words, d)
    if count_of(words, d) > 0:
        offset = words[words[d + D_TOP]]
        words[d + D_TOP] -= 1
    leave(words, slot)
    return offset


@kernel
def exchange_for_room(words: Words, d: int) -> None:
    """Make room to put, where the main sheaf of a descriptor is empty and the spare one full."""
    if has_sheaves(words, d) == 1 and count_of(words, d) == 0 and words[d + D_PUT] == words[d + D_PUT_END]:
        exchange(words, d)


@kernel
def find_room(words: Words, d: int) -> None:
    """The same of a cache's descriptor, which has a stock: an empty sheaf may be there, too."""
    exchange_for_room(words, d)
    empty = take_empty(words, d) if has_sheaves(words, d) == 1 and words[d + D_PUT] == words[d + D_PUT_END] else 0
    if empty != 0:
        capacity = words[d + D_PUT_END] - words[d + D_PUT_BASE] + 1
        stock_full(words, d, free_put(words, d))
        set_put(words, d, empty, capacity)


@kernel
def own_sheaf_locked(words: Words, place: int) -> int:
    """Return the calling thread's descriptor at a place > 0; 0 if it has no record."""
    record = own_record_locked(words)
    return record + place if record != NULL_RECORD else 0


@entry
def give_sheaves_locked(words: Words, d: int, capacity: int) -> int:
    """Give a descriptor two empty sheaves, if it has none; 0 if there is no memory for them."""
    if has_sheaves(words, d) == 1:
        return 1
    main = new_sheaf_locked(words)
    spare = new_sheaf_locked(words) if main != 0 else 0
    if spare == 0:
        if main != 0:
            free_sheaf_locked(words, main)
        return 0
    set_main(words, d, main)
    set_put(words, d, spare, capacity)
    return 1


@kernel
def _prepare(words: Words, c: int, d: int) -> int:
    """Give a descriptor sheaves, if it has none, and the geometry of its cache; 0 if there is no memory for them."""
    if has_sheaves(words, d) == 1:
        return 1
    if give_sheaves_locked(words, d, words[c + C_SHEAF_CAPACITY]) == 0:
        return 0
    words[d + D_MAGIC] = words[c + C_MAGIC]
    words[d + D_LAST] = (words[c + C_OBJECTS] - 1) * product_of_one(words[c + C_STRIDE_BYTES])
    return 1


@kernel
def _fill_main(words: Words, c: int, d: int, gfp: int) -> None:
    """Fill an empty main sheaf from the slabs, by half if the spare one has some: what goes round shall fit into one. Of
    large objects no more than MAX_FILL_BYTES: the rest of a sheaf is for what comes back.
    """
    capacity = min(words[c + C_SHEAF_CAPACITY], max(MAX_FILL_BYTES // words[c + C_STRIDE_BYTES], MIN_SHEAF_OBJECTS))
    wanted = capacity if count_put(words, d) == 0 else (capacity + 1) >> 1
    base = words[d + D_BASE]
    at = take_objects_locked(words, c, base, base + wanted, gfp)
    count = base + wanted - at
    for k in range(count if at != base else 0):
        words[base + k] = words[at + k]
    words[d + D_TOP] = base + count - 1


@entry
def refill_sheaf_locked(words: Words, c: int, d: int, gfp: int) -> int:
    """Make the main sheaf of a descriptor hold objects; return how many it has, 0 if none can be had."""
    if _prepare(words, c, d) == 0:
        return 0
    if count_of(words, d) == 0 and _find_full(words, d) == 0:
        if words[c + C_BARN_FULL] != 0:
            emptied = free_main(words, d)
            set_main(words, d, barn_get(words, c + C_BARN_FULL, c + C_NR_BARN_FULL))
            put_empty(words, c, emptied)
        else:
            _fill_main(words, c, d, gfp)
            widen_barn_locked(words, c)
        if count_of(words, d) == 0 and count_put(words, d) > 0:
            exchange(words, d)
    return count_of(words, d)


@kernel
def flush_locked(words: Words, c: int, base: int, count: int) -> int:
    """Return the objects in ``count`` words from ``base`` on to their slabs; return how many were refused."""
    refused = free_objects_locked(words, c, base, base + count)
    words[H_BAD_FREES] += refused
    return refused


@entry
def make_room_locked(words: Words, c: int, d: int) -> int:
    """Make the spare sheaf of a descriptor have a free place; 0 if there is no memory for a sheaf."""
    if _prepare(words, c, d) == 0:
        return 0
    find_room(words, d)
    if words[d + D_PUT] != words[d + D_PUT_END]:
        return 1
    in_stock = stock_may_grow(words, c, d)
    empty = get_empty(words, c) if in_stock == 1 else get_room(words, c)
    if empty == 0:
        flush_locked(words, c, words[d + D_PUT_BASE], count_put(words, d))
        words[d + D_PUT] = words[d + D_PUT_BASE] - 1
        return 1
    if in_stock == 1:
        stock_full(words, d, free_put(words, d))
    else:
        barn_put(words, c + C_BARN_FULL, c + C_NR_BARN_FULL, free_put(words, d))
    set_put(words, d, empty, words[c + C_SHEAF_CAPACITY])
    return 1


@entry
def object_alloc_locked(words: Words, c: int, gfp: int) -> int:
    """Allocate an object, refilling the calling thread's sheaf; an offset, ENOMEM or EAGAIN (see cache_alloc_locked)."""
    d = own_sheaf_locked(words, words[c + C_SHEAF]) if words[c + C_SHEAF] != 0 else 0
    if d == 0 or refill_sheaf_locked(words, c, d, gfp) == 0:
        return cache_alloc_locked(words, c, gfp)
    top = words[d + D_TOP]
    words[d + D_TOP] = top - 1
    return words[top]
