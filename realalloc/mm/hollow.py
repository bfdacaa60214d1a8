"""Slabs that are partly in use give back the pages that no live object touches. Only ``trim`` asks for it.

The pages stay the slab's and stay committed: any of their objects may be handed out at any moment, without looking at the
books, and its first touch brings the page back, as zeros. So H_COMMITTED_PAGES remains an upper bound of what is resident.
Objects with a constructor keep their state, hence their memory; the locked zone keeps all of it.
Invariant: nothing that any walker looks at changes, but for the order of the partial list.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of, lock, unlock
from realalloc.mm.freelist import first, push_back, remove
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.layout import (
    C_ACTIVE,
    C_FLAGS,
    C_NR_PARTIAL,
    C_PARTIAL,
    C_STATE,
    C_STRIDE_BYTES,
    C_ZONE,
    CACHE_LIVE,
    CF_CTOR,
    H_FREEMAP_CACHE,
    H_SHEAF_CACHE,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    ZONE_NORMAL,
)
from realalloc.mm.pages import info_at, links_at, order_at, page_at
from realalloc.mm.prim import MADV_DONTNEED, madvise, mincore
from realalloc.mm.slab_map import map_at, objects_of

SLABS = 32  # looked at for each time the lock is held: 0.1 ms
VECTOR_PAGES = 64  # that the system is asked about at once; a byte each
VECTOR_WORDS = VECTOR_PAGES // 8


@kernel
def _is_unused(words: Words, c: int, pfn: int, k: int) -> int:
    """Tell whether no live object lies on page ``k`` of a slab."""
    page = page_at(words, pfn)
    at = map_at(words, c, page)
    stride = words[c + C_STRIDE_BYTES]
    index = (k << PAGE_SHIFT) // stride
    last = min(((k + 1) << PAGE_SHIFT) - 1, objects_of(words[info_at(pfn)]) * stride - 1) // stride
    while index <= last:
        if words[at + (index >> 6)] >> (index & 63) & 1 == 0:
            return 0
        index += 1
    return 1


@kernel
def _drop(words: Words, out: Words, pfn: int, pages: int) -> int:
    """Give the memory of pages back; return how many were resident."""
    start = address_of(words) + (pfn << PAGE_SHIFT)
    resident = 0
    done = 0
    while done < pages:
        many = min(VECTOR_PAGES, pages - done)
        for k in range(VECTOR_WORDS):
            out[k] = 0
        mincore(start + (done << PAGE_SHIFT), many << PAGE_SHIFT, address_of(out))
        for k in range(many):
            resident += out[k >> 3] >> ((k & 7) * 8) & 1
        done += many
    if resident == 0 or madvise(start, pages * PAGE_BYTES, MADV_DONTNEED) != OK:
        return 0
    return resident


@kernel
def _hollow_slab(words: Words, c: int, pfn: int, out: Words) -> int:
    pages = 1 << order_at(words, pfn)
    gone = 0
    k = 0
    while k < pages:
        begin = k
        while k < pages and _is_unused(words, c, pfn, k) == 1:
            k += 1
        if k > begin:
            gone += _drop(words, out, pfn + begin, k - begin)
        k += 1
    return gone


@entry
def hollow(words: Words, c: int, out: Words) -> int:
    """Give back unused pages of a cache's active and partial slabs, for a few of them at a time; return how many pages were
    resident. ``out`` is scratch, VECTOR_WORDS words.
    """
    if c in (words[H_FREEMAP_CACHE], words[H_SHEAF_CACHE]) or words[c + C_FLAGS] & CF_CTOR:
        return 0
    gone = 0
    left = words[c + C_NR_PARTIAL] + 1
    while left > 0:
        lock(words)
        if words[c + C_STATE] != CACHE_LIVE or words[c + C_ZONE] != ZONE_NORMAL:
            left = 0
        elif left == words[c + C_NR_PARTIAL] + 1 and words[c + C_ACTIVE] != 0:
            gone += _hollow_slab(words, c, words[c + C_ACTIVE], out)
        for _ in range(min(left, SLABS, words[c + C_NR_PARTIAL])):
            pfn = first(words, c + C_PARTIAL)
            gone += _hollow_slab(words, c, pfn, out)
            remove(words, c + C_PARTIAL, links_at(words), PAGE_STRUCT_WORDS, pfn)
            push_back(words, c + C_PARTIAL, links_at(words), PAGE_STRUCT_WORDS, pfn)
        unlock(words)
        left -= SLABS
    return gone
