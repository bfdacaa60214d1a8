"""Walkers of caches: look whether slabs, lists and sheaves are what slab_page.py, slab.py and sheaf.py say.

They run with the lock, and with every other thread locked out of its sheaves, and leave everything as it was, damage too.
"""

from __future__ import annotations

from realalloc.mm.barn import is_sheaf
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
    C_FLAGS,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_NR_EMPTY,
    C_NR_PARTIAL,
    C_NR_SLABS,
    C_OBJECTS,
    C_ORDER,
    C_PARTIAL,
    C_SHEAF,
    C_STRIDE_BYTES,
    C_ZONE,
    CF_EXTERNAL_MAP,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    EINVAL,
    H_END_PFN,
    H_NR_ZONES,
    H_ZERO,
    KIND_SLAB,
    MAX_BARN_SHEAVES,
    MAX_MAX_ORDER,
    MAX_SHEAF_OBJECTS,
    OK,
    PAGE_BYTES,
    PAGE_CONSTRUCTING,
    PAGE_MAP_BITS,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    S_COUNT,
    S_NEXT,
    S_OBJECTS,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    SHEAF_OWNERS,
    WORD_BYTES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
)
from realalloc.mm.pages import info_at, kind_of, links_at, order_at, page_at, pages_at, zone_at
from realalloc.mm.records import bad_records, next_record, record_at
from realalloc.mm.sheaf import has_sheaves
from realalloc.mm.slab import is_live_object, map_bit_of
from realalloc.mm.slab_map import cache_of, free_objects, has_map, map_at, map_words_of, objects_of, pending_of
from realalloc.mm.slab_page import is_listed
from realalloc.mm.stock import bad_stock, first_full

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
def _bad_array(words: Words, base: int, top: int) -> int:
    """Tell whether a sheaf of a descriptor is none, its top is outside, or the word below its first place is not 0."""
    if is_sheaf(words, base - S_OBJECTS) == 0 or not base - 1 <= top < base + MAX_SHEAF_OBJECTS:
        return 1
    return 1 if words[base - 1] != 0 else 0


@kernel
def bad_sheaves(words: Words, d: int) -> int:
    """Tell whether a descriptor breaks the first invariant, or leads to what is no sheaf."""
    base = words[d + D_PUT_BASE]
    if has_sheaves(words, d) == 0:
        sound = words[d + D_TOP] == H_ZERO and words[d + D_PUT] == H_ZERO
        return 0 if sound and words[d + D_BASE] == H_ZERO + 1 and base == H_ZERO + 1 else 1
    if _bad_array(words, words[d + D_BASE], words[d + D_TOP]) == 1 or _bad_array(words, base, words[d + D_PUT]) == 1:
        return 1
    return 0 if words[d + D_PUT] <= words[d + D_PUT_END] < base + MAX_SHEAF_OBJECTS else 1


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
        if step == LOOK and (bad_sheaves(words, d) == 1 or bad_stock(words, d) == 1):
            return wrong + 1
        wrong += _visit(words, c, words[d + D_BASE], words[d + D_TOP] + 1, step)
        wrong += _visit(words, c, words[d + D_PUT_BASE], words[d + D_PUT] + 1, step)
        stocked = first_full(words, d)
        while stocked != 0:
            wrong += _visit(words, c, stocked + S_OBJECTS, stocked + S_OBJECTS + words[stocked + S_COUNT], step)
            stocked = words[stocked + S_NEXT]
        place = next_record(words, place)
    sheaf = words[c + C_BARN_FULL]
    while sheaf != 0:
        wrong += _visit(words, c, sheaf + S_OBJECTS, sheaf + S_OBJECTS + words[sheaf + S_COUNT], step)
        sheaf = words[sheaf + S_NEXT]
    return wrong


@kernel
def _bad_barn(words: Words, sheaf: int, count: int, empty: int) -> int:
    """Tell whether a list of the barn leads to what is no sheaf, or is not as counted; ``empty``: or has a full one."""
    if not 0 <= count <= MAX_BARN_SHEAVES:
        return 1
    for _ in range(count):
        if is_sheaf(words, sheaf) == 0 or (empty == 1 and words[sheaf + S_COUNT] != 0):
            return 1
        sheaf = words[sheaf + S_NEXT]
    return 1 if sheaf != 0 else 0


@kernel
def _bad_links(words: Words, c: int) -> int:
    """Tell whether what leads to the sheaves of a cache cannot be followed: its index, records, the barn's lists."""
    if words[c + C_SHEAF] & (SHEAF_DESC_WORDS - 1) != 0 or not 0 < words[c + C_SHEAF] < SHEAF_BLOCKS * SHEAF_DESC_WORDS:
        return 1
    if words[SHEAF_OWNERS + words[c + C_SHEAF] // SHEAF_DESC_WORDS] != c or bad_records(words) == 1:
        return 1
    if _bad_barn(words, words[c + C_BARN_FULL], words[c + C_NR_BARN_FULL], 0) == 1:
        return 1
    return _bad_barn(words, words[c + C_BARN_EMPTY], words[c + C_NR_BARN_EMPTY], 1)


@entry
def validate_sheaves_locked(words: Words, c: int) -> int:
    """Check both invariants of sheaves, and the barn's, for one cache; the others are locked out. OK or BAD_SHEAF.

    An object that two sheaves have is found by marking each one free, in its slab's map, and back.
    """
    if words[c + C_SHEAF] == 0:
        return OK
    if _bad_links(words, c) == 1 or _visit_all(words, c, LOOK) != 0:  # a walker leaves damage as it is
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
    if has_map(words, c, page) == 0:
        return BAD_SLAB_MAP
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
    if count_list(words, c + list_field, links, PAGE_STRUCT_WORDS, words[H_END_PFN], count) != count:
        return BAD_SLAB_LIST
    pfn = first(words, c + list_field)
    while pfn != 0:
        if kind_of(words, pfn) != KIND_SLAB or cache_of(words, pfn) != c:
            return BAD_SLAB_LIST
        page = page_at(words, pfn)
        if has_map(words, c, page) == 0:
            return BAD_SLAB_MAP
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
def _bad_geometry(words: Words, c: int) -> int:
    """Tell whether a descriptor contradicts itself in what its slabs are read by: order, stride, objects, kind of map."""
    order = words[c + C_ORDER]
    stride = words[c + C_STRIDE_BYTES]
    if not 0 <= order <= MAX_MAX_ORDER or stride < WORD_BYTES or not 0 <= words[c + C_ZONE] < words[H_NR_ZONES]:
        return 1
    external = 1 if words[c + C_FLAGS] & CF_EXTERNAL_MAP else 0
    objects = words[c + C_OBJECTS]
    return 0 if objects == (PAGE_BYTES << order) // stride and external == (1 if objects > PAGE_MAP_BITS else 0) else 1


@kernel
def validate_cache_locked(words: Words, c: int) -> int:
    """Check lists, active slab, slabs, sheaves and sums of one cache; OK or the broken invariant."""
    if _bad_geometry(words, c) == 1:
        return BAD_SLAB_COUNT
    status = _validate_list(words, c, C_PARTIAL, C_NR_PARTIAL, 0)
    if status == OK:
        status = _validate_list(words, c, C_EMPTY, C_NR_EMPTY, 1)
    if status == OK:
        status = _validate_active(words, c)
    if status != OK:
        return status
    slabs = 0
    inuse = 0
    listed = 0
    pfn = next_slab(words, c, 0)
    while pfn != 0:
        status = _validate_slab(words, c, pfn)
        if status != OK:
            return status
        page = page_at(words, pfn)
        info = words[info_at(pfn)]
        slabs += 1
        listed += is_listed(words, c, pfn)
        inuse += 0 if info & PAGE_CONSTRUCTING else objects_of(info) - free_objects(words, c, page)
        pfn = next_slab(words, c, pfn + pages_at(words, pfn))
    status = validate_sheaves_locked(words, c)
    if status != OK:
        return status
    if slabs != words[c + C_NR_SLABS] or listed != words[c + C_NR_PARTIAL] + words[c + C_NR_EMPTY]:
        return BAD_SLAB_COUNT
    return OK if inuse == words[c + C_ALLOCS] - words[c + C_FREES] else BAD_CACHE_SUM
