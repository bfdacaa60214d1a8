"""Areas that nobody has any more, kept mapped: the list H_VM_LAZY, the youngest first.

They are handed out again without any call, for as many pages or up to an eighth less. Memory pressure, ``trim`` and decay
take them apart, the oldest first. How many are kept is vmalloc's to say.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.chain import free_chain, unmap_chain
from realalloc.mm.freelist import first
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    AREA_LIVE,
    AREA_WORDS,
    DECAY,
    DECAY_EPOCHS,
    H_VM_LAZY,
    H_VM_LAZY_PAGES,
    H_VMAP,
    LIST_PREV_MASK,
    OK,
    PAGE_SHIFT,
    V_FIRST,
    V_LINK,
    V_PAGES,
    V_STAMP,
    Y_EPOCHS,
    Y_NS,
    Y_PURGED,
)
from realalloc.mm.prim import MADV_DONTNEED, forget, madvise
from realalloc.mm.window import (
    area_at,
    area_granules,
    area_offset,
    free_addresses,
    set_area,
    unlist_area,
)

LAZY_SLACK_SHIFT = 3  # an eighth: of sizes that vary a little, nearly each one would be mapped anew
LAZY_LOOKS = 64


@entry
def destroy_area_locked(words: Words, granule: int, drop: int) -> int:
    """Take an unlisted area apart: addresses to the window, pages to the buddy, resident unless ``drop``."""
    pages = words[area_at(words, granule) + V_PAGES]
    if drop == 0:
        unmap_chain(words, words[area_at(words, granule) + V_FIRST], area_offset(words, granule), pages)
    window = address_of(words) + area_offset(words, granule)
    if forget(window, pages << PAGE_SHIFT) != OK:  # no room for one more mapping: no fault there, but no memory either
        madvise(window, pages << PAGE_SHIFT, MADV_DONTNEED)
    free_chain(words, words[area_at(words, granule) + V_FIRST], drop)
    free_addresses(words, granule)
    return OK


@entry
def purge_lazy_locked(words: Words, drop: int) -> int:
    """Take all lazily kept areas apart; return their pages."""
    pages = words[H_VM_LAZY_PAGES]
    granule = first(words, H_VM_LAZY)
    while granule != 0:
        unlist_area(words, H_VM_LAZY, granule)
        destroy_area_locked(words, granule, drop)
        granule = first(words, H_VM_LAZY)
    words[H_VM_LAZY_PAGES] = 0
    return pages


@entry
def undo_oldest_lazy_locked(words: Words) -> int:
    """Take the lazily kept area that was freed first apart, its memory stays; return its pages, 0 if there is none."""
    granule = words[H_VM_LAZY] & LIST_PREV_MASK
    return undo_lazy(words, granule, 0) if granule != 0 else 0


@kernel
def undo_lazy(words: Words, granule: int, drop: int) -> int:
    """Take one lazily kept area apart; return its pages."""
    pages = words[area_at(words, granule) + V_PAGES]
    unlist_area(words, H_VM_LAZY, granule)
    words[H_VM_LAZY_PAGES] -= pages
    destroy_area_locked(words, granule, drop)
    return pages


@kernel
def is_lazy_old(words: Words) -> int:
    """Tell whether the lazily kept area that was freed first has outstayed the decay time."""
    granule = words[H_VM_LAZY] & LIST_PREV_MASK
    if granule == 0 or words[DECAY + Y_NS] < 0:
        return 0
    age = words[DECAY + Y_EPOCHS] - words[area_at(words, granule) + V_STAMP]
    return 1 if age >= DECAY_EPOCHS or words[DECAY + Y_NS] == 0 else 0


@entry
def purge_old_lazy_locked(words: Words) -> int:
    """Take the lazily kept area that was freed first apart, memory too, if its decay time is over; return its pages."""
    if is_lazy_old(words) == 0:
        return 0
    pages = undo_lazy(words, words[H_VM_LAZY] & LIST_PREV_MASK, 1)
    words[DECAY + Y_PURGED] += pages
    return pages


@kernel
def reuse_lazy(words: Words, pages: int) -> int:
    """Take the lazily kept area that fits ``pages`` pages best, if its slack is not too much; its granule or 0."""
    links = words[H_VMAP] + V_LINK
    best = 0
    least = pages + (pages >> LAZY_SLACK_SHIFT) + 1
    looks = LAZY_LOOKS
    granule = first(words, H_VM_LAZY)
    while granule != 0 and least != pages and looks > 0:
        have = words[area_at(words, granule) + V_PAGES]
        if pages <= have < least:
            best = granule
            least = have
        granule = words[links + granule * AREA_WORDS] >> 32
        looks -= 1
    if best != 0:
        unlist_area(words, H_VM_LAZY, best)
        words[H_VM_LAZY_PAGES] -= least
        set_area(words, best, area_granules(words, best), AREA_LIVE)
    return best
