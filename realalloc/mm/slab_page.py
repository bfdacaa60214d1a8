"""One slab: a block of pages cut into objects of one cache; its place on the cache's lists, its making and end.

1. Which objects are free is a bitmap outside the objects (slab_map.py). A stray write into a freed object breaks nothing
   here, and a double free is a bit that is already set: exact, always on.
2. One slab per cache is *active*, and one word of its free map serves (C_AT): an allocation is the lowest set bit of that
   word. A cache without an active slab points to a word that is always 0, so "no slab" and "no object" are one branch.
3. A full slab is on no list; its first free puts it on the partial list; its last free makes it empty. Up to
   C_MIN_PARTIAL empty slabs are kept, further ones go to the buddy. How many objects are in use is derived, not stored.

Invariant, per slab:   inuse = objects - set bits of the free map; listed if and only if inuse < objects and not active
"""

from __future__ import annotations

from realalloc.mm.bits import bit, ctz, low_mask
from realalloc.mm.buddy import free_block_locked
from realalloc.mm.charge import charge_locked, uncharge_locked
from realalloc.mm.freelist import first, push_front, remove
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_ACTIVE,
    C_ALLOCS,
    C_AT,
    C_BUDGET,
    C_EMPTY,
    C_FIRST_BYTES,
    C_FLAGS,
    C_FREES,
    C_MIN_ORDER,
    C_MIN_PARTIAL,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_NR_SLABS,
    C_ORDER,
    C_ORDER_FALLBACK,
    C_PARTIAL,
    C_SHEAF,
    C_SLAB_ALLOCS,
    C_SLAB_FREES,
    C_STRIDE_BYTES,
    C_ZONE,
    CACHE_SHIFT,
    CACHE_WORDS,
    CF_EXTERNAL_MAP,
    CHARGE_SLABS,
    EINVAL,
    ENOMEM,
    EXTERNAL_MAP_BYTES,
    GFP_ZERO_BIT,
    H_CACHES,
    H_FREEMAP_CACHE,
    H_ZERO,
    KIND_NONE,
    KIND_SLAB,
    KIND_TAIL,
    OBJECTS_SHIFT,
    OK,
    ORDER_MASK,
    ORDER_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    PG_LINK,
    PG_MAP0,
    SHEAF_DESC_WORDS,
    SHEAF_MASK,
    SHEAF_SHIFT,
    SLAB_BYTES_SHIFT,
    WORD_BYTES,
)
from realalloc.mm.pages import info_at, links_at, page_at
from realalloc.mm.slab_map import fill_map, free_objects, map_at, map_words_of, objects_of
from realalloc.mm.watermark import get_block_locked


@kernel
def is_listed(words: Words, c: int, pfn: int) -> int:
    """Tell whether a slab is on its cache's partial or empty list, by its link.

    Not by a bit of what its page is: every free of any thread reads that, and slabs come and go on lists all the time.
    """
    if words[page_at(words, pfn) + PG_LINK] != 0:
        return 1
    alone = first(words, c + C_PARTIAL) == pfn or first(words, c + C_EMPTY) == pfn  # the only one of a list has no link
    return 1 if alone else 0


@kernel
def slab_list_add(words: Words, c: int, list_field: int, count_field: int, pfn: int) -> None:
    """Put a slab on its cache's partial or empty list."""
    push_front(words, c + list_field, links_at(words), PAGE_STRUCT_WORDS, pfn)
    words[c + count_field] += 1


@kernel
def slab_list_remove(words: Words, c: int, list_field: int, count_field: int, pfn: int) -> None:
    """Take a slab off its cache's partial or empty list."""
    remove(words, c + list_field, links_at(words), PAGE_STRUCT_WORDS, pfn)
    words[c + count_field] -= 1


@kernel
def set_sheaf_index(words: Words, pfn: int, index: int) -> None:
    """Say on every page of a slab in which sheaf its objects go when they are freed; 0: the slow way."""
    pages = 1 << (words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK)
    for at in range(info_at(pfn), info_at(pfn + pages)):
        words[at] = words[at] & ~(SHEAF_MASK << SHEAF_SHIFT) | index << SHEAF_SHIFT


@kernel
def show_sheaf_index(words: Words, c: int, pfn: int) -> None:
    """Let the objects of a slab go into sheaves, unless it is of another order than most: the fast path knows one geometry."""
    if words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK == words[c + C_ORDER]:
        set_sheaf_index(words, pfn, words[c + C_SHEAF] // SHEAF_DESC_WORDS)


@kernel
def _make_slab(words: Words, c: int, pfn: int, order: int, map_word: int) -> None:
    """Turn a fresh block into a slab, all of its objects free."""
    page = page_at(words, pfn)
    index = (c - words[H_CACHES]) // CACHE_WORDS
    objects = (PAGE_BYTES << order) // words[c + C_STRIDE_BYTES]
    words[info_at(pfn)] |= index << CACHE_SHIFT | objects << OBJECTS_SHIFT | (PAGE_SHIFT + order) << SLAB_BYTES_SHIFT
    words[page + PG_LINK] = 0
    if map_word != 0:
        words[page + PG_MAP0] = map_word
    fill_map(words, c, pfn, 1)
    for tail in range(pfn + 1, pfn + (1 << order)):
        words[info_at(tail)] = words[info_at(pfn)] ^ (KIND_SLAB ^ KIND_TAIL)
        words[page_at(words, tail) + PG_LINK] = pfn
    show_sheaf_index(words, c, pfn)
    words[c + C_NR_SLABS] += 1
    words[c + C_SLAB_ALLOCS] += 1


@entry
def _alloc_charged_block(words: Words, c: int, order: int, gfp: int) -> int:
    """Get a block for a slab that a budget pays for."""
    if charge_locked(words, words[c + C_BUDGET], CHARGE_SLABS, PAGE_BYTES << order) != OK:
        return ENOMEM
    pfn = get_block_locked(words, words[c + C_ZONE], order, KIND_SLAB, gfp & ~GFP_ZERO_BIT)
    if pfn < 0:
        uncharge_locked(words, words[c + C_BUDGET], CHARGE_SLABS, PAGE_BYTES << order)
    return pfn


@kernel
def _alloc_order(words: Words, c: int, order: int, gfp: int) -> int:
    if words[c + C_BUDGET] != 0:
        return _alloc_charged_block(words, c, order, gfp)
    return get_block_locked(words, words[c + C_ZONE], order, KIND_SLAB, gfp & ~GFP_ZERO_BIT)


@kernel
def _alloc_slab_block(words: Words, c: int, gfp: int) -> int:
    order = words[c + C_ORDER]
    pfn = _alloc_order(words, c, order, gfp)
    if pfn < 0 and words[c + C_MIN_ORDER] < order:
        pfn = _alloc_order(words, c, words[c + C_MIN_ORDER], gfp)
        if pfn > 0:
            words[c + C_ORDER_FALLBACK] += 1
    return pfn


@kernel
def _new_inner_slab(words: Words, c: int, gfp: int) -> int:
    """Make a slab for a cache whose free maps fit into the struct page."""
    pfn = _alloc_slab_block(words, c, gfp)
    if pfn > 0:
        _make_slab(words, c, pfn, words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK, 0)
    return pfn


@kernel
def point_at(words: Words, c: int, pfn: int) -> int:
    """Make the first map word with a free object serve; return ``pfn``, or 0 if the slab is full."""
    page = page_at(words, pfn)
    at = map_at(words, c, page)
    for k in range(map_words_of(words, c)):
        if words[at + k] != 0:
            words[c + C_AT] = at + k
            words[c + C_FIRST_BYTES] = (pfn << PAGE_SHIFT) + 64 * k * words[c + C_STRIDE_BYTES]
            words[c + C_ACTIVE] = pfn
            return pfn
    return 0


@kernel
def deactivate(words: Words, c: int) -> int:
    """Leave the cache without an active slab; return which it was, 0 for none."""
    pfn = words[c + C_ACTIVE]
    words[c + C_ACTIVE] = 0
    words[c + C_AT] = H_ZERO
    return pfn


@kernel
def activate(words: Words, c: int) -> int:
    """Let the active slab, a partial or an empty one serve; return its pfn, 0 if none has a free object."""
    pfn = deactivate(words, c)
    if pfn != 0 and point_at(words, c, pfn) != 0:
        return pfn
    pfn = first(words, c + C_PARTIAL)
    if pfn != 0:
        slab_list_remove(words, c, C_PARTIAL, C_NR_PARTIAL, pfn)
    else:
        pfn = first(words, c + C_EMPTY)
        if pfn == 0:
            return 0
        slab_list_remove(words, c, C_EMPTY, C_NR_EMPTY, pfn)
    return point_at(words, c, pfn)


@kernel
def take_object(words: Words, c: int) -> int:
    """Take the lowest object of the map word that serves; return its offset, 0 if the word is empty."""
    at = words[c + C_AT]
    free = words[at]
    if free == 0:
        return 0
    index = ctz(free)
    words[at] = free ^ bit(index)
    words[c + C_ALLOCS] += 1
    return words[c + C_FIRST_BYTES] + index * words[c + C_STRIDE_BYTES]


@kernel
def _alloc_map(words: Words, gfp: int) -> int:
    """Allocate an external free map; return its word index or ENOMEM."""
    c = words[H_FREEMAP_CACHE]
    offset = take_object(words, c)
    if offset == 0:
        if activate(words, c) == 0:
            pfn = _new_inner_slab(words, c, gfp)
            if pfn < 0:
                return pfn
            point_at(words, c, pfn)
        offset = take_object(words, c)
    return offset // WORD_BYTES


@kernel
def _release_block(words: Words, c: int, pfn: int) -> None:
    order = words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK
    for tail in range(pfn + 1, pfn + (1 << order)):
        words[info_at(tail)] = KIND_NONE
    words[c + C_NR_SLABS] -= 1
    words[c + C_SLAB_FREES] += 1
    free_block_locked(words, pfn)
    if words[c + C_BUDGET] != 0:
        uncharge_locked(words, words[c + C_BUDGET], CHARGE_SLABS, PAGE_BYTES << order)


@entry
def settle_locked(words: Words, c: int, pfn: int) -> int:
    """Put a slab that is not active where it belongs after a free: partial list, empty list; 1 if it is superfluous."""
    page = page_at(words, pfn)
    if free_objects(words, c, page) != objects_of(words[info_at(pfn)]):
        if is_listed(words, c, pfn) == 0:
            slab_list_add(words, c, C_PARTIAL, C_NR_PARTIAL, pfn)
        return OK
    if is_listed(words, c, pfn) == 1:
        slab_list_remove(words, c, C_PARTIAL, C_NR_PARTIAL, pfn)
    if words[c + C_NR_EMPTY] < words[c + C_MIN_PARTIAL]:
        slab_list_add(words, c, C_EMPTY, C_NR_EMPTY, pfn)
        return OK
    return 1


@kernel
def put_object(words: Words, c: int, pfn: int, index: int) -> int:
    """Set an object's free bit and move its slab where it now belongs; EINVAL if the bit was set. Return 1 if the
    slab is now a superfluous empty one, which the caller must release.
    """
    page = page_at(words, pfn)
    at = map_at(words, c, page) + (index >> 6)
    mask = bit(index & 63)
    before = words[at]
    if before & mask != 0:
        return EINVAL
    words[at] = before | mask
    words[c + C_FREES] += 1
    full = low_mask(min(objects_of(words[info_at(pfn)]) - (index & ~63), 64))
    if (before != 0 and before | mask != full) or words[c + C_ACTIVE] == pfn:
        return OK  # neither the first free object of its word nor the last: the slab stays where it is
    return settle_locked(words, c, pfn)


@kernel
def _put_map(words: Words, map_word: int) -> None:
    c = words[H_FREEMAP_CACHE]
    pfn = map_word * WORD_BYTES >> PAGE_SHIFT  # its slabs are single pages
    index = (map_word * WORD_BYTES & (PAGE_BYTES - 1)) // EXTERNAL_MAP_BYTES
    if put_object(words, c, pfn, index) == 1:
        _release_block(words, c, pfn)


@entry
def new_slab_locked(words: Words, c: int, gfp: int) -> int:
    """Get a block from the buddy and make it a slab, on no list; return its pfn or ENOMEM."""
    if words[c + C_FLAGS] & CF_EXTERNAL_MAP == 0:
        return _new_inner_slab(words, c, gfp)
    map_word = _alloc_map(words, gfp)
    if map_word < 0:
        return map_word
    pfn = _alloc_slab_block(words, c, gfp)
    if pfn < 0:
        _put_map(words, map_word)
        return pfn
    _make_slab(words, c, pfn, words[info_at(pfn)] >> ORDER_SHIFT & ORDER_MASK, map_word)
    return pfn


@entry
def release_slab_locked(words: Words, c: int, pfn: int) -> int:
    """Give a slab that is on no list back to the buddy."""
    if words[c + C_FLAGS] & CF_EXTERNAL_MAP:
        _put_map(words, words[page_at(words, pfn) + PG_MAP0])
    _release_block(words, c, pfn)
    return OK
