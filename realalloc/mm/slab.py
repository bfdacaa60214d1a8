"""Objects of slabs: how they go out and come back, one or a sheaf full, and which offset is one.

Invariant, per cache:  allocs - frees = sum of inuse over its slabs
"""

from __future__ import annotations

from realalloc.mm.bits import bit, ctz, low_mask, popcount
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_ACTIVE,
    C_ALLOCS,
    C_AT,
    C_FIRST_BYTES,
    C_FLAGS,
    C_FREES,
    C_RECIPROCAL,
    C_STRIDE_BYTES,
    CACHE_MASK,
    CACHE_SHIFT,
    CACHE_WORDS,
    CF_CTOR,
    EAGAIN,
    EINVAL,
    H_CACHES,
    KIND_OBJECTS_BIT,
    KIND_SLAB,
    OK,
    PAGE_CONSTRUCTING,
    PAGE_SHIFT,
    RECIPROCAL_SHIFT,
    SLAB_BYTES_SHIFT,
)
from realalloc.mm.pages import info_at, kind_of, page_at
from realalloc.mm.slab_map import cache_of, has_map, head_of, index_of, is_cache, map_at, objects_of
from realalloc.mm.slab_page import (
    activate,
    new_slab_locked,
    point_at,
    put_object,
    release_slab_locked,
    settle_locked,
    take_object,
)


@entry
def refill_locked(words: Words, c: int, gfp: int) -> int:
    """Let a slab with free objects serve: active, partial, empty, new; its pfn, ENOMEM or EAGAIN."""
    pfn = activate(words, c)
    if pfn == 0:
        if words[c + C_FLAGS] & CF_CTOR:
            return EAGAIN
        pfn = new_slab_locked(words, c, gfp)
        if pfn > 0:
            point_at(words, c, pfn)
    return pfn


@kernel
def cache_alloc_locked(words: Words, c: int, gfp: int) -> int:
    """Return the offset of a free object, ENOMEM, or EAGAIN if the face must construct a slab first."""
    offset = take_object(words, c)
    if offset == 0:
        status = refill_locked(words, c, gfp)
        if status < 0:
            return status
        offset = take_object(words, c)
    return offset


@kernel
def take_objects_locked(words: Words, c: int, begin: int, end: int, gfp: int) -> int:
    """Fill words ``[begin, end)`` from the end with objects; return the first that is filled.

    A new slab is made for the first object only: the others are a convenience, not a need.
    """
    at = end
    while at > begin:
        where = words[c + C_AT]
        free = words[where]
        if free == 0:
            if at == end:
                if refill_locked(words, c, gfp) <= 0:
                    break
            elif activate(words, c) == 0:
                break
            continue
        first_bytes = words[c + C_FIRST_BYTES]
        stride = words[c + C_STRIDE_BYTES]
        while free != 0 and at > begin:
            at -= 1
            index = ctz(free)
            words[at] = first_bytes + index * stride
            free ^= bit(index)
        words[where] = free
    words[c + C_ALLOCS] += end - at
    return at


@kernel
def free_in_slab_locked(words: Words, c: int, pfn: int, offset: int) -> int:
    """Free an object of the slab at ``pfn`` (0: there is none), of cache ``c`` (0: of any); EINVAL if it is not live."""
    if pfn == 0 or words[info_at(pfn)] & PAGE_CONSTRUCTING:
        return EINVAL
    owner = cache_of(words, pfn)
    if c != 0 and c != owner:
        return EINVAL
    index = index_of(words, owner, pfn, offset)
    if index < 0:
        return EINVAL
    status = put_object(words, owner, pfn, index)
    if status == 1:
        release_slab_locked(words, owner, pfn)
        return OK
    return status


@kernel
def _commit(words: Words, c: int, slab: int, where: int, fresh: int) -> int:
    """Set bits ``fresh``, none of them set, in a map word of the slab at offset ``slab``; 1 if that went to the buddy."""
    before = words[where]
    words[where] = before | fresh
    words[c + C_FREES] += popcount(fresh)
    pfn = slab >> PAGE_SHIFT
    page = page_at(words, pfn)
    full = low_mask(min(objects_of(words[info_at(pfn)]) - 64 * (where - map_at(words, c, page)), 64))
    if (before != 0 and before | fresh != full) or words[c + C_ACTIVE] == pfn or settle_locked(words, c, pfn) != 1:
        return 0
    release_slab_locked(words, c, pfn)
    return 1


@entry
def free_objects_locked(words: Words, c: int, begin: int, end: int) -> int:
    """Free the objects of cache ``c`` in words ``[begin, end)``; return how many were refused: none of its, or not in use.

    Neighbours in the array are often neighbours in a slab: a map word is read and written once for a run of them
    (FIFO of 100000: 39 ns a pair instead of 48).
    """
    index = (c - words[H_CACHES]) // CACHE_WORDS
    stride = words[c + C_STRIDE_BYTES]
    reciprocal = words[c + C_RECIPROCAL]
    refused = 0
    slab = 0  # offset of the slab that the run is in, 0 for none
    span = 0  # its bytes
    objects = 0
    first_word = 0
    where = 0
    fresh = 0
    at = begin
    while at < end:
        offset = words[at]
        if not 0 <= offset - slab < span:
            if fresh != 0:
                _commit(words, c, slab, where, fresh)
                fresh = 0
            info = words[info_at(offset >> PAGE_SHIFT)]
            span = 1 << (info >> SLAB_BYTES_SHIFT) if info & KIND_OBJECTS_BIT else 0
            slab = offset & ~(span - 1)  # a slab is aligned to its size
            with_ctor = span != 0 and words[info_at(slab >> PAGE_SHIFT)] & PAGE_CONSTRUCTING != 0
            if span == 0 or with_ctor or info >> CACHE_SHIFT & CACHE_MASK != index:
                refused += 1
                at += 1
                span = 0
                continue
            objects = objects_of(info)
            first_word = map_at(words, c, page_at(words, slab >> PAGE_SHIFT))
            where = 0
        k = (offset - slab) * reciprocal >> RECIPROCAL_SHIFT
        if first_word + (k >> 6) != where:
            if fresh != 0 and _commit(words, c, slab, where, fresh) == 1:
                span = 0  # all of its objects were free: this one, too
                fresh = 0
                continue
            where = first_word + (k >> 6)
            fresh = 0
        if k * stride != offset - slab or k >= objects or (words[where] | fresh) & bit(k & 63) != 0:
            refused += 1
        else:
            fresh |= bit(k & 63)
        at += 1
    if fresh != 0:
        _commit(words, c, slab, where, fresh)
    return refused


@kernel
def cache_free_locked(words: Words, c: int, offset: int) -> int:
    """Free an object of cache ``c`` (0: of any); EINVAL if there is no such live object."""
    return free_in_slab_locked(words, c, head_of(words, offset >> PAGE_SHIFT), offset)


@kernel
def map_bit_of(words: Words, c: int, offset: int) -> int:
    """Return where the free map of cache ``c`` (0: of any) has the object at ``offset``: word index << 6 | bit, or EINVAL.

    Any offset will do, and any struct page: walkers ask.
    """
    pfn = head_of(words, offset >> PAGE_SHIFT)
    if kind_of(words, pfn) != KIND_SLAB:
        return EINVAL
    owner = cache_of(words, pfn)
    if (c != 0 and c != owner) or is_cache(words, owner) == 0 or has_map(words, owner, page_at(words, pfn)) == 0:
        return EINVAL
    index = index_of(words, owner, pfn, offset)
    return (map_at(words, owner, page_at(words, pfn)) << 6) + index if index >= 0 else EINVAL


@entry
def is_live_object(words: Words, c: int, offset: int) -> int:
    """Tell whether an object of cache ``c`` (0: of any) that is in use begins at ``offset``."""
    where = map_bit_of(words, c, offset)
    return 1 if where >= 0 and words[where >> 6] & bit(where & 63) == 0 else 0
