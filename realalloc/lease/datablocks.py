"""Blocks for NumPy: the jitted allocator behind its handler's functions, over a record (``lease/datarecord.py``).

Guarantees: a block goes back to where it came from: inside the arena's range to the arena, else to NumPy's default handler.
What the arena cannot serve is NULL, or the default handler's with R_FALLBACK; a block that cannot grow stays whole.
Invariant: every block is aligned to R_ALIGN. NumPy calls with the GIL held: counters are plain words.
"""

from __future__ import annotations

import ctypes
from typing import Final

from llvmlite import ir

from realalloc.lease.capi import c_function as c_call
from realalloc.lease.capi import load_at, store_at
from realalloc.lease.datarecord import (
    HUGE_BYTES,
    R_ALIGN,
    R_ALLOCS,
    R_BASE,
    R_BYTES,
    R_DEFAULT,
    R_END,
    R_FALLBACK,
    R_FALLBACKS,
    R_FREES,
    R_IN_PLACE,
    R_REALLOCS,
    R_REFUSED,
)
from realalloc.mm.atomic import address_of, atomic_add
from realalloc.mm.jit import Words, entry, kernel, native
from realalloc.mm.kmalloc import kfree_slow, kmalloc_fast, ksize
from realalloc.mm.layout import (
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    GRANULE_BYTES,
    H_BAD_FREES,
    H_MAX_ORDER,
    OK,
    PAGE_BYTES,
    WORD_BYTES,
)
from realalloc.mm.objects import free_fast
from realalloc.mm.prim import emit_call
from realalloc.mm.resize import krealloc_in_place

LARGEST: Final = 1 << 46  # no arena is that large, and rounding up cannot overflow below it
SMALL: Final = 2 * PAGE_BYTES  # what shrinks to less than half moves, from this size on

_WORD = ir.IntType(64)


@native(emit_call(_WORD))
def call_at(function: int, first: int, second: int, third: int) -> int:
    """Call a C function of up to three words; those that it does not take are ignored, as are results that it has not."""
    word = ctypes.c_int64
    return int(ctypes.CFUNCTYPE(word, word, word, word)(int(function))(int(first), int(second), int(third)))


@native(c_call("memcpy", _WORD, [_WORD] * 3))
def copy_bytes(target: int, source: int, nbytes: int) -> int:
    """Copy bytes between addresses; one of them may lie outside the arena."""
    ctypes.memmove(int(target), int(source), int(nbytes))
    return target


@kernel
def tally(record: int, at: int, by: int) -> None:
    """Add to a counter of the record."""
    store_at(record + at, load_at(record + at) + by)


@kernel
def call_default(record: int, which: int, first: int, second: int) -> int:
    """Call NumPy's default handler: 1 malloc, 2 calloc, 3 realloc, 4 free."""
    return call_at(load_at(record + R_DEFAULT + which * WORD_BYTES), load_at(record + R_DEFAULT), first, second)


@kernel
def owns(record: int, block: int) -> int:
    """Tell whether an address lies in the arena."""
    offset = block - load_at(record + R_BASE)
    return 1 if 0 <= offset < load_at(record + R_END) else 0


@kernel
def rounded(words: Words, align: int, nbytes: int) -> int:
    """Round a size up so that whatever serves it is aligned: a size class that is a multiple of a power of two is aligned
    to it, a page block to its size, an area to a granule, or to 2 MiB from that size on.
    """
    size = (max(nbytes, 1) + align - 1) & -align
    if align > GRANULE_BYTES and size > PAGE_BYTES << words[H_MAX_ORDER]:
        size = max(size, HUGE_BYTES)
    return size


@kernel
def take_block(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Return the address of a block of the arena, or NULL."""
    offset = (
        kmalloc_fast(words, rounded(words, load_at(record + R_ALIGN), nbytes), gfp | GFP_ORDINARY)
        if 0 <= nbytes < LARGEST
        else 0
    )
    return address_of(words) + offset if offset > 0 else 0


@kernel
def hand_out(record: int, block: int, nbytes: int, gfp: int) -> int:
    """Count what NumPy gets: the block, for NULL one of NumPy's default handler, if that is asked, or NULL."""
    if block == 0 and load_at(record + R_FALLBACK) != 0:
        tally(record, R_FALLBACKS, 1)
        block = call_default(record, 2, 1, nbytes) if gfp & GFP_ZERO_BIT else call_default(record, 1, nbytes, 0)
    if block == 0:
        tally(record, R_REFUSED, 1)
        return 0
    tally(record, R_ALLOCS, 1)
    tally(record, R_BYTES, nbytes)
    return block


@entry
def data_alloc_slow(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Allocate what the calling thread's sheaf of objects does not have; the address, or NULL."""
    return hand_out(record, take_block(words, record, nbytes, gfp), nbytes, gfp)


@entry
def data_free_slow(words: Words, record: int, block: int, nbytes: int) -> int:
    """Free what is no object of a sheaf. What is no live block is counted, as there is nobody to tell; NULL is ignored."""
    if block == 0:
        return OK
    if owns(record, block) == 0:
        call_default(record, 4, block, nbytes)
    elif kfree_slow(words, block - load_at(record + R_BASE)) != OK:
        atomic_add(words, H_BAD_FREES, 1)
        return OK
    tally(record, R_FREES, 1)
    return OK


@entry
def data_resize(words: Words, record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` with the old contents: the same, grown, moved with its pages, or a copy; or NULL."""
    tally(record, R_REALLOCS, 1)
    base = load_at(record + R_BASE)
    if owns(record, block) == 0:
        return call_default(record, 3, block, nbytes)
    offset = block - base
    old = ksize(words, offset)
    if old <= 0:  # no live block
        return 0
    if 0 <= nbytes <= old and (old <= SMALL or nbytes > old // 2):
        tally(record, R_IN_PLACE, 1)
        return block
    wanted = rounded(words, load_at(record + R_ALIGN), nbytes) if 0 <= nbytes < LARGEST else LARGEST
    moved = krealloc_in_place(words, offset, wanted) if old < wanted < LARGEST else 0
    if moved > 0:
        tally(record, R_IN_PLACE, 1)
        return base + moved
    fresh = kmalloc_fast(words, wanted, GFP_ORDINARY) if wanted < LARGEST else 0
    if fresh <= 0 and 0 <= nbytes <= old:
        return block  # no memory to shrink into
    if fresh > 0:
        fresh += base
        copy_bytes(fresh, block, min(old, nbytes))
    elif load_at(record + R_FALLBACK) != 0:
        fresh = call_default(record, 1, nbytes, 0)
        tally(record, R_FALLBACKS, 1)
        if fresh != 0:
            copy_bytes(fresh, block, min(old, nbytes))
    if fresh <= 0:
        tally(record, R_REFUSED, 1)
        return 0
    if free_fast(words, 0, offset) == 0:
        kfree_slow(words, offset)
    return fresh
