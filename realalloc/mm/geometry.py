"""The geometry of one arena: how long each table is and where it begins, and the words of an arena that is fresh.

Guarantees: every table is on pages of its own, in the order that layout.py draws; a fresh arena is all zero but for what
:func:`format_words` writes, so tables that are not reached are never touched.
"""

from __future__ import annotations

from typing import NamedTuple

from realalloc.mm.jit import Words
from realalloc.mm.layout import (
    AREA_WORDS,
    CACHE_WORDS,
    D_BASE,
    D_PUT,
    D_PUT_BASE,
    D_PUT_END,
    D_TOP,
    DECAY,
    GRANULE_BYTES,
    GRANULE_PAGES,
    H_CACHES,
    H_END_PFN,
    H_HUGE,
    H_HUGEMAP,
    H_LIMIT_PAGES,
    H_MAGIC,
    H_MAX_CACHES,
    H_MAX_ORDER,
    H_MEMMAP,
    H_META_PAGES,
    H_MOBILITY,
    H_NR_ZONES,
    H_RESMAP,
    H_TOTAL_WORDS,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_START_BYTES,
    H_VMAP,
    H_ZERO,
    HUGE_ALWAYS,
    HUGE_ORDER,
    HUGE_PAGES,
    INFOS,
    M_BLOCKS,
    M_PINNED,
    MAGIC,
    MAX_SLAB_ORDER,
    MIN_PAGE_BLOCKS,
    NULL_RECORD,
    PAGE_BYTES,
    PAGE_SHIFT,
    PAGE_STRUCT_WORDS,
    PAGE_WORDS,
    RECORD_WORDS,
    SHEAF_DESC_WORDS,
    WINDOW_FACTOR,
    WORD_BYTES,
    Y_NS,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)


class Plan(NamedTuple):
    """The geometry of one arena; word indices, page frame numbers and bytes."""

    end_pfn: int
    max_order: int
    max_caches: int
    memmap: int
    caches: int
    resmap: int
    hugemap: int
    mobility: int
    vmap: int
    meta_pages: int
    dma_end_pfn: int
    limit_pages: int
    window_start_bytes: int
    granules: int
    total_bytes: int

    @property
    def align_bytes(self) -> int:
        """Alignment that the range needs, so that every block is aligned to its size."""
        return PAGE_BYTES << max(self.max_order, HUGE_ORDER)


def _bit(index: int) -> int:
    return (1 << index) - (1 << 64 if index == 63 else 0)


def _pages(nbytes: int) -> int:
    return (nbytes + PAGE_BYTES - 1) >> PAGE_SHIFT


def plan(size_bytes: int, max_order: int, dma_bytes: int, limit_bytes: int | None) -> Plan:
    """Lay out an arena of ``size_bytes``; metadata come first, each table on pages of its own, touched when reached."""
    end_pfn = size_bytes >> PAGE_SHIFT
    max_caches = 128 if end_pfn < 1 << 14 else 1024
    block = PAGE_BYTES << max(max_order, HUGE_ORDER)
    window_start = -(-(end_pfn << PAGE_SHIFT) // block) * block
    granules = max(64, WINDOW_FACTOR * end_pfn // GRANULE_PAGES)
    memmap = INFOS + _pages(end_pfn * WORD_BYTES) * PAGE_WORDS
    caches = memmap + _pages(end_pfn * PAGE_STRUCT_WORDS * WORD_BYTES) * PAGE_WORDS
    resmap = caches + _pages(max_caches * CACHE_WORDS * WORD_BYTES) * PAGE_WORDS
    hugemap = resmap + (end_pfn >> 6) + 1  # a five hundredth of the resident map: it ends that one's last page
    mobility = hugemap + (end_pfn >> HUGE_ORDER + 6) + 1
    page_blocks = (end_pfn >> min(HUGE_ORDER, max_order)) + 1 if max_order > MAX_SLAB_ORDER else 0
    vmap = resmap + _pages((mobility - resmap + M_BLOCKS + page_blocks) * WORD_BYTES) * PAGE_WORDS
    meta_pages = vmap // PAGE_WORDS + _pages(granules * AREA_WORDS * WORD_BYTES)
    dma_end = meta_pages + _pages(dma_bytes)
    limit_pages = end_pfn if limit_bytes is None else limit_bytes >> PAGE_SHIFT
    return Plan(
        end_pfn, max_order, max_caches, memmap, caches, resmap, hugemap, mobility, vmap, meta_pages, dma_end,
        limit_pages, window_start, granules, window_start + granules * GRANULE_BYTES,
    )  # fmt: skip


def _format_zone(words: Words, zone: int, start_pfn: int, end_pfn: int) -> None:
    at = ZONES + zone * ZONE_WORDS
    words[at + Z_START_PFN] = start_pfn
    words[at + Z_END_PFN] = end_pfn
    words[at + Z_FRONTIER_PFN] = start_pfn


def _format_groups(words: Words, made: Plan, zone: int, start_pfn: int, end_pfn: int) -> None:
    """Group the pages of a zone that has page blocks enough (kernel: page_group_by_mobility_disabled)."""
    order = min(HUGE_ORDER, made.max_order)
    if order <= MAX_SLAB_ORDER or (end_pfn >> order) - (start_pfn + (1 << order) - 1 >> order) < MIN_PAGE_BLOCKS:
        return
    words[ZONES + zone * ZONE_WORDS + Z_PAGE_BLOCK_ORDER] = order
    for pfn in (start_pfn, end_pfn):
        if pfn & (1 << order) - 1 != 0 and pfn < made.end_pfn:  # the last one merges with nothing, but is of one zone
            words[made.mobility + M_BLOCKS + (pfn >> order)] = M_PINNED


def format_words(words: Words, made: Plan, huge: int) -> None:
    """Write the header of a fresh (all zero) range. Caches are made afterwards, by ``kmalloc.create_classes``."""
    words[H_TOTAL_WORDS] = made.total_bytes // WORD_BYTES
    words[H_END_PFN] = made.end_pfn
    words[H_MAX_ORDER] = made.max_order
    words[H_CACHES] = made.caches
    words[H_RESMAP] = made.resmap
    words[H_HUGEMAP] = made.hugemap
    words[H_MOBILITY] = made.mobility
    words[H_MEMMAP] = made.memmap
    words[H_MAX_CACHES] = made.max_caches
    words[H_VMAP] = made.vmap
    words[H_VM_START_BYTES] = made.window_start_bytes
    words[H_VM_GRANULES] = made.granules
    words[H_VM_FRONTIER] = 1  # granule 0 is never used: NULL of the lists
    words[H_META_PAGES] = made.meta_pages
    words[H_HUGE] = huge
    words[H_NR_ZONES] = 2 if made.dma_end_pfn > made.meta_pages else 1
    words[H_LIMIT_PAGES] = made.dma_end_pfn - made.meta_pages + min(made.limit_pages, made.end_pfn - made.dma_end_pfn)
    words[DECAY + Y_NS] = -1
    _format_zone(words, ZONE_NORMAL, made.dma_end_pfn, made.end_pfn)
    _format_zone(words, ZONE_DMA, made.meta_pages, made.dma_end_pfn)
    _format_groups(words, made, ZONE_NORMAL, made.dma_end_pfn, made.end_pfn)
    _format_groups(words, made, ZONE_DMA, made.meta_pages, made.dma_end_pfn)
    if huge == HUGE_ALWAYS:  # the map says what differs: units that are not whole pages of zone NORMAL
        for unit in range((made.dma_end_pfn + HUGE_PAGES - 1) >> HUGE_ORDER):
            words[made.hugemap + (unit >> 6)] |= _bit(unit & 63)
        for unit in range(made.end_pfn >> HUGE_ORDER, (made.end_pfn + HUGE_PAGES - 1) >> HUGE_ORDER):
            words[made.hugemap + (unit >> 6)] |= _bit(unit & 63)
    for at in range(NULL_RECORD, NULL_RECORD + RECORD_WORDS, SHEAF_DESC_WORDS):
        words[at + D_TOP] = words[at + D_PUT] = words[at + D_PUT_END] = H_ZERO
        words[at + D_BASE] = words[at + D_PUT_BASE] = H_ZERO + 1
    words[H_MAGIC] = MAGIC
