"""The kmalloc family: one verb for every size, and the verbs that find out by themselves what a block is.

    size <= KMALLOC_MAX_CACHE_BYTES (8 KiB)   slab cache of the size class
    size <= PAGE_BYTES << max_order           block of that order (KIND_LARGE)
    above                                     vmalloc

Guarantees: a power-of-two size is aligned to itself, 96 to 32, 192 to 64, blocks and areas to pages or more. When pages
run out, lazily kept areas and empty slabs are reclaimed once before ENOMEM is said. ENOMEM takes nothing.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import order_of_pages
from realalloc.mm.buddy import alloc_block_locked
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmem_cache import cache_create, cache_geometry, shrink_all_locked
from realalloc.mm.layout import (
    C_OBJECT_BYTES,
    CACHE_WORDS,
    EINVAL,
    ENOMEM,
    EXTERNAL_MAP_BYTES,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    H_FREEMAP_CACHE,
    H_MAX_ORDER,
    H_NR_ZONES,
    H_VM_START_BYTES,
    KIND_LARGE,
    KIND_PAGES,
    KIND_RUN,
    KMALLOC_MAX_CACHE_BYTES,
    KMALLOC_SIZES,
    KMALLOC_TABLE,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    V_PAGES,
    WORD_BYTES,
    ZONE_DMA,
    ZONE_NORMAL,
    slab_min_objects,
)
from realalloc.mm.page_alloc import free_any_block_locked, zone_for
from realalloc.mm.pages import kind_of, pages_at, zero_range
from realalloc.mm.reclaim import reclaim_locked
from realalloc.mm.slab import (
    cache_alloc_locked,
    cache_free_locked,
    cache_of,
    free_in_slab_locked,
    head_of,
    is_live_object,
)
from realalloc.mm.vmalloc import area_at, granule_of, validate_vmalloc_locked, vfree_locked, vmalloc_locked

NR_CLASSES = len(KMALLOC_SIZES)


def create_classes(words: Words) -> None:
    """Make the internal free map cache and the kmalloc caches of each zone, and fill the class table. Runs once."""
    objects = slab_min_objects()
    max_order = int(words[H_MAX_ORDER])
    words[H_FREEMAP_CACHE] = cache_create(words, EXTERNAL_MAP_BYTES, 64, EXTERNAL_MAP_BYTES, 0, 0, ZONE_NORMAL)
    for zone in range(int(words[H_NR_ZONES])):
        made = []
        for size in KMALLOC_SIZES:
            align = size & -size
            stride, order = cache_geometry(size, align, max_order, objects)
            order = max(order, (size - 1) // PAGE_BYTES)  # 8 KiB where no block is that large: a cache that stays empty
            made.append(cache_create(words, size, align, stride, order, 0, zone))
        if zone == ZONE_NORMAL:  # the DMA family sits NR_CLASSES descriptors behind
            for step in range(KMALLOC_MAX_CACHE_BYTES // 8 + 1):
                words[KMALLOC_TABLE + step] = made[next(k for k, size in enumerate(KMALLOC_SIZES) if size >= step * 8)]


@kernel
def class_of(words: Words, nbytes: int, gfp: int) -> int:
    """Return the word index of the cache that serves ``nbytes`` <= KMALLOC_MAX_CACHE_BYTES."""
    c = words[KMALLOC_TABLE + ((nbytes + 7) >> 3)]
    return c + NR_CLASSES * CACHE_WORDS if gfp & GFP_DMA_BIT else c


@kernel
def kmalloc_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate without reclaim; small blocks are not zeroed here."""
    zone = ZONE_DMA if gfp & GFP_DMA_BIT else ZONE_NORMAL
    largest = PAGE_BYTES << words[H_MAX_ORDER]
    if nbytes <= min(KMALLOC_MAX_CACHE_BYTES, largest):
        return cache_alloc_locked(words, class_of(words, nbytes, gfp))
    if nbytes <= largest:
        order = order_of_pages((nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT)
        pfn = alloc_block_locked(words, zone, order, KIND_LARGE, gfp & GFP_ZERO_BIT)
        if pfn < 0:
            return pfn
        words[H_BLOCKS] += 1
        return pfn << PAGE_SHIFT
    return vmalloc_locked(words, nbytes, gfp & GFP_ZERO_BIT) if zone == ZONE_NORMAL else ENOMEM


@entry
def kmalloc_retry_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate, reclaiming once if pages have run out."""
    offset = kmalloc_locked(words, nbytes, gfp)
    if offset == ENOMEM and reclaim_locked(words) > 0:
        offset = kmalloc_locked(words, nbytes, gfp)
    return offset


@kernel
def zero_words(words: Words, offset: int, nbytes: int) -> None:
    """Zero a block, up to the next word."""
    zero_range(words, offset // WORD_BYTES, (nbytes + WORD_BYTES - 1) // WORD_BYTES)


@entry
def kmalloc(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of a block of at least ``nbytes`` (> 0) bytes, or ENOMEM."""
    if nbytes <= 0 or zone_for(words, gfp) < 0 or words[H_CLOSED] != 0:
        return ENOMEM
    lock(words)
    offset = ENOMEM
    if nbytes <= KMALLOC_MAX_CACHE_BYTES:  # the fast path, inlined: everything else is a call
        offset = cache_alloc_locked(words, class_of(words, nbytes, gfp))
    if offset < 0:
        offset = kmalloc_retry_locked(words, nbytes, gfp)
    unlock(words)
    if offset > 0 and gfp & GFP_ZERO_BIT and nbytes <= KMALLOC_MAX_CACHE_BYTES:
        zero_words(words, offset, nbytes)
    return offset


@entry
def kfree_locked(words: Words, offset: int) -> int:
    """Free whatever block begins at ``offset``: object, large block, run, area; EINVAL if none does."""
    if offset >= words[H_VM_START_BYTES]:
        return vfree_locked(words, offset)
    pfn = offset >> PAGE_SHIFT
    kind = kind_of(words, pfn)
    if kind == KIND_LARGE or kind == KIND_PAGES or kind == KIND_RUN:
        if offset & (PAGE_BYTES - 1) != 0:
            return EINVAL
        free_any_block_locked(words, pfn)
        return OK
    return cache_free_locked(words, 0, offset)


@entry
def kfree(words: Words, offset: int) -> int:
    """Free a block by its offset; EINVAL, with nothing changed, if no live block begins there."""
    lock(words)
    pfn = head_of(words, offset >> PAGE_SHIFT)
    if pfn != 0:  # the fast path, inlined
        status = free_in_slab_locked(words, 0, pfn, offset)
    else:
        status = kfree_locked(words, offset)
    unlock(words)
    return status


@entry
def ksize_locked(words: Words, offset: int) -> int:
    """Return the usable bytes of the live block that begins at ``offset``, EINVAL if none does."""
    if offset >= words[H_VM_START_BYTES]:
        granule = granule_of(words, offset)
        return words[area_at(words, granule) + V_PAGES] << PAGE_SHIFT if granule != 0 else EINVAL
    pfn = offset >> PAGE_SHIFT
    kind = kind_of(words, pfn)
    if kind == KIND_LARGE or kind == KIND_PAGES or kind == KIND_RUN:
        return pages_at(words, pfn) << PAGE_SHIFT if offset & (PAGE_BYTES - 1) == 0 else EINVAL
    if is_live_object(words, 0, offset) == 0:
        return EINVAL
    return words[cache_of(words, head_of(words, pfn)) + C_OBJECT_BYTES]


@entry
def ksize(words: Words, offset: int) -> int:
    """Return the usable bytes of the live block that begins at ``offset``, EINVAL if none does."""
    lock(words)
    result = ksize_locked(words, offset)
    unlock(words)
    return result


@entry
def vmalloc(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of an area in the vmalloc window, or ENOMEM."""
    if nbytes <= 0 or words[H_CLOSED] != 0:
        return ENOMEM
    lock(words)
    offset = vmalloc_locked(words, nbytes, gfp & GFP_ZERO_BIT)
    if offset < 0 and shrink_all_locked(words) > 0:
        offset = vmalloc_locked(words, nbytes, gfp & GFP_ZERO_BIT)
    unlock(words)
    return offset


@entry
def validate_vmalloc(words: Words) -> int:
    """Check the vmalloc window; OK or the broken invariant."""
    lock(words)
    status = validate_vmalloc_locked(words)
    unlock(words)
    return status
