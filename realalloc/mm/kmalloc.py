"""The kmalloc family: one verb for every size, and the verbs that find out by themselves what a block is.

    size <= KMALLOC_MAX_CACHE_BYTES (8 KiB)   slab cache of the size class
    size <= PAGE_BYTES << max_order           block of that order (KIND_LARGE)
    above                                     vmalloc

Guarantees: a power-of-two size is aligned to itself, 96 to 32, 192 to 64, blocks and areas to pages or more. When pages
run out, sheaves, lazily kept areas and empty slabs are reclaimed once before ENOMEM is said. ENOMEM takes nothing.
"""

from __future__ import annotations

from realalloc.mm.atomic import lock, unlock
from realalloc.mm.bits import order_of_pages
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmem_cache import cache_create, cache_geometry
from realalloc.mm.layout import (
    C_OBJECT_BYTES,
    C_SHEAF,
    CACHE_WORDS,
    CF_LEAN,
    CF_NO_SHEAVES,
    EINVAL,
    ENOMEM,
    EXTERNAL_MAP_BYTES,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    H_END_PFN,
    H_FREEMAP_CACHE,
    H_MAX_ORDER,
    H_NR_CLASSES,
    H_NR_ZONES,
    H_SHEAF_CACHE,
    H_SHEAVES,
    H_VM_START_BYTES,
    KIND_LARGE,
    KIND_NONE,
    KIND_PAGES,
    KIND_RUN,
    KMALLOC_MAX_CACHE_BYTES,
    KMALLOC_SIZES,
    KMALLOC_TABLE,
    MIN_SHEAVES_PAGES,
    OK,
    PAGE_BYTES,
    PAGE_SHIFT,
    SHEAF_BYTES,
    V_BYTES,
    V_PAGES,
    WORD_BYTES,
    ZONE_DMA,
    ZONE_NORMAL,
    slab_min_objects,
)
from realalloc.mm.objects import cache_alloc_locking, cache_free_slow, free_fast, kmem_cache_alloc_bulk, push_many
from realalloc.mm.page_alloc import fetch_retry_locked, free_any_block_locked, zone_for
from realalloc.mm.pages import kind_of, pages_at, zero_range
from realalloc.mm.pcp import pop_block, pop_block_slow, push_block
from realalloc.mm.reclaim import try_again_locked
from realalloc.mm.sheaf import exchange_and_pop, pop
from realalloc.mm.slab import cache_alloc_locked, cache_free_locked, is_live_object
from realalloc.mm.slab_map import cache_of, head_of
from realalloc.mm.threads import barriers_work, my_place
from realalloc.mm.vmalloc import validate_vmalloc_locked, vfree_locked, vmalloc_locked
from realalloc.mm.watermark import get_part_locked
from realalloc.mm.window import area_at, granule_of
from realalloc.mm.zeroing import zero_memory

CLASS_SHEAF_SHIFT = 40  # an entry of the class table: caches lie behind the memmap, in 4 TiB at a word above 2**32
CLASS_CACHE_MASK = (1 << CLASS_SHEAF_SHIFT) - 1


def create_classes(words: Words, sizes: tuple[int, ...] = KMALLOC_SIZES) -> None:
    """Make the internal caches and the kmalloc caches of each zone, one a size, and fill the class table. Runs once."""
    objects = slab_min_objects()
    max_order = int(words[H_MAX_ORDER])
    words[H_SHEAVES] = 1 if words[H_END_PFN] >= MIN_SHEAVES_PAGES and barriers_work() else 0
    inner = CF_NO_SHEAVES  # they serve under the lock, sheaves and slabs themselves among others
    words[H_FREEMAP_CACHE] = cache_create(words, EXTERNAL_MAP_BYTES, 64, EXTERNAL_MAP_BYTES, 0, inner, ZONE_NORMAL)
    words[H_SHEAF_CACHE] = cache_create(words, SHEAF_BYTES, 64, SHEAF_BYTES, 0, inner, ZONE_NORMAL)
    words[H_NR_CLASSES] = len(sizes)
    lean = CF_LEAN if len(sizes) > len(KMALLOC_SIZES) else 0  # what an octave keeps does not depend on its classes
    for zone in range(int(words[H_NR_ZONES])):
        made = []
        for size in sizes:
            align = size & -size
            stride, order = cache_geometry(size, align, max_order, objects)
            order = max(order, (size - 1) // PAGE_BYTES)  # 8 KiB where no block is that large: a cache that stays empty
            flags = lean if zone == ZONE_NORMAL else lean | inner
            made.append(cache_create(words, size, align, stride, order, flags, zone))
        if zone == ZONE_NORMAL:  # the DMA family sits H_NR_CLASSES descriptors behind
            for step in range(KMALLOC_MAX_CACHE_BYTES // 8 + 1):
                c = made[next(k for k, size in enumerate(sizes) if size >= step * 8)]
                words[KMALLOC_TABLE + step] = int(words[c + C_SHEAF]) << CLASS_SHEAF_SHIFT | c


@kernel
def class_of(words: Words, nbytes: int, gfp: int) -> int:
    """Return the word index of the cache that serves ``nbytes`` <= KMALLOC_MAX_CACHE_BYTES."""
    c = words[KMALLOC_TABLE + ((nbytes + 7) >> 3)] & CLASS_CACHE_MASK
    return c + words[H_NR_CLASSES] * CACHE_WORDS if gfp & GFP_DMA_BIT else c


@kernel
def usable_bytes(words: Words, nbytes: int, gfp: int) -> int:
    """Return what a block of ``nbytes``, at most the arena's size, charges: its usable bytes; of an area, its whole pages."""
    largest = PAGE_BYTES << words[H_MAX_ORDER]
    if nbytes <= min(KMALLOC_MAX_CACHE_BYTES, largest):
        return words[class_of(words, nbytes, gfp) + C_OBJECT_BYTES]
    pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
    return PAGE_BYTES << order_of_pages(pages) if nbytes <= largest else pages << PAGE_SHIFT


@kernel
def kmalloc_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate without reclaim; small blocks are not zeroed here."""
    zone = ZONE_DMA if gfp & GFP_DMA_BIT else ZONE_NORMAL
    largest = PAGE_BYTES << words[H_MAX_ORDER]
    if nbytes <= min(KMALLOC_MAX_CACHE_BYTES, largest):
        return cache_alloc_locked(words, class_of(words, nbytes, gfp), gfp)
    if nbytes <= largest:
        pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
        pfn = get_part_locked(words, zone, order_of_pages(pages), KIND_LARGE, gfp, pages)
        if pfn < 0:
            return pfn
        words[H_BLOCKS] += 1
        return pfn << PAGE_SHIFT
    return vmalloc_locked(words, nbytes, gfp) if zone == ZONE_NORMAL else ENOMEM


@entry
def kmalloc_retry_locked(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate, reclaiming if pages have run out."""
    offset = kmalloc_locked(words, nbytes, gfp)
    best = 0
    while offset == ENOMEM:
        best = try_again_locked(words, ZONE_DMA if gfp & GFP_DMA_BIT else ZONE_NORMAL, gfp, best)
        if best == 0:
            break
        offset = kmalloc_locked(words, nbytes, gfp)
    return offset


@kernel
def zero_words(words: Words, offset: int, nbytes: int) -> None:
    """Zero a block, up to the next word."""
    zero_range(words, offset // WORD_BYTES, (nbytes + WORD_BYTES - 1) // WORD_BYTES)


@entry
def _kmalloc_locking(words: Words, nbytes: int, gfp: int) -> int:
    if nbytes <= 0 or zone_for(words, gfp) < 0 or words[H_CLOSED] != 0:
        return ENOMEM
    largest = PAGE_BYTES << words[H_MAX_ORDER]
    small = nbytes <= min(KMALLOC_MAX_CACHE_BYTES, largest)
    offset = cache_alloc_locking(words, class_of(words, nbytes, gfp), gfp) if small else ENOMEM
    if offset < 0:
        lock(words)
        if KMALLOC_MAX_CACHE_BYTES < nbytes <= largest:
            pages = (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT
            pfn = fetch_retry_locked(words, zone_for(words, gfp), order_of_pages(pages), KIND_LARGE, gfp, pages)
            offset = pfn << PAGE_SHIFT if pfn > 0 else pfn
        else:
            offset = kmalloc_retry_locked(words, nbytes, gfp)
        unlock(words)
    if offset > 0 and gfp & GFP_ZERO_BIT and small:
        zero_words(words, offset, nbytes)
    return offset


@entry
def kmalloc_slow(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate what the main sheaf does not have: what the thread has put, blocks that it keeps, else with the lock."""
    if 0 < nbytes <= KMALLOC_MAX_CACHE_BYTES and gfp & GFP_DMA_BIT == 0:
        offset = exchange_and_pop(words, words[KMALLOC_TABLE + ((nbytes + 7) >> 3)] >> CLASS_SHEAF_SHIFT)
        if offset != 0:
            if gfp & GFP_ZERO_BIT:
                zero_words(words, offset, nbytes)
            return offset
    if KMALLOC_MAX_CACHE_BYTES < nbytes <= PAGE_BYTES << words[H_MAX_ORDER] and gfp & GFP_DMA_BIT == 0:
        order = order_of_pages((nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT)
        pfn = pop_block_slow(words, order, KIND_LARGE)
        if pfn != 0:
            if gfp & GFP_ZERO_BIT:
                zero_memory(words, pfn << PAGE_SHIFT, pfn, 1 << order)
            return pfn << PAGE_SHIFT
    return _kmalloc_locking(words, nbytes, gfp)


@kernel
def kmalloc_sheaf(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate from the calling thread's sheaf, without a lock or a call; 0 if that cannot be. For inlining."""
    near = my_place()
    if gfp & GFP_DMA_BIT:
        return 0
    if 0 < nbytes <= KMALLOC_MAX_CACHE_BYTES:
        offset = pop(words, near, words[KMALLOC_TABLE + ((nbytes + 7) >> 3)] >> CLASS_SHEAF_SHIFT)
        if gfp & GFP_ZERO_BIT and offset != 0:
            zero_words(words, offset, nbytes)
        return offset
    if nbytes <= 0 or gfp & GFP_ZERO_BIT:
        return 0
    order = order_of_pages((nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT)
    return pop_block(words, near, order, KIND_LARGE) << PAGE_SHIFT


@kernel
def kmalloc_fast(words: Words, nbytes: int, gfp: int) -> int:
    """Allocate: from the calling thread's sheaf where that can be. For inlining."""
    offset = kmalloc_sheaf(words, nbytes, gfp)
    return offset if offset != 0 else kmalloc_slow(words, nbytes, gfp)


@entry
def kmalloc(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of a block of at least ``nbytes`` (> 0) bytes, or ENOMEM."""
    return kmalloc_fast(words, nbytes, gfp)


@kernel
def _is_metadata(words: Words, head: int) -> int:
    """Tell whether the objects of a slab are free maps or sheaves: nobody's to free."""
    c = cache_of(words, head)
    return 1 if c == words[H_FREEMAP_CACHE] or c == words[H_SHEAF_CACHE] else 0


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
    if head_of(words, pfn) != 0 and _is_metadata(words, head_of(words, pfn)) == 1:
        return EINVAL
    return cache_free_locked(words, 0, offset)


@entry
def kfree_slow(words: Words, offset: int) -> int:
    """Free what does not go into a sheaf of objects: blocks that the thread keeps, else with the lock."""
    pfn = offset >> PAGE_SHIFT
    whole = offset & (PAGE_BYTES - 1) == 0 and offset < words[H_VM_START_BYTES]
    kind = kind_of(words, pfn) if whole else KIND_NONE
    if (kind == KIND_LARGE or kind == KIND_PAGES) and push_block(words, pfn) == 1:
        return OK
    if offset < words[H_VM_START_BYTES] and head_of(words, pfn) != 0:
        return EINVAL if _is_metadata(words, head_of(words, pfn)) == 1 else cache_free_slow(words, 0, offset)
    lock(words)
    status = kfree_locked(words, offset)
    unlock(words)
    return status


@kernel
def kfree_fast(words: Words, offset: int) -> int:
    """Free: into the calling thread's sheaf where that can be, without a lock or a call. For inlining."""
    return OK if free_fast(words, 0, offset) == 1 else kfree_slow(words, offset)


@entry
def kfree_bulk(words: Words, count: int, out: Words) -> int:
    """Free the blocks in ``out[:count]``; return how many were refused."""
    done = 0
    refused = 0
    while done < count:
        done = push_many(words, 0, done, count, out)
        if done < count:
            refused += 1 if kfree_slow(words, out[done]) != OK else 0
            done += 1
    return refused


@entry
def kfree(words: Words, offset: int) -> int:
    """Free a block by its offset; EINVAL, with nothing changed, if no live block begins there."""
    return kfree_fast(words, offset)


@entry
def kmalloc_bulk(words: Words, nbytes: int, count: int, gfp: int, out: Words) -> int:
    """Fill ``out[:count]`` with blocks of ``nbytes`` and return OK, or allocate none and return ENOMEM."""
    small = 0 < nbytes <= KMALLOC_MAX_CACHE_BYTES and gfp & GFP_DMA_BIT == 0
    if small and kmem_cache_alloc_bulk(words, class_of(words, nbytes, gfp), count, gfp, out) == OK:
        if gfp & GFP_ZERO_BIT:
            for k in range(count):
                zero_words(words, out[k], nbytes)
        return OK
    for done in range(count):
        out[done] = kmalloc_slow(words, nbytes, gfp)
        if out[done] < 0:
            kfree_bulk(words, done, out)
            return ENOMEM
    return OK


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
    if is_live_object(words, 0, offset) == 0 or _is_metadata(words, head_of(words, pfn)) == 1:
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
def charged_bytes(words: Words, offset: int) -> int:
    """Return what :func:`usable_bytes` said of a live block, also where a kept area that is larger serves it; or EINVAL."""
    lock(words)
    result = ksize_locked(words, offset)
    if result > 0 and offset >= words[H_VM_START_BYTES]:
        result = (words[area_at(words, granule_of(words, offset)) + V_BYTES] + PAGE_BYTES - 1) & -PAGE_BYTES
    unlock(words)
    return result


@entry
def vmalloc(words: Words, nbytes: int, gfp: int) -> int:
    """Return the offset of an area in the vmalloc window, or ENOMEM: no area is in the locked zone."""
    if nbytes <= 0 or words[H_CLOSED] != 0 or gfp & GFP_DMA_BIT:
        return ENOMEM
    lock(words)
    offset = vmalloc_locked(words, nbytes, gfp)
    best = 0
    while offset < 0:
        best = try_again_locked(words, ZONE_NORMAL, gfp, best)
        if best == 0:
            break
        offset = vmalloc_locked(words, nbytes, gfp)
    unlock(words)
    return offset


@entry
def validate_vmalloc(words: Words) -> int:
    """Check the vmalloc window; OK or the broken invariant."""
    lock(words)
    status = validate_vmalloc_locked(words)
    unlock(words)
    return status
