"""Page blocks that a thread keeps: sheaves of blocks of one order, in front of the buddy (the kernel's per-cpu page lists).

The kernel keeps orders 0 to 3 and one huge order; here every order up to 2 MiB is kept, since a page fault costs as much as
three hundred pairs of kmalloc and kfree: the bytes of one sheaf are bounded, not the order. Small orders are refilled in
batches by the kernel's formula; half of a full sheaf, the colder one, goes back at once.

What is kept of one order serves no other: a buffer that grows by doubling would leave a block of each size behind. So a
thread that would get fresh memory gives back all that it keeps, first (ADR 37): each page of that costs a fault, up to 6 us.

A block in a sheaf is KIND_CACHED: allocated for the buddy, nobody's for everyone else, so a second free is refused exactly.
Only its owner, or who has drained it, changes the kind: a plain store.
Invariant: the KIND_CACHED blocks are those in the sheaves of index SHEAF_BLOCKS + order, each once.
Invariant, per slot: RECENT_PLACE is the place that RECENT_INFO names. Of which block that was true says RECENT: a hint.
"""

from __future__ import annotations

from realalloc.mm.atomic import thread_identity
from realalloc.mm.bits import clz
from realalloc.mm.buddy import free_block_locked
from realalloc.mm.drain import take_sheaves_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BLOCK_SHARE_SHIFT,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    DECAY,
    H_BLOCKS,
    H_END_PFN,
    H_MAX_ORDER,
    KIND_CACHED,
    KIND_LARGE,
    MAX_BLOCK_SHEAF_BYTES,
    MAX_SHEAF_OBJECTS,
    NULL_RECORD,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    PENDING_SHIFT,
    SHEAF_BLOCK_ORDERS,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_SHIFT,
    SLAB_BYTES_SHIFT,
    T_KEPT,
    T_RECENT,
    T_RECENT_INFO,
    T_RECENT_PLACE,
    Y_NS,
    ZONE_MASK,
    ZONE_NORMAL,
    ZONE_SHIFT,
)
from realalloc.mm.mobility import find_free
from realalloc.mm.pages import count_resident, info_at
from realalloc.mm.records import next_record, record_at
from realalloc.mm.sheaf import (
    count_of,
    count_put,
    exchange,
    exchange_for_room,
    give_sheaves_locked,
    own_sheaf_locked,
    place_of,
    put,
)
from realalloc.mm.threads import enter, enter_near, leave, own_slot, record_inside
from realalloc.mm.watermark import get_block_locked, get_part_locked

BATCH_ORDERS = 4  # orders below are refilled in batches (kernel: PAGE_ALLOC_COSTLY_ORDER)
BLOCK_INFO_MASK = (1 << PENDING_SHIFT) - 1  # kind, order and zone, without the sheaf


@kernel
def block_place(order: int) -> int:
    """Return where a record has the descriptor for an order."""
    return (SHEAF_BLOCKS + order) * SHEAF_DESC_WORDS


@kernel
def _capacity(words: Words, order: int) -> int:
    share = words[H_END_PFN] >> BLOCK_SHARE_SHIFT >> order
    if order >= SHEAF_BLOCK_ORDERS or share == 0:
        return 0
    return min(share, max(1, min(MAX_BLOCK_SHEAF_BYTES >> (PAGE_SHIFT + order), MAX_SHEAF_OBJECTS)))


@kernel
def _batch(words: Words, order: int) -> int:
    """Blocks to take from the buddy at once (kernel: zone_batchsize, for single pages)."""
    if order >= BATCH_ORDERS:
        return 1
    pages = min(words[H_END_PFN] >> 12, 64)
    pages = (1 << (63 - clz(max(pages + pages // 2, 1)))) - 1
    return max(1, min(pages >> order, _capacity(words, order) // 2))


@kernel
def block_info(order: int, kind: int) -> int:
    """Return what the struct page of a block of the normal zone says. KIND_LARGE names its sheaf, for kfree's fast path."""
    info = kind | order << ORDER_SHIFT
    if kind == KIND_LARGE and order < SHEAF_BLOCK_ORDERS:
        info |= (SHEAF_BLOCKS + order) << SHEAF_SHIFT | (PAGE_SHIFT + order) << SLAB_BYTES_SHIFT
    return info


@kernel
def _take(words: Words, slot: int, order: int, kind: int) -> int:
    """Take a block of the record of an own slot, of its main sheaf first, and give it a kind; its pfn, 0 if there is none.

    One small block that goes to and fro is taken from where it was put; of more than one, the others come first. Of large
    ones the one that was freed last comes first, as it is in the caches: two blocks of 1 MiB that take turns made ``a * 2``
    8 us slower than one.
    """
    d = record_inside(words, slot) + block_place(order)
    at = d + D_TOP
    if order >= BATCH_ORDERS and words[words[d + D_PUT]] != 0:
        at = d + D_PUT
    elif words[words[at]] == 0:
        if count_put(words, d) > 1:
            exchange(words, d)
        else:
            at = d + D_PUT
    top = words[at]
    pfn = words[top] >> PAGE_SHIFT
    if pfn != 0:
        words[at] = top - 1
        words[info_at(pfn)] = block_info(order, kind)
        if kind == KIND_LARGE:
            words[slot + T_RECENT_INFO] = block_info(order, kind)
            words[slot + T_RECENT_PLACE] = block_place(order)
            words[slot + T_RECENT] = pfn << PAGE_SHIFT
    leave(words, slot)
    return pfn


@kernel
def pop_block(words: Words, near: int, order: int, kind: int) -> int:
    """Take a block of the calling thread's, whose :func:`my_place` is ``near``, and give it a kind; return its pfn, 0 if
    there is none. For inlining.
    """
    if order >= SHEAF_BLOCK_ORDERS or enter_near(words, near) == 0:
        return 0
    return _take(words, near, order, kind)  # no choice of near and 0: what is stored there would wait for it


@entry
def pop_block_slow(words: Words, order: int, kind: int) -> int:
    """Take a block of the calling thread's, whose slot may be in the second place."""
    slot = enter(words) if order < SHEAF_BLOCK_ORDERS else 0
    return _take(words, slot, order, kind) if slot != 0 else 0


@kernel
def put_large(words: Words, slot: int, record: int, info: int, offset: int) -> int:
    """Keep the large block that begins at ``offset``, whose struct page says ``info``; 0 if it is none, or there is no room.

    Where the descriptor is told by the struct page, which the thread stored when it took the block, the next one taken waits
    for that, too: 11 ns a pair. Of the block that was taken last it is known before; the struct page is only compared, and
    nothing but a branch waits for it: 4.6 ns. What is no large block has a descriptor without sheaves. For inlining.
    """
    if words[slot + T_RECENT] == offset and words[slot + T_RECENT_INFO] == info:
        d = record + words[slot + T_RECENT_PLACE]
    else:
        d = record + place_of(info)
        if offset & (PAGE_BYTES - 1) != 0:
            return 0
    top = words[d + D_PUT]
    if top == words[d + D_PUT_END]:
        return 0
    words[top + 1] = offset
    words[d + D_PUT] = top + 1
    words[info_at(offset >> PAGE_SHIFT)] = info & BLOCK_INFO_MASK ^ (KIND_LARGE ^ KIND_CACHED)
    return 1


@kernel
def push_block(words: Words, pfn: int) -> int:
    """Keep a block of KIND_PAGES or KIND_LARGE for the calling thread; 0 if it has no room."""
    info = words[info_at(pfn)]
    order = info >> ORDER_SHIFT & ORDER_MASK
    if order >= SHEAF_BLOCK_ORDERS or info >> ZONE_SHIFT & ZONE_MASK != ZONE_NORMAL:
        return 0
    slot = enter(words)
    if slot == 0:
        return 0
    d = record_inside(words, slot) + block_place(order)
    exchange_for_room(words, d)
    done = put(words, d, pfn << PAGE_SHIFT)
    if done == 1:
        words[info_at(pfn)] = block_info(order, KIND_CACHED)
    leave(words, slot)
    return done


@kernel
def _release(words: Words, begin: int, end: int) -> None:
    """Return the blocks in words ``[begin, end)`` to the buddy."""
    for at in range(begin, end):
        free_block_locked(words, words[at] >> PAGE_SHIFT)
    words[H_BLOCKS] -= end - begin


@kernel
def _own_sheaf(words: Words, order: int, capacity: int) -> int:
    """Return the calling thread's descriptor for an order, with sheaves; 0 if there are none to be had."""
    d = own_sheaf_locked(words, block_place(order))
    if d == 0 or give_sheaves_locked(words, d, capacity) == 0:
        return 0
    return d


@entry
def keep_block_locked(words: Words, pfn: int) -> int:
    """Keep a block of KIND_PAGES or KIND_LARGE for the calling thread, making room; 0 if it cannot."""
    info = words[info_at(pfn)]
    order = info >> ORDER_SHIFT & ORDER_MASK
    capacity = _capacity(words, order)
    if capacity == 0 or info >> ZONE_SHIFT & ZONE_MASK != ZONE_NORMAL:
        return 0
    d = _own_sheaf(words, order, capacity)
    if d == 0:
        return 0
    if words[d + D_PUT] == words[d + D_PUT_END]:
        if count_of(words, d) == 0:
            exchange(words, d)
        else:
            base = words[d + D_PUT_BASE]
            half = (count_put(words, d) + 1) // 2
            _release(words, base, base + half)
            for at in range(base + half, words[d + D_PUT] + 1):
                words[at - half] = words[at]
            words[d + D_PUT] -= half
    words[info_at(pfn)] = block_info(order, KIND_CACHED)
    put(words, d, pfn << PAGE_SHIFT)
    return 1


@kernel
def _would_be_fresh(words: Words, order: int) -> int:
    """Tell whether the buddy has only pages without memory for an order, and keeps the memory of what is freed."""
    if order > words[H_MAX_ORDER] or words[DECAY + Y_NS] == 0:  # freed memory that goes back at once is no help
        return 0
    pfn = find_free(words, ZONE_NORMAL, order, 0)
    return 1 if pfn == 0 or count_resident(words, pfn, pfn + (1 << order)) == 0 else 0


@kernel
def _release_own(words: Words) -> None:
    """Return what the calling thread keeps to the buddy, where it merges, and is split, for other orders."""
    slot = own_slot(words, thread_identity())
    record = words[slot + T_KEPT] if slot != 0 else NULL_RECORD
    for order in range(SHEAF_BLOCK_ORDERS if record != NULL_RECORD else 0):
        d = record + block_place(order)
        _release(words, words[d + D_BASE], words[d + D_TOP] + 1)
        _release(words, words[d + D_PUT_BASE], words[d + D_PUT] + 1)
        words[d + D_TOP] = words[d + D_BASE] - 1
        words[d + D_PUT] = words[d + D_PUT_BASE] - 1


@entry
def fetch_block_locked(words: Words, order: int, kind: int, gfp: int, asked: int) -> int:
    """Get a block of the normal zone for so many pages from the buddy, small orders with more for the calling thread to keep;
    its pfn or ENOMEM. H_BLOCKS counts it. Before fresh memory is taken, what the thread keeps of other orders is given back.
    """
    if _would_be_fresh(words, order) == 1:
        _release_own(words)
    pfn = get_part_locked(words, ZONE_NORMAL, order, kind, gfp, asked)
    if pfn < 0:
        return pfn
    words[H_BLOCKS] += 1
    words[info_at(pfn)] = block_info(order, kind)
    more = _batch(words, order) - 1
    d = _own_sheaf(words, order, _capacity(words, order)) if more > 0 else 0
    if d != 0 and count_of(words, d) == 0:
        while more > 0:
            kept = get_block_locked(words, ZONE_NORMAL, order, KIND_CACHED, 0)  # a convenience: never of the reserve
            if kept < 0:
                break
            words[H_BLOCKS] += 1
            words[d + D_TOP] += 1
            words[words[d + D_TOP]] = kept << PAGE_SHIFT
            more -= 1
    return pfn


@entry
def drain_blocks_locked(words: Words) -> int:
    """Return the blocks that threads keep to the buddy; the others are locked out. Return how many there were."""
    count = 0
    place = next_record(words, 0)
    while place != 0:
        for order in range(SHEAF_BLOCK_ORDERS if record_at(words, place) != NULL_RECORD else 0):
            d = record_at(words, place) + block_place(order)
            count += count_of(words, d) + count_put(words, d)
            _release(words, words[d + D_BASE], words[d + D_TOP] + 1)
            _release(words, words[d + D_PUT_BASE], words[d + D_PUT] + 1)
            take_sheaves_locked(words, d)
        place = next_record(words, place)
    return count
