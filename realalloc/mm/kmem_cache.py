"""Life of a cache: create, construct, shrink, destroy, look inside, validate.

A constructor is Python and may not run in here. So a cache that has one never makes slabs by itself: the face asks for a
slab whose objects all count as in use (``construct_begin``), leases every object to the constructor, and when the last of
these leases is dead (``construct_put``) the slab is published, or given back if the constructor failed. An object that
the constructor keeps a view of therefore cannot reach anybody else.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import bit, magic_of
from realalloc.mm.charge import detach_locked
from realalloc.mm.drain import drain_cache_locked
from realalloc.mm.freelist import first
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_CACHE_SUM,
    C_ALIGN_BYTES,
    C_ALLOCS,
    C_AT,
    C_BUDGET,
    C_EMPTY,
    C_FLAGS,
    C_FREES,
    C_MAGIC,
    C_MIN_ORDER,
    C_MIN_PARTIAL,
    C_NR_CONSTRUCTING,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_OBJECT_BYTES,
    C_OBJECTS,
    C_ORDER,
    C_PARTIAL,
    C_RECIPROCAL,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STATE,
    C_STRIDE_BYTES,
    C_ZONE,
    CACHE_FREE,
    CACHE_LIVE,
    CACHE_WORDS,
    CF_EXTERNAL_MAP,
    CF_LEAN,
    CF_NO_SHEAVES,
    EBUSY,
    EINVAL,
    ENOMEM,
    H_ALLOCATED_PAGES,
    H_CACHES,
    H_END_PFN,
    H_MAX_CACHES,
    H_NR_CACHES,
    H_NR_ZONES,
    H_ZERO,
    KIND_SLAB,
    LEAN_SHIFT,
    MAX_SHEAF_BYTES,
    MAX_SHEAF_OBJECTS,
    MAX_SLAB_ORDER,
    MIN_PARTIAL_HIGH,
    MIN_PARTIAL_LOW,
    MIN_SHEAF_OBJECTS,
    OK,
    PAGE_BYTES,
    PAGE_CONSTRUCTING,
    PAGE_FAILED,
    PAGE_MAP_BITS,
    PAGE_SHIFT,
    PENDING_ONE,
    PENDING_SHIFT,
    PG_LINK,
    RECIPROCAL_SHIFT,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_OWNERS,
    SHEAF_SHARE_SHIFT,
    WORD_BYTES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
)
from realalloc.mm.pages import info_at, kind_of, order_at, page_at, pages_at, zero_range, zone_at
from realalloc.mm.slab_map import cache_of, fill_map, free_objects, is_cache, map_at, objects_of, pending_of
from realalloc.mm.slab_page import (
    deactivate,
    new_slab_locked,
    release_slab_locked,
    set_sheaf_index,
    show_sheaf_index,
    slab_list_add,
    slab_list_remove,
)
from realalloc.mm.threads import let_in_locked, lock_out_locked
from realalloc.mm.walkers import next_slab, validate_cache_locked


def calculate_order(stride: int, max_order: int, min_objects: int) -> int:
    """Choose a slab order as the kernel does: the lowest with at least ``min_objects`` and waste of 1/16, then 1/8, ...

    -1 if not even one object fits into the largest block (kernel: calculate_order in mm/slub.c).
    """
    top = min(MAX_SLAB_ORDER, max_order)
    objects = min(min_objects, max((PAGE_BYTES << top) // stride, 1))
    lowest = max(0, (-(-objects * stride // PAGE_BYTES) - 1).bit_length())
    fraction = 16
    while fraction > 1:
        for order in range(lowest, top + 1):
            slab = PAGE_BYTES << order
            if slab >= stride and slab % stride <= slab // fraction:
                return order
        fraction //= 2
    order = max(0, (-(-stride // PAGE_BYTES) - 1).bit_length())
    return order if order <= max_order else -1


def cache_geometry(object_bytes: int, align_bytes: int, max_order: int, min_objects: int) -> tuple[int, int]:
    """Return stride and slab order of a cache; order -1 if an object is larger than the largest block."""
    align = max(align_bytes, WORD_BYTES)
    stride = max(-(-object_bytes // align) * align, WORD_BYTES)
    return stride, calculate_order(stride, max_order, min_objects)


@kernel
def sheaf_capacity(words: Words, stride: int, lean: int) -> int:
    """Return how many objects a sheaf of a cache holds, 0 for a cache whose objects are too large for this arena.

    The kernel's 60 for small objects; for large ones by bytes, up to 128 KiB, where the kernel allows 12 and 4 objects:
    the lock behind a sheaf costs as much as twenty pops. Sizes of 8 to 16000 B, 1000 live: 13.6 ns with 32 KiB, 9.3 with 128.
    ``lean`` is LEAN_SHIFT or 0.
    """
    nbytes = min(MAX_SHEAF_BYTES, words[H_END_PFN] << PAGE_SHIFT >> SHEAF_SHARE_SHIFT)
    if nbytes // stride < MIN_SHEAF_OBJECTS:
        return 0
    return min(max((nbytes >> lean) // stride, MIN_SHEAF_OBJECTS), MAX_SHEAF_OBJECTS)


@kernel
def _give_sheaf_index(words: Words, c: int) -> None:
    """Let a cache have sheaves, as long as there are indices."""
    capacity = sheaf_capacity(words, words[c + C_STRIDE_BYTES], LEAN_SHIFT if words[c + C_FLAGS] & CF_LEAN else 0)
    index = 1
    while index < SHEAF_BLOCKS and words[SHEAF_OWNERS + index] != 0:
        index += 1
    if capacity != 0 and index < SHEAF_BLOCKS:
        words[SHEAF_OWNERS + index] = c
        words[c + C_SHEAF] = index * SHEAF_DESC_WORDS
        words[c + C_SHEAF_CAPACITY] = capacity


@entry
def cache_create(words: Words, object_bytes: int, align: int, stride: int, order: int, flags: int, zone: int) -> int:
    """Take a free descriptor and fill it in; return its word index, or ENOMEM if the table is full."""
    lock(words)
    index = 0
    while index < words[H_NR_CACHES] and words[words[H_CACHES] + index * CACHE_WORDS + C_STATE] != CACHE_FREE:
        index += 1
    if index == words[H_MAX_CACHES]:
        unlock(words)
        return ENOMEM
    words[H_NR_CACHES] = max(words[H_NR_CACHES], index + 1)
    c = words[H_CACHES] + index * CACHE_WORDS
    zero_range(words, c, CACHE_WORDS)
    objects = (PAGE_BYTES << order) // stride
    words[c + C_OBJECT_BYTES] = object_bytes
    words[c + C_STRIDE_BYTES] = stride
    words[c + C_ALIGN_BYTES] = align
    words[c + C_ORDER] = order
    while order > 0 and PAGE_BYTES << (order - 1) >= stride:
        order -= 1
    words[c + C_MIN_ORDER] = order
    words[c + C_OBJECTS] = objects
    words[c + C_MAGIC] = magic_of(stride)
    words[c + C_RECIPROCAL] = ((1 << RECIPROCAL_SHIFT) + stride - 1) // stride
    words[c + C_AT] = H_ZERO
    words[c + C_FLAGS] = flags | (CF_EXTERNAL_MAP if objects > PAGE_MAP_BITS else 0)
    if flags & CF_NO_SHEAVES == 0:
        _give_sheaf_index(words, c)
    words[c + C_ZONE] = zone
    half_log = 0
    while 1 << (2 * (half_log + 1)) <= stride:
        half_log += 1
    kept = min(max(half_log, MIN_PARTIAL_LOW), MIN_PARTIAL_HIGH)
    words[c + C_MIN_PARTIAL] = kept >> LEAN_SHIFT if flags & CF_LEAN else kept
    words[c + C_STATE] = CACHE_LIVE
    unlock(words)
    return c


@kernel
def shrink_locked(words: Words, c: int) -> int:
    """Give every empty slab back, the active one included; return how many pages that were."""
    active = deactivate(words, c)
    if active != 0:
        page = page_at(words, active)
        free = free_objects(words, c, page)
        if free == objects_of(words[info_at(active)]):
            slab_list_add(words, c, C_EMPTY, C_NR_EMPTY, active)
        elif free != 0:
            slab_list_add(words, c, C_PARTIAL, C_NR_PARTIAL, active)
    pages = 0
    pfn = first(words, c + C_EMPTY)
    while pfn != 0:
        pages += 1 << order_at(words, pfn)
        slab_list_remove(words, c, C_EMPTY, C_NR_EMPTY, pfn)
        release_slab_locked(words, c, pfn)
        pfn = first(words, c + C_EMPTY)
    return pages


@entry
def shrink_all_locked(words: Words) -> int:
    """Shrink every cache, the internal one last, as the others release its objects; return the pages given back."""
    pages = 0
    for index in range(words[H_NR_CACHES] - 1, -1, -1):
        c = words[H_CACHES] + index * CACHE_WORDS
        if words[c + C_STATE] == CACHE_LIVE:
            pages += shrink_locked(words, c)
    return pages


@kernel
def _drain_locked(words: Words, c: int) -> None:
    """Return what all threads keep of one cache to its slabs."""
    lock_out_locked(words)
    drain_cache_locked(words, c)
    let_in_locked(words)


@entry
def cache_drain(words: Words, c: int) -> int:
    """Return what all threads keep of one cache to its slabs, so that their maps tell which objects users have."""
    lock(words)
    _drain_locked(words, c)
    unlock(words)
    return OK


@entry
def cache_shrink(words: Words, c: int) -> int:
    """Shrink one cache, what threads keep of it included; return the pages given back."""
    lock(words)
    before = words[H_ALLOCATED_PAGES]
    _drain_locked(words, c)
    shrink_locked(words, c)
    pages = before - words[H_ALLOCATED_PAGES]
    unlock(words)
    return pages


@entry
def cache_destroy(words: Words, c: int) -> int:
    """Give all slabs and the descriptor back; EBUSY, with nothing changed, while objects are in use."""
    lock(words)
    _drain_locked(words, c)
    if words[c + C_ALLOCS] != words[c + C_FREES] or words[c + C_NR_CONSTRUCTING] != 0:
        unlock(words)
        return EBUSY
    shrink_locked(words, c)
    words[SHEAF_OWNERS + words[c + C_SHEAF] // SHEAF_DESC_WORDS] = 0
    words[c + C_STATE] = CACHE_FREE
    detach_locked(words, c + C_BUDGET)
    unlock(words)
    return OK


@entry
def construct_begin(words: Words, c: int, gfp: int) -> int:
    """Make a slab whose objects are all with the constructor; return its pfn or ENOMEM."""
    lock(words)
    pfn = new_slab_locked(words, c, gfp)
    if pfn > 0:
        objects = objects_of(words[info_at(pfn)])
        words[info_at(pfn)] |= PAGE_CONSTRUCTING
        words[info_at(pfn)] += objects << PENDING_SHIFT
        set_sheaf_index(words, pfn, 0)
        fill_map(words, c, pfn, 0)
        words[c + C_NR_CONSTRUCTING] += 1
    unlock(words)
    return pfn


@kernel
def _construct_end(words: Words, c: int, pfn: int) -> None:
    failed = words[info_at(pfn)] & PAGE_FAILED
    words[info_at(pfn)] &= ~(PAGE_CONSTRUCTING | PAGE_FAILED)
    words[c + C_NR_CONSTRUCTING] -= 1
    if failed != 0:
        release_slab_locked(words, c, pfn)
    else:
        show_sheaf_index(words, c, pfn)
        fill_map(words, c, pfn, 1)
        slab_list_add(words, c, C_EMPTY, C_NR_EMPTY, pfn)


@entry
def construct_put(words: Words, offset: int) -> int:
    """Take one object back from the constructor; the last one publishes or releases the slab."""
    pfn = offset >> PAGE_SHIFT
    lock(words)
    if kind_of(words, pfn) != KIND_SLAB:
        pfn = words[page_at(words, pfn) + PG_LINK]
    words[info_at(pfn)] -= PENDING_ONE
    if pending_of(words[info_at(pfn)]) == 0:
        _construct_end(words, cache_of(words, pfn), pfn)
    unlock(words)
    return OK


@entry
def construct_fail(words: Words, pfn: int, never_leased: int) -> int:
    """The constructor raised: the slab goes back once its leased objects have; ``never_leased`` others go now."""
    lock(words)
    words[info_at(pfn)] |= PAGE_FAILED
    words[info_at(pfn)] -= never_leased * PENDING_ONE
    if pending_of(words[info_at(pfn)]) == 0:
        _construct_end(words, cache_of(words, pfn), pfn)
    unlock(words)
    return OK


@entry
def next_live_object(words: Words, c: int, offset: int) -> int:
    """Return the first object in use of cache ``c`` at or behind ``offset``, 0 if there is none."""
    lock(words)
    found = 0
    pfn = next_slab(words, c, offset >> PAGE_SHIFT >> MAX_SLAB_ORDER << MAX_SLAB_ORDER)
    while pfn != 0 and found == 0:
        page = page_at(words, pfn)
        at = map_at(words, c, page)
        for index in range(objects_of(words[info_at(pfn)])):
            where = (pfn << PAGE_SHIFT) + index * words[c + C_STRIDE_BYTES]
            if where >= offset and found == 0 and words[at + (index >> 6)] & bit(index & 63) == 0:
                found = where
        pfn = next_slab(words, c, pfn + pages_at(words, pfn))
    unlock(words)
    return found


@entry
def validate_cache(words: Words, c: int) -> int:
    """Check the invariants of slabs and lists of one cache; OK, the broken one, or EINVAL if it is not live."""
    lock(words)
    lock_out_locked(words)
    status = validate_cache_locked(words, c) if words[c + C_STATE] == CACHE_LIVE else EINVAL
    let_in_locked(words)
    unlock(words)
    return status


@entry
def validate_caches(words: Words) -> int:
    """Check every cache, and that every slab belongs to a live one; OK or the broken invariant."""
    lock(words)
    lock_out_locked(words)
    status = OK
    for index in range(words[H_NR_CACHES]):
        c = words[H_CACHES] + index * CACHE_WORDS
        if status == OK and words[c + C_STATE] == CACHE_LIVE:
            status = validate_cache_locked(words, c)
    for zone in range(words[H_NR_ZONES]):
        pfn = words[zone_at(zone) + Z_START_PFN]
        while pfn < words[zone_at(zone) + Z_FRONTIER_PFN]:
            if kind_of(words, pfn) == KIND_SLAB:
                c = cache_of(words, pfn)
                if is_cache(words, c) == 0 or words[c + C_STATE] != CACHE_LIVE:
                    status = BAD_CACHE_SUM
            pfn += pages_at(words, pfn)
    let_in_locked(words)
    unlock(words)
    return status
