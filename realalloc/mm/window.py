"""The vmalloc window: addresses behind the arena, in areas of whole granules; knows nothing of pages.

A granule has a record. The first one of an area says its kind and length, the last one its length again: boundary tags, so
that freed neighbours merge in O(1). The window has a frontier, like a zone. Granule 0 is never used: NULL of the lists.
Invariant: areas tile the window from granule 1 to the frontier, and no two free ones touch.
"""

from __future__ import annotations

from realalloc.mm.freelist import first, push_front, remove
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_GRANULES_SHIFT,
    AREA_KIND_MASK,
    AREA_LIVE,
    AREA_NONE,
    AREA_WORDS,
    GRANULE_BYTES,
    GRANULE_SHIFT,
    H_VM_FREE,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_START_BYTES,
    H_VMAP,
    V_INFO,
    V_LINK,
    V_TAG,
)


@kernel
def area_at(words: Words, granule: int) -> int:
    """Return the word index of a granule's record."""
    return words[H_VMAP] + granule * AREA_WORDS


@kernel
def area_offset(words: Words, granule: int) -> int:
    """Return the offset of a granule's first byte."""
    return words[H_VM_START_BYTES] + (granule << GRANULE_SHIFT)


@kernel
def area_kind(words: Words, granule: int) -> int:
    """Return the kind of the area that begins at a granule, AREA_NONE inside one."""
    return words[area_at(words, granule) + V_INFO] & AREA_KIND_MASK


@kernel
def area_granules(words: Words, granule: int) -> int:
    """Return the length of an area in granules."""
    return words[area_at(words, granule) + V_INFO] >> AREA_GRANULES_SHIFT


@kernel
def set_area(words: Words, granule: int, count: int, kind: int) -> None:
    """Write kind and length of an area."""
    words[area_at(words, granule) + V_INFO] = kind | count << AREA_GRANULES_SHIFT
    words[area_at(words, granule + count - 1) + V_TAG] = count


@kernel
def list_area(words: Words, head: int, granule: int) -> None:
    """Put an area on the free or the lazy list."""
    push_front(words, head, words[H_VMAP] + V_LINK, AREA_WORDS, granule)


@kernel
def unlist_area(words: Words, head: int, granule: int) -> None:
    """Take an area off the free or the lazy list."""
    remove(words, head, words[H_VMAP] + V_LINK, AREA_WORDS, granule)


@kernel
def free_addresses(words: Words, granule: int) -> None:
    """Return an area's granules to the window, merged with free neighbours."""
    count = area_granules(words, granule)
    behind = granule + count
    words[area_at(words, granule) + V_INFO] = AREA_NONE
    if behind < words[H_VM_FRONTIER] and area_kind(words, behind) == AREA_FREE:
        count += area_granules(words, behind)
        unlist_area(words, H_VM_FREE, behind)
        words[area_at(words, behind) + V_INFO] = AREA_NONE
    if granule > 1:
        before = granule - words[area_at(words, granule - 1) + V_TAG]
        if area_kind(words, before) == AREA_FREE:
            count += granule - before
            unlist_area(words, H_VM_FREE, before)
            words[area_at(words, before) + V_INFO] = AREA_NONE
            granule = before
    if granule + count == words[H_VM_FRONTIER]:
        words[H_VM_FRONTIER] = granule
    else:
        set_area(words, granule, count, AREA_FREE)
        list_area(words, H_VM_FREE, granule)


@kernel
def _carve(words: Words, granule: int, size: int, at: int, count: int) -> None:
    """Cut ``[at, at + count)`` out of an unlisted stretch; what is left on either side becomes free areas."""
    end = granule + size
    words[area_at(words, granule) + V_INFO] = AREA_NONE
    if at > granule:
        set_area(words, granule, at - granule, AREA_FREE)
        list_area(words, H_VM_FREE, granule)
    if at + count < end:
        set_area(words, at + count, end - at - count, AREA_FREE)
        list_area(words, H_VM_FREE, at + count)
    set_area(words, at, count, AREA_LIVE)


@kernel
def take_addresses(words: Words, count: int, align: int) -> int:
    """Find ``count`` granules at a multiple of ``align``: first fit on the free list, then the frontier; 0 if none."""
    links = words[H_VMAP] + V_LINK
    granule = first(words, H_VM_FREE)
    while granule != 0:
        size = area_granules(words, granule)
        at = (granule + align - 1) & ~(align - 1)
        if at + count <= granule + size:
            unlist_area(words, H_VM_FREE, granule)
            _carve(words, granule, size, at, count)
            return at
        granule = words[links + granule * AREA_WORDS] >> 32
    start = words[H_VM_FRONTIER]
    at = (start + align - 1) & ~(align - 1)
    if at + count > words[H_VM_GRANULES]:
        return 0
    words[H_VM_FRONTIER] = at + count
    _carve(words, start, at + count - start, at, count)
    return at


@kernel
def granule_of(words: Words, offset: int) -> int:
    """Return the granule of the live area that begins at ``offset``, 0 if none does."""
    inside = offset - words[H_VM_START_BYTES]
    granule = inside >> GRANULE_SHIFT
    if inside <= 0 or inside & (GRANULE_BYTES - 1) != 0 or granule >= words[H_VM_FRONTIER]:
        return 0
    return granule if area_kind(words, granule) == AREA_LIVE else 0
