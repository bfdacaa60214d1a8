"""The verbs for a user's own ``@njit`` code, on raw offsets.

``words`` is ``arena.words``; a block is named by its byte offset from ``arena.address``, pages by their pfn. 0 means "no
memory". What is taken here is the caller's own, as in C: free it with the matching verb, from jitted code or from Python.
Freeing verbs return 0, or EINVAL with nothing changed if no such live block begins there. No verb needs the GIL: use them
under ``nogil=True``, ``parallel=True``, inside ``@cfunc`` and from any thread. Importing this module imports numba.

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

from realalloc.gfp import GFP_DMA, GFP_KERNEL, GFP_ZERO
from realalloc.mm.jit import Words, verb
from realalloc.mm.kmalloc import kfree as _kfree
from realalloc.mm.kmalloc import kmalloc as _kmalloc
from realalloc.mm.kmalloc import ksize as _ksize
from realalloc.mm.kmalloc import vmalloc as _vmalloc
from realalloc.mm.layout import EINVAL, PAGE_SHIFT, WORD_BYTES
from realalloc.mm.mempool import pool_alloc as _pool_alloc
from realalloc.mm.mempool import pool_alloc_reserved as _pool_alloc_reserved
from realalloc.mm.mempool import pool_free as _pool_free
from realalloc.mm.page_alloc import alloc_pages as _alloc_pages
from realalloc.mm.page_alloc import alloc_run as _alloc_run
from realalloc.mm.page_alloc import free_pages as _free_pages
from realalloc.mm.slab import kmem_cache_alloc as _kmem_cache_alloc
from realalloc.mm.slab import kmem_cache_alloc_bulk as _kmem_cache_alloc_bulk
from realalloc.mm.slab import kmem_cache_free as _kmem_cache_free

__all__ = [
    "EINVAL",
    "GFP_DMA",
    "GFP_KERNEL",
    "GFP_ZERO",
    "NULL",
    "alloc_pages",
    "alloc_pages_exact",
    "free_pages",
    "kfree",
    "kmalloc",
    "kmem_cache_alloc",
    "kmem_cache_alloc_bulk",
    "kmem_cache_free",
    "krealloc",
    "ksize",
    "kzalloc",
    "mempool_alloc",
    "mempool_alloc_preallocated",
    "mempool_free",
    "pfn_to_offset",
    "vfree",
    "vmalloc",
]

NULL: Final = 0


@verb
def kmalloc(words: Words, nbytes: int, gfp: int = 0) -> int:
    """Return the offset of a block of at least ``nbytes`` > 0 bytes, or NULL."""
    return max(_kmalloc(words, nbytes, gfp), 0)


@verb
def kzalloc(words: Words, nbytes: int) -> int:
    """Return the offset of a block that reads as zero, or NULL."""
    return max(_kmalloc(words, nbytes, GFP_ZERO), 0)


@verb
def kfree(words: Words, offset: int) -> int:
    """Free a block of any size; NULL is ignored."""
    return _kfree(words, offset) if offset != 0 else 0


@verb
def ksize(words: Words, offset: int) -> int:
    """Return the usable bytes of a live block, 0 for NULL and for anything else."""
    return max(_ksize(words, offset), 0)


@verb
def krealloc(words: Words, offset: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` with the old contents: the same one if it fits; NULL leaves the old one whole."""
    old = max(_ksize(words, offset), 0)
    if 0 < nbytes <= old:
        return offset
    fresh = max(_kmalloc(words, nbytes, 0), 0)
    if fresh != 0 and old != 0:
        for k in range(min(old, nbytes + WORD_BYTES - 1) // WORD_BYTES):
            words[fresh // WORD_BYTES + k] = words[offset // WORD_BYTES + k]
        _kfree(words, offset)
    return fresh


@verb
def vmalloc(words: Words, nbytes: int, gfp: int = 0) -> int:
    """Return the offset of whole pages in the vmalloc window, or NULL."""
    return max(_vmalloc(words, nbytes, gfp), 0)


@verb
def vfree(words: Words, offset: int) -> int:
    """Free an area; NULL is ignored."""
    return _kfree(words, offset) if offset != 0 else 0


@verb
def pfn_to_offset(pfn: int) -> int:
    """Return the offset of a page."""
    return pfn << PAGE_SHIFT


@verb
def alloc_pages(words: Words, order: int, gfp: int = 0) -> int:
    """Return the pfn of ``1 << order`` pages, aligned to their size, or 0."""
    return max(_alloc_pages(words, order, gfp), 0)


@verb
def alloc_pages_exact(words: Words, pages: int, gfp: int = 0) -> int:
    """Return the first pfn of any number of contiguous pages, or 0; free with order -1."""
    return max(_alloc_run(words, pages, gfp), 0)


@verb
def free_pages(words: Words, pfn: int, order: int) -> int:
    """Free pages; the order is verified, -1 accepts any."""
    return _free_pages(words, pfn, order)


@verb
def kmem_cache_alloc(words: Words, cache: int) -> int:
    """Return an object of the cache whose ``cache.at`` this is, or NULL.

    A cache with a constructor serves only objects that Python has constructed: NULL when those are used up.
    """
    return max(_kmem_cache_alloc(words, cache), 0)


@verb
def kmem_cache_alloc_bulk(words: Words, cache: int, count: int, out: Words) -> int:
    """Fill ``out[:count]`` with objects and return ``count``, or take none and return 0."""
    return count if _kmem_cache_alloc_bulk(words, cache, count, out) == 0 else 0


@verb
def kmem_cache_free(words: Words, cache: int, offset: int) -> int:
    """Return an object to its cache."""
    return _kmem_cache_free(words, cache, offset)


@verb
def mempool_alloc(words: Words, pool: int) -> int:
    """Return an element of the pool whose ``pool.at`` this is, or NULL; never waits."""
    return max(_pool_alloc(words, pool, 0), 0)


@verb
def mempool_alloc_preallocated(words: Words, pool: int) -> int:
    """Return an element of the reserve, or NULL."""
    return max(_pool_alloc_reserved(words, pool), 0)


@verb
def mempool_free(words: Words, pool: int, offset: int) -> int:
    """Return an element to its pool, and wake who waits for it."""
    return _pool_free(words, pool, offset)
