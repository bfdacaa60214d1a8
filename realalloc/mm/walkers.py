"""Walkers of caches: look whether slabs, lists and sheaves are what slab_page.py, slab.py and sheaf.py say.

They run with the lock, and with every other thread locked out of its sheaves, and leave everything as it was, damage too.
"""

from __future__ import annotations

from realalloc.mm.bits import bit, low_mask
from realalloc.mm.freelist import count_list, first
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    BAD_CACHE_SUM,
    BAD_SHEAF,
    BAD_SLAB_COUNT,
    BAD_SLAB_LIST,
    BAD_SLAB_MAP,
    C_ACTIVE,
    C_ALLOCS,
    C_AT,
    C_BARN_EMPTY,
    C_BARN_FULL,
    C_EMPTY,
    C_FIRST_BYTES,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_NR_SLABS,
    C_PARTIAL,
    C_SHEAF,
    C_STRIDE_BYTES,
    C_ZONE,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_TOP,
    EINVAL,
    H_ZERO,
    KIND_SLAB,
    OK,
    PAGE_BYTES,
    PAGE_CONSTRUCTING,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    S_COUNT,
    S_NEXT,
    S_OBJECTS,
    Z_FRONTIER_PFN,
    Z_START_PFN,
)
from realalloc.mm.pages import info_at, kind_of, links_at, order_at, page_at, pages_at, zone_at
from realalloc.mm.sheaf import bad_sheaves
from realalloc.mm.slab import is_live_object, map_bit_of
from realalloc.mm.slab_page import cache_of, free_objects, is_listed, map_at, map_words_of, objects_of, pending_of
from realalloc.mm.stock import bad_stock, first_full
from realalloc.mm.threads import next_record, record_at

LOOK = 0
MARK = 1
UNMARK = 2


@entry
def set_free_bit(words: Words, c: int, offset: int, free: int) -> int:
    """Make an object count as free (1) or in use (0) in its map and nowhere else, for a walker that sets it back;
    EINVAL if it is no object of the cache, or already so.
    """
    where = map_bit_of(words, c, offset)
    if where < 0 or (words[where >> 6] & bit(where & 63) != 0) == (free == 1):
        return EINVAL
    words[where >> 6] ^= bit(where & 63)
    return OK


@kernel
def _visit(words: Words, c: int, begin: int, end: int, step: int) -> int:
    """Look whether the objects in words ``[begin, end)`` are in use (step LOOK), make them count as free (MARK), or as in
    use again (UNMARK); return how many were not as they should be.
    """
    wrong = 0
    for at in range(begin, end):
        if step == LOOK:
            wrong += 1 - is_live_object(words, c, words[at])
        else:
            wrong += 1 if set_free_bit(words, c, words[at], 1 if step == MARK else 0) != OK else 0
    return wrong


@kernel
def _visit_all(words: Words, c: int, step: int) -> int:
    wrong = 0
    place = next_record(words, 0)
    while place != 0:
        d = record_at(words, place) + words[c + C_SHEAF]
        if bad_sheaves(words, d) == 1 or bad_stock(words, d) == 1:
            return wrong + 1
        wrong += _visit(words, c, words[d + D_BASE], words[d + D_TOP] + 1, step)
        wrong += _visit(words, c, words[d + D_PUT_BASE], words[d + D_PUT] + 1, step)
        stocked = first_full(words, d)
        while stocked != 0:
            wrong += _visit(words, c, stocked + S_OBJECTS, stocked + S_OBJECTS + words[stocked + S_COUNT], step)
            stocked = words[stocked + S_NEXT]
        place = next_record(words, place)
    sheaf = words[c + C_BARN_FULL]
    for _ in range(words[c + C_NR_BARN_FULL]):
        if sheaf == 0:
            return wrong + 1
        wrong += _visit(words, c, sheaf + S_OBJECTS, sheaf + S_OBJECTS + words[sheaf + S_COUNT], step)
        sheaf = words[sheaf + S_NEXT]
    return wrong + (1 if sheaf != 0 else 0)


@kernel
def _bad_empties(words: Words, c: int) -> int:
    """Tell whether the barn's empty sheaves are not as many as counted, or one has something in it."""
    sheaf = words[c + C_BARN_EMPTY]
    for _ in range(words[c + C_NR_BARN_EMPTY]):
        if sheaf == 0 or words[sheaf + S_COUNT] != 0:
            return 1
        sheaf = words[sheaf + S_NEXT]
    return 1 if sheaf != 0 else 0


@entry
def validate_sheaves_locked(words: Words, c: int) -> int:
    """Check both invariants of sheaves, and the barn's, for one cache; the others are locked out. OK or BAD_SHEAF.

    An object that two sheaves have is found by marking each one free, in its slab's map, and back.
    """
    if words[c + C_SHEAF] == 0:
        return OK
    if _visit_all(words, c, LOOK) + _bad_empties(words, c) != 0:  # a walker leaves damage as it is
        return BAD_SHEAF
    wrong = _visit_all(words, c, MARK)
    _visit_all(words, c, UNMARK)
    return OK if wrong == 0 else BAD_SHEAF


@entry
def next_slab(words: Words, c: int, pfn: int) -> int:
    """Return the first slab of cache ``c`` at or behind ``pfn``, 0 if there is none."""
    zone = zone_at(words[c + C_ZONE])
    pfn = max(pfn, words[zone + Z_START_PFN])
    while pfn < words[zone + Z_FRONTIER_PFN]:
        if kind_of(words, pfn) == KIND_SLAB and cache_of(words, pfn) == c:
            return pfn
        pfn += pages_at(words, pfn)
    return 0


@kernel
def _validate_slab(words: Words, c: int, pfn: int) -> int:
    page = page_at(words, pfn)
    info = words[info_at(pfn)]
    objects = objects_of(info)
    free = free_objects(words, c, page)
    if objects != (PAGE_BYTES << order_at(words, pfn)) // words[c + C_STRIDE_BYTES]:
        return BAD_SLAB_COUNT
    if info & PAGE_CONSTRUCTING:
        return OK if free == 0 and pending_of(info) <= objects else BAD_SLAB_MAP
    at = map_at(words, c, page)
    for k in range(map_words_of(words, c)):
        if words[at + k] & ~low_mask(min(max(objects - 64 * k, 0), 64)) != 0:
            return BAD_SLAB_MAP
    wanted = 0 if words[c + C_ACTIVE] == pfn or free == 0 else 1
    return OK if is_listed(words, c, pfn) == wanted else BAD_SLAB_LIST


@kernel
def _validate_list(words: Words, c: int, list_field: int, count_field: int, empty: int) -> int:
    links = links_at(words)
    count = words[c + count_field]
    if count_list(words, c + list_field, links, PAGE_STRUCT_WORDS, count) != count:
        return BAD_SLAB_LIST
    pfn = first(words, c + list_field)
    while pfn != 0:
        if kind_of(words, pfn) != KIND_SLAB or cache_of(words, pfn) != c:
            return BAD_SLAB_LIST
        page = page_at(words, pfn)
        if (free_objects(words, c, page) == objects_of(words[info_at(pfn)])) != (empty == 1):
            return BAD_SLAB_LIST
        pfn = words[links + pfn * PAGE_STRUCT_WORDS] >> 32
    return OK


@kernel
def _validate_active(words: Words, c: int) -> int:
    pfn = words[c + C_ACTIVE]
    if pfn == 0:
        return OK if words[c + C_AT] == H_ZERO and words[H_ZERO] == 0 else BAD_SLAB_LIST
    if kind_of(words, pfn) != KIND_SLAB or cache_of(words, pfn) != c:
        return BAD_SLAB_LIST
    k = words[c + C_AT] - map_at(words, c, page_at(words, pfn))
    if not 0 <= k < map_words_of(words, c):
        return BAD_SLAB_LIST
    begin = (pfn << PAGE_SHIFT) + 64 * k * words[c + C_STRIDE_BYTES]
    return OK if words[c + C_FIRST_BYTES] == begin else BAD_SLAB_LIST


@kernel
def validate_cache_locked(words: Words, c: int) -> int:
    """Check lists, active slab, slabs, sheaves and sums of one cache; OK or the broken invariant."""
    status = _validate_list(words, c, C_PARTIAL, C_NR_PARTIAL, 0)
    if status == OK:
        status = _validate_list(words, c, C_EMPTY, C_NR_EMPTY, 1)
    if status == OK:
        status = _validate_active(words, c)
    slabs = 0
    inuse = 0
    listed = 0
    pfn = next_slab(words, c, 0)
    while pfn != 0 and status == OK:
        status = _validate_slab(words, c, pfn)
        page = page_at(words, pfn)
        info = words[info_at(pfn)]
        slabs += 1
        listed += is_listed(words, c, pfn)
        inuse += 0 if info & PAGE_CONSTRUCTING else objects_of(info) - free_objects(words, c, page)
        pfn = next_slab(words, c, pfn + pages_at(words, pfn))
    if status != OK:
        return status
    status = validate_sheaves_locked(words, c)
    if status != OK:
        return status
    if slabs != words[c + C_NR_SLABS] or listed != words[c + C_NR_PARTIAL] + words[c + C_NR_EMPTY]:
        return BAD_SLAB_COUNT
    return OK if inuse == words[c + C_ALLOCS] - words[c + C_FREES] else BAD_CACHE_SUM
