"""What the words of a slab say: whose it is, which of its objects are free, and which one begins at an offset.

Which objects are free is a bitmap outside the objects, 1 for a free one: in the struct page (up to 128 objects), else in an
object of the internal ``freemap`` cache. May not: move a slab anywhere; that is :mod:`realalloc.mm.slab_page`.
"""

from __future__ import annotations

from realalloc.mm.bits import low_mask, popcount
from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import (
    C_FLAGS,
    C_RECIPROCAL,
    C_STRIDE_BYTES,
    CACHE_MASK,
    CACHE_SHIFT,
    CACHE_WORDS,
    CF_EXTERNAL_MAP,
    EINVAL,
    EXTERNAL_MAP_BYTES,
    H_CACHES,
    H_END_PFN,
    H_FREEMAP_CACHE,
    H_NR_CACHES,
    KIND_MASK,
    KIND_SLAB,
    KIND_TAIL,
    OBJECTS_MASK,
    OBJECTS_SHIFT,
    PAGE_MAP_BITS,
    PAGE_SHIFT,
    PAGE_WORDS,
    PENDING_MASK,
    PENDING_SHIFT,
    PG_LINK,
    PG_MAP0,
    RECIPROCAL_SHIFT,
    WORD_BYTES,
)
from realalloc.mm.pages import info_at, kind_of, page_at


@kernel
def objects_of(info: int) -> int:
    """Return how many objects a slab has."""
    return info >> OBJECTS_SHIFT & OBJECTS_MASK


@kernel
def pending_of(info: int) -> int:
    """Return how many objects of a slab its constructor still has."""
    return info >> PENDING_SHIFT & PENDING_MASK


@kernel
def map_at(words: Words, c: int, page: int) -> int:
    """Return the word index of a slab's free map."""
    return words[page + PG_MAP0] if words[c + C_FLAGS] & CF_EXTERNAL_MAP else page + PG_MAP0


@kernel
def map_words_of(words: Words, c: int) -> int:
    """Return how many words a slab's free map has."""
    return EXTERNAL_MAP_BYTES // WORD_BYTES if words[c + C_FLAGS] & CF_EXTERNAL_MAP else PAGE_MAP_BITS // 64


@kernel
def fill_map(words: Words, c: int, pfn: int, value: int) -> None:
    """Mark all objects of a slab free (value 1) or in use (0); bits behind the last object are 0."""
    at = map_at(words, c, page_at(words, pfn))
    objects = objects_of(words[info_at(pfn)])
    for k in range(map_words_of(words, c)):
        left = min(max(objects - 64 * k, 0), 64)
        words[at + k] = low_mask(left) if value == 1 else 0


@kernel
def free_objects(words: Words, c: int, page: int) -> int:
    """Count the free objects of a slab."""
    at = map_at(words, c, page)
    count = 0
    for k in range(map_words_of(words, c)):
        count += popcount(words[at + k])
    return count


@kernel
def head_of(words: Words, pfn: int) -> int:
    """Return the first page of the slab that ``pfn`` is in, 0 if it is in none."""
    if pfn <= 0 or pfn >= words[H_END_PFN]:
        return 0
    page = page_at(words, pfn)
    kind = words[info_at(pfn)] & KIND_MASK
    if kind == KIND_TAIL:
        return words[page + PG_LINK]
    return pfn if kind == KIND_SLAB else 0


@kernel
def cache_of(words: Words, pfn: int) -> int:
    """Return the word index of the cache that owns a slab."""
    return words[H_CACHES] + (words[info_at(pfn)] >> CACHE_SHIFT & CACHE_MASK) * CACHE_WORDS


@kernel
def is_cache(words: Words, c: int) -> int:
    """Tell whether a slab's cache, as :func:`cache_of` names it, is one of the table's."""
    return 1 if c < words[H_CACHES] + words[H_NR_CACHES] * CACHE_WORDS else 0


@kernel
def has_map(words: Words, c: int, page: int) -> int:
    """Tell whether a slab's free map can be looked at: its own, or an object's place in a slab of free maps."""
    if words[c + C_FLAGS] & CF_EXTERNAL_MAP == 0:
        return 1
    pfn = words[page + PG_MAP0] // PAGE_WORDS  # slabs of free maps are single pages
    if words[page + PG_MAP0] % (EXTERNAL_MAP_BYTES // WORD_BYTES) != 0 or kind_of(words, pfn) != KIND_SLAB:
        return 0
    return 1 if cache_of(words, pfn) == words[H_FREEMAP_CACHE] else 0


@kernel
def index_of(words: Words, c: int, pfn: int, offset: int) -> int:
    """Return which object of a slab begins at ``offset``, EINVAL if none does."""
    nbytes = offset - (pfn << PAGE_SHIFT)
    index = nbytes * words[c + C_RECIPROCAL] >> RECIPROCAL_SHIFT
    if index * words[c + C_STRIDE_BYTES] != nbytes or index >= objects_of(words[info_at(pfn)]):
        return EINVAL
    return index
