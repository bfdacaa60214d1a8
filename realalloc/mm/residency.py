"""The books compared with the system: which pages of an arena are resident (mincore(2)), and which the books say may be.

Invariant, while a program touches no page that it has not allocated: stray = 0, and
    resident pages of zones and window + untouched = H_COMMITTED_PAGES + stray.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    AREA_LAZY,
    AREA_LIVE,
    GRANULE_PAGES,
    H_COMMITTED_PAGES,
    H_META_PAGES,
    H_NR_ZONES,
    H_VM_FRONTIER,
    H_VM_START_BYTES,
    KIND_AREA,
    OK,
    PAGE_SHIFT,
    V_PAGES,
    WORD_BYTES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
)
from realalloc.mm.pages import is_resident, kind_of, pages_at, zone_at
from realalloc.mm.prim import mincore
from realalloc.mm.window import area_at, area_granules, area_kind

RES_METADATA = 0  # words of the answer, in pages
RES_PAGES = 1
RES_WINDOW = 2
RES_COMMITTED = 3
RES_STRAY = 4
RES_SEEN = 5  # first page that the vector is about, as an offset in pages, + 1; 0: none yet
RES_VECTOR = 8  # word index of the vector, a byte a page
VECTOR_PAGES = 1 << 12
RESIDENCY_WORDS = RES_VECTOR + VECTOR_PAGES // WORD_BYTES


@kernel
def _is_in_memory(words: Words, out: Words, page: int, end: int) -> int:
    """Ask the system about a page of the range, which ends at ``end``, a vector at a time; a failure counts as absent."""
    seen = out[RES_SEEN] - 1
    if seen < 0 or page < seen or page >= seen + VECTOR_PAGES:
        for k in range(RES_VECTOR, RESIDENCY_WORDS):
            out[k] = 0
        many = min(VECTOR_PAGES, end - page)
        mincore(address_of(words) + (page << PAGE_SHIFT), many << PAGE_SHIFT, address_of(out) + RES_VECTOR * WORD_BYTES)
        out[RES_SEEN] = page + 1
        seen = page
    at = page - seen
    return out[RES_VECTOR + (at >> 3)] >> ((at & 7) * 8) & 1


@kernel
def _look_at_zone(words: Words, out: Words, zone: int) -> None:
    pfn = words[zone_at(zone) + Z_START_PFN]
    frontier = words[zone_at(zone) + Z_FRONTIER_PFN]
    while pfn < frontier:
        elsewhere = 1 if kind_of(words, pfn) == KIND_AREA else 0  # its memory is in the window
        end = pfn + pages_at(words, pfn)
        while pfn < end:
            if _is_in_memory(words, out, pfn, frontier) == 1:
                out[RES_PAGES] += 1
                out[RES_STRAY] += 1 if is_resident(words, pfn) == 0 or elsewhere == 1 else 0
            pfn += 1


@kernel
def _look_at_window(words: Words, out: Words) -> None:
    first = words[H_VM_START_BYTES] >> PAGE_SHIFT
    end = first + words[H_VM_FRONTIER] * GRANULE_PAGES
    granule = 1
    while granule < words[H_VM_FRONTIER]:
        kind = area_kind(words, granule)
        mapped = words[area_at(words, granule) + V_PAGES] if kind == AREA_LIVE or kind == AREA_LAZY else 0
        for k in range(area_granules(words, granule) * GRANULE_PAGES):
            if _is_in_memory(words, out, first + granule * GRANULE_PAGES + k, end) == 1:
                out[RES_WINDOW] += 1
                out[RES_STRAY] += 1 if k >= mapped else 0
        granule += area_granules(words, granule)


@entry
def residency(words: Words, out: Words) -> int:
    """Fill ``out``, RESIDENCY_WORDS words that are 0, in, the lock held: nothing is given back meanwhile."""
    lock(words)
    for pfn in range(words[H_META_PAGES]):
        out[RES_METADATA] += _is_in_memory(words, out, pfn, words[H_META_PAGES])
    out[RES_SEEN] = 0
    for zone in range(words[H_NR_ZONES]):
        _look_at_zone(words, out, zone)
        out[RES_SEEN] = 0
    _look_at_window(words, out)
    out[RES_COMMITTED] = words[H_COMMITTED_PAGES]
    unlock(words)
    return OK
