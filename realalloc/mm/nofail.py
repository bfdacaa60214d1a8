"""GFP_NOFAIL for machine code: ask again until it is served (kernel: __alloc_pages_slowpath, __GFP_NOFAIL).

Who waits may use the reserve down to half of min, as GFP_HIGH does (kernel: ALLOC_MIN_RESERVE), or two of them might wait for
each other. Between two attempts the thread sleeps, at most LAST_NS. The faces never come here: they hold the GIL.
"""

from __future__ import annotations

from realalloc.mm.atomic import address_of
from realalloc.mm.bits import order_of_pages
from realalloc.mm.jit import JIT, Words, entry, kernel
from realalloc.mm.kmalloc import class_of, kfree_bulk, kmalloc_bulk, kmalloc_slow, vmalloc, zero_words
from realalloc.mm.layout import (
    C_FLAGS,
    C_MIN_ORDER,
    C_OBJECT_BYTES,
    C_ZONE,
    CF_CTOR,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_HIGH_BIT,
    GFP_NOFAIL_BIT,
    GFP_WAIT_BIT,
    GFP_ZERO_BIT,
    H_CLOSED,
    H_END_PFN,
    H_MAX_ORDER,
    H_NR_ZONES,
    KMALLOC_MAX_CACHE_BYTES,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    WORD_BYTES,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.objects import cache_alloc, cache_alloc_slow, kmem_cache_alloc_bulk
from realalloc.mm.page_alloc import alloc_pages, alloc_run
from realalloc.mm.prim import futex_sleep, sched_yield
from realalloc.mm.watermark import could_ever

ASK_KMALLOC = 0  # what is asked for: bytes,
ASK_VMALLOC = 1
ASK_PAGES = 2  # an order,
ASK_RUN = 3  # pages,
ASK_OBJECT = 4  # the word index of a cache
FIRST_NS = 100_000
LAST_NS = 10_000_000


@entry
def could_serve(words: Words, what: int, argument: int, gfp: int) -> int:
    """Tell whether an empty arena could serve a request."""
    zone = ZONE_DMA if gfp & GFP_DMA_BIT else ZONE_NORMAL
    if what == ASK_OBJECT:
        order = words[argument + C_MIN_ORDER]
        return could_ever(words, words[argument + C_ZONE], 1 << order, order, gfp)
    if zone >= words[H_NR_ZONES] or argument < 0 or argument > words[H_END_PFN] << PAGE_SHIFT:
        return 0
    if what == ASK_PAGES:
        return could_ever(words, zone, 1 << argument, argument, gfp) if argument <= words[H_MAX_ORDER] else 0
    if what == ASK_RUN:
        return could_ever(words, zone, argument, -1, gfp)
    pages = (argument + PAGE_BYTES - 1) >> PAGE_SHIFT
    if what == ASK_KMALLOC and argument <= min(KMALLOC_MAX_CACHE_BYTES, PAGE_BYTES << words[H_MAX_ORDER]):
        order = words[class_of(words, argument, gfp) + C_MIN_ORDER]
        return could_ever(words, zone, 1 << order, order, gfp) if argument > 0 else 0
    if what == ASK_KMALLOC and argument <= PAGE_BYTES << words[H_MAX_ORDER]:
        order = order_of_pages(pages)
        return could_ever(words, zone, 1 << order, order, gfp)
    return could_ever(words, zone, pages, -1, gfp) if zone == ZONE_NORMAL else 0


@kernel
def _ask(words: Words, what: int, argument: int, gfp: int) -> int:
    if what == ASK_KMALLOC:
        return kmalloc_slow(words, argument, gfp)
    if what == ASK_VMALLOC:
        return vmalloc(words, argument, gfp)
    if what == ASK_PAGES:
        return alloc_pages(words, argument, gfp)
    if what == ASK_RUN:
        return alloc_run(words, argument, gfp)
    return cache_alloc_slow(words, argument, gfp)


@entry
def insist(words: Words, what: int, argument: int, gfp: int) -> int:
    """Ask until it is served; ENOMEM where that can never be, if the caller may not wait, or the arena is closed."""
    gfp |= GFP_HIGH_BIT
    if gfp & GFP_WAIT_BIT == 0 or could_serve(words, what, argument, gfp) == 0:
        return ENOMEM
    pause = FIRST_NS
    found = ENOMEM
    while found == ENOMEM and words[H_CLOSED] == 0:
        if JIT:
            futex_sleep(address_of(words) + H_CLOSED * WORD_BYTES, 0, pause)
        else:
            sched_yield()  # which gives the GIL away
        pause = min(2 * pause, LAST_NS)
        found = _ask(words, what, argument, gfp)
    return found


@entry
def served(words: Words, what: int, argument: int, gfp: int) -> int:
    """Ask once, or with GFP_NOFAIL until it is served; what was found, or 0. One call, so that what inlines it stays small."""
    found = _ask(words, what, argument, gfp)
    if found == ENOMEM and gfp & GFP_NOFAIL_BIT:
        found = insist(words, what, argument, gfp)
    return max(found, 0)


@entry
def zeroed_object(words: Words, c: int, gfp: int) -> int:
    """Return an object that reads as zero, or 0: also of a cache whose constructor has made what that would destroy."""
    if words[c + C_FLAGS] & CF_CTOR:
        return 0
    offset = cache_alloc(words, c, gfp)
    if offset == ENOMEM and gfp & GFP_NOFAIL_BIT:
        offset = insist(words, ASK_OBJECT, c, gfp)
    if offset > 0:
        zero_words(words, offset, words[c + C_OBJECT_BYTES])
    return max(offset, 0)


@kernel
def _one_of_many(words: Words, what: int, argument: int, gfp: int) -> int:
    return (
        zeroed_object(words, argument, gfp)
        if what == ASK_OBJECT and gfp & GFP_ZERO_BIT
        else served(words, what, argument, gfp)
    )


@entry
def served_bulk(words: Words, what: int, argument: int, count: int, gfp: int, out: Words) -> int:
    """Fill ``out[:count]`` with blocks (ASK_KMALLOC) or objects and return ``count``, or take none and return 0.

    With GFP_NOFAIL what cannot be had at once is waited for one by one, with what is there already held.
    """
    status = ENOMEM
    if what == ASK_KMALLOC:
        status = kmalloc_bulk(words, argument, count, gfp, out)
    elif gfp & GFP_ZERO_BIT and words[argument + C_FLAGS] & CF_CTOR:
        return 0
    else:
        status = kmem_cache_alloc_bulk(words, argument, count, gfp, out)
        if status == OK and gfp & GFP_ZERO_BIT:
            for k in range(count):
                zero_words(words, out[k], words[argument + C_OBJECT_BYTES])
    if status != ENOMEM or gfp & GFP_NOFAIL_BIT == 0:
        return count if status == OK else 0
    for done in range(count):
        out[done] = _one_of_many(words, what, argument, gfp)
        if out[done] == 0:  # it can never be, or the arena is closed
            kfree_bulk(words, done, out)
            return 0
    return count
