"""The verbs for a user's own ``@njit`` code, on raw offsets.

``words`` is ``arena.words``; a block is named by its byte offset from ``arena.address``, pages by their pfn. 0 means "no
memory". What is taken here is the caller's own, as in C: free it with the matching verb, from jitted code or from Python.
Freeing verbs return 0, or EINVAL with nothing changed if no such block begins there; a second free of an object may be
noticed late, or not (docs/jit.md), as the fast path does not ask its slab. No verb needs the GIL: use them under
``nogil=True``, ``parallel=True``, inside ``@cfunc`` and from any thread. Importing this module imports numba.

Flags are taken at their word: without any a verb is GFP_KERNEL, but ``GFP_ZERO`` alone may not take memory back where the
arena has watermarks (docs/watermarks.md). GFP_NOFAIL sleeps until there is memory: for ``nogil`` code only.

Blocks of Python leases may be read and written here, but never freed: their lease would free them again.

    @njit(nogil=True)
    def work(words):
        offset = kmalloc(words, 200)
        if offset == NULL:
            return -1
        words[offset >> 3] = 42
        return kfree(words, offset)
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from realalloc.gfp import (
    GFP_ATOMIC,
    GFP_DMA,
    GFP_HIGH,
    GFP_KERNEL,
    GFP_KSWAPD_RECLAIM,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOWAIT,
    GFP_ZERO,
)
from realalloc.mm.jit import Words, bare, verb
from realalloc.mm.kmalloc import kfree_bulk as _kfree_bulk
from realalloc.mm.kmalloc import kfree_slow as _kfree_slow
from realalloc.mm.kmalloc import kmalloc_sheaf as _kmalloc_sheaf
from realalloc.mm.kmalloc import ksize as _ksize
from realalloc.mm.layout import BACKING_CALLS, C_SHEAF, EINVAL, P_BACKING, PAGE_BYTES, PAGE_SHIFT, WORD_BYTES
from realalloc.mm.mempool import pool_alloc as _pool_alloc
from realalloc.mm.mempool import pool_alloc_reserved as _pool_alloc_reserved
from realalloc.mm.mempool import pool_free as _pool_free
from realalloc.mm.mempool_calls import calls_alloc as _calls_alloc
from realalloc.mm.mempool_calls import calls_alloc_wait as _calls_alloc_wait
from realalloc.mm.mempool_calls import calls_free as _calls_free
from realalloc.mm.mempool_wait import pool_alloc_wait as _pool_alloc_wait
from realalloc.mm.nofail import ASK_KMALLOC, ASK_OBJECT, ASK_PAGES, ASK_RUN, ASK_VMALLOC
from realalloc.mm.nofail import served as _served
from realalloc.mm.nofail import served_bulk as _served_bulk
from realalloc.mm.nofail import zeroed_object as _zeroed_object
from realalloc.mm.objects import cache_free as _kmem_cache_free
from realalloc.mm.objects import free_fast as _free_fast
from realalloc.mm.objects import kmem_cache_free_bulk as _kmem_cache_free_bulk
from realalloc.mm.page_alloc import alloc_pages_bulk as _alloc_pages_bulk
from realalloc.mm.page_alloc import free_pages as _free_pages
from realalloc.mm.sheaf import pop as _pop
from realalloc.mm.threads import my_place as _my_place

__all__ = [
    "EINVAL",
    "GFP_ATOMIC",
    "GFP_DMA",
    "GFP_HIGH",
    "GFP_KERNEL",
    "GFP_MEMALLOC",
    "GFP_NOFAIL",
    "GFP_NOWAIT",
    "GFP_ZERO",
    "NULL",
    "alloc_pages",
    "alloc_pages_bulk",
    "alloc_pages_exact",
    "free_pages",
    "as_array",
    "as_bytes",
    "as_floats",
    "kcalloc",
    "kfree",
    "kfree_bulk",
    "kmalloc",
    "kmalloc_bulk",
    "kmem_cache_alloc",
    "kmem_cache_alloc_bulk",
    "kmem_cache_free",
    "kmem_cache_free_bulk",
    "krealloc",
    "ksize",
    "kvfree",
    "kvmalloc",
    "load_word",
    "kzalloc",
    "mempool_alloc",
    "mempool_alloc_bulk",
    "mempool_alloc_preallocated",
    "mempool_alloc_wait",
    "mempool_free",
    "mempool_free_bulk",
    "pfn_to_offset",
    "store_word",
    "vfree",
    "vmalloc",
    "vzalloc",
]

NULL: Final = 0
MAX_BYTES: Final = (1 << 63) - 1


@verb
def kmalloc(words: Words, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return the offset of a block of at least ``nbytes`` > 0 bytes, or NULL."""
    offset = _kmalloc_sheaf(bare(words), nbytes, gfp)
    return offset if offset != 0 else _served(bare(words), ASK_KMALLOC, nbytes, gfp)


@verb
def kzalloc(words: Words, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return the offset of a block that reads as zero, or NULL."""
    return kmalloc(words, nbytes, gfp | GFP_ZERO)


@verb
def kcalloc(words: Words, n: int, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return the offset of ``n * nbytes`` bytes that read as zero, or NULL: also where the product overflows."""
    if n <= 0 or nbytes <= 0 or n > MAX_BYTES // nbytes:
        return NULL
    return kmalloc(words, n * nbytes, gfp | GFP_ZERO)


@verb
def kfree(words: Words, offset: int) -> int:
    """Free a block of any size; NULL is ignored."""
    if _free_fast(bare(words), 0, offset) == 0 and offset != 0:
        return _kfree_slow(bare(words), offset)
    return 0


@verb
def ksize(words: Words, offset: int) -> int:
    """Return the usable bytes of a live block, 0 for NULL and for anything else."""
    return max(_ksize(bare(words), offset), 0)


@verb
def krealloc(words: Words, offset: int, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return a block of ``nbytes`` with the old contents: the same one if it fits; NULL leaves the old one whole.

    GFP_ZERO zeroes what is beyond the usable bytes of the old block, as nobody knows how many of these were asked for.
    """
    old = max(_ksize(bare(words), offset), 0)
    if 0 < nbytes <= old:
        return offset
    fresh = kmalloc(words, nbytes, gfp)
    if fresh != 0 and old != 0:
        for k in range(min(old, nbytes + WORD_BYTES - 1) // WORD_BYTES):
            words[fresh // WORD_BYTES + k] = words[offset // WORD_BYTES + k]
        kfree(words, offset)
    return fresh


@verb
def vmalloc(words: Words, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return the offset of whole pages in the vmalloc window, or NULL."""
    return _served(bare(words), ASK_VMALLOC, nbytes, gfp)


@verb
def vzalloc(words: Words, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return the offset of whole pages in the vmalloc window that read as zero, or NULL."""
    return vmalloc(words, nbytes, gfp | GFP_ZERO)


@verb
def vfree(words: Words, offset: int) -> int:
    """Free an area; NULL is ignored."""
    return kfree(words, offset)


@verb
def kvmalloc(words: Words, nbytes: int, gfp: int = GFP_KERNEL) -> int:
    """Return a block by kmalloc, or by vmalloc where no contiguous one is left and ``nbytes`` is above a page; or NULL."""
    if nbytes <= PAGE_BYTES:
        return kmalloc(words, nbytes, gfp)
    offset = kmalloc(words, nbytes, gfp & ~GFP_NOFAIL)
    return offset if offset != 0 else vmalloc(words, nbytes, gfp)


@verb
def kvfree(words: Words, offset: int) -> int:
    """Free a block of :func:`kvmalloc`; NULL is ignored."""
    return kfree(words, offset)


@verb
def kmalloc_bulk(words: Words, nbytes: int, count: int, out: Words, gfp: int = GFP_KERNEL) -> int:
    """Fill ``out[:count]`` with blocks of ``nbytes`` and return ``count``, or take none and return 0."""
    return _served_bulk(bare(words), ASK_KMALLOC, nbytes, max(count, 0), gfp, out)


@verb
def kfree_bulk(words: Words, count: int, offsets: Words) -> int:
    """Free ``offsets[:count]``; return how many were refused: no live block begins there."""
    return _kfree_bulk(bare(words), count, offsets)


@verb
def as_array(words: Words, offset: int, n: int) -> Words:
    """Return the ``n`` int64 words that begin at an offset, a multiple of 8, as an array: a view of the block."""
    return words[offset // WORD_BYTES : offset // WORD_BYTES + n]


@verb
def as_floats(words: Words, offset: int, n: int) -> npt.NDArray[np.float64]:
    """Return the ``n`` float64 that begin at an offset, a multiple of 8, as an array."""
    return words[offset // WORD_BYTES : offset // WORD_BYTES + n].view(np.float64)


@verb
def as_bytes(words: Words, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of a block as an array of uint8."""
    first = offset // WORD_BYTES
    return words[first : first + (nbytes + WORD_BYTES - 1) // WORD_BYTES].view(np.uint8)[:nbytes]


@verb
def load_word(words: Words, offset: int) -> int:
    """Load the int64 at an offset >= 0, a multiple of 8: ``words[offset // 8]`` without numba's check for a negative index."""
    value: int = bare(words)[offset >> 3]
    return value


@verb
def store_word(words: Words, offset: int, value: int) -> None:
    """Store the int64 at an offset >= 0, a multiple of 8."""
    bare(words)[offset >> 3] = value


@verb
def pfn_to_offset(pfn: int) -> int:
    """Return the offset of a page."""
    return pfn << PAGE_SHIFT


@verb
def alloc_pages(words: Words, order: int, gfp: int = GFP_KERNEL) -> int:
    """Return the pfn of ``1 << order`` pages, aligned to their size, or 0."""
    return _served(bare(words), ASK_PAGES, order, gfp)


@verb
def alloc_pages_exact(words: Words, pages: int, gfp: int = GFP_KERNEL) -> int:
    """Return the first pfn of any number of contiguous pages, or 0; free with order -1."""
    return _served(bare(words), ASK_RUN, pages, gfp)


@verb
def alloc_pages_bulk(words: Words, count: int, out: Words, gfp: int = GFP_KERNEL) -> int:
    """Fill ``out[:count]`` with pfns of single pages; return how many there were, which may be fewer, as in the kernel."""
    return _alloc_pages_bulk(bare(words), count, gfp, out)


@verb
def free_pages(words: Words, pfn: int, order: int) -> int:
    """Free pages; the order is verified, -1 accepts any."""
    return _free_pages(bare(words), pfn, order)


@verb
def kmem_cache_alloc(words: Words, cache: int, gfp: int = GFP_KERNEL) -> int:
    """Return an object of the cache whose ``cache.at`` this is, or NULL.

    A cache with a constructor serves only objects that Python has constructed: NULL when those are used up, and for GFP_ZERO,
    which would destroy what it has made.
    """
    if gfp & GFP_ZERO:
        return _zeroed_object(bare(words), cache, gfp)
    offset = _pop(bare(words), _my_place(), bare(words)[cache + C_SHEAF])
    return offset if offset != 0 else _served(bare(words), ASK_OBJECT, cache, gfp)


@verb
def kmem_cache_alloc_bulk(words: Words, cache: int, count: int, out: Words, gfp: int = GFP_KERNEL) -> int:
    """Fill ``out[:count]`` with objects and return ``count``, or take none and return 0."""
    return _served_bulk(bare(words), ASK_OBJECT, cache, max(count, 0), gfp, out)


@verb
def kmem_cache_free_bulk(words: Words, cache: int, count: int, offsets: Words) -> int:
    """Return ``offsets[:count]`` to their cache; return how many were refused."""
    return _kmem_cache_free_bulk(bare(words), cache, count, offsets)


@verb
def kmem_cache_free(words: Words, cache: int, offset: int) -> int:
    """Return an object to its cache."""
    return _kmem_cache_free(bare(words), cache, offset)


@verb
def mempool_alloc(words: Words, pool: int) -> int:
    """Return an element of the pool whose ``pool.at`` this is, or NULL; never waits."""
    raw = bare(words)
    if raw[pool + P_BACKING] == BACKING_CALLS:
        return max(_calls_alloc(raw, pool, 0), 0)
    return max(_pool_alloc(raw, pool, GFP_KSWAPD_RECLAIM), 0)


@verb
def mempool_alloc_wait(words: Words, pool: int, timeout_ns: int = -1) -> int:
    """Return an element, sleeping until one comes back; NULL after ``timeout_ns`` (< 0: never), or when the arena is closed.

    For ``nogil`` code: the thread sleeps in the kernel, no signal handler of Python runs meanwhile. A pool over a cache with a
    constructor serves only objects that Python has constructed.
    """
    raw = bare(words)
    if raw[pool + P_BACKING] == BACKING_CALLS:
        return max(_calls_alloc_wait(raw, pool, timeout_ns), 0)
    return max(_pool_alloc_wait(raw, pool, timeout_ns), 0)


@verb
def mempool_alloc_preallocated(words: Words, pool: int) -> int:
    """Return an element of the reserve, or NULL."""
    return max(_pool_alloc_reserved(bare(words), pool), 0)


@verb
def mempool_free(words: Words, pool: int, offset: int) -> int:
    """Return an element to its pool, and wake who waits for it."""
    raw = bare(words)
    if raw[pool + P_BACKING] == BACKING_CALLS:
        return _calls_free(raw, pool, offset)
    return _pool_free(raw, pool, offset)


@verb
def mempool_free_bulk(words: Words, pool: int, count: int, offsets: Words) -> int:
    """Return ``offsets[:count]`` to their pool; return how many were refused."""
    refused = 0
    for k in range(count):
        refused += 1 if mempool_free(words, pool, offsets[k]) != 0 else 0
    return refused


@verb
def mempool_alloc_bulk(words: Words, pool: int, count: int, out: Words) -> int:
    """Fill ``out[:count]`` with elements and return ``count``, or take none and return 0; never waits."""
    for done in range(count):
        out[done] = mempool_alloc(words, pool)
        if out[done] == NULL:
            mempool_free_bulk(words, pool, done, out)
            return 0
    return max(count, 0)
