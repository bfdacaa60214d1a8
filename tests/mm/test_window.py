"""The window: freed neighbours merge, holes are used first, it can run full, offsets between areas are refused."""

from __future__ import annotations

from kernels import area_record, assert_pristine, assert_unchanged, free_blocks, metadata, octets
from support import MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, ksize, vmalloc
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_GRANULES_SHIFT,
    AREA_KIND_MASK,
    EINVAL,
    ENOMEM,
    GRANULE_BYTES,
    H_ALLOCATED_PAGES,
    H_VM_FREE,
    H_VM_FRONTIER,
    H_VM_GRANULES,
    H_VM_PAGES,
    H_VM_START_BYTES,
    V_INFO,
)
from realalloc.mm.reclaim import reclaim


def test_offsets_inside_or_between_areas_are_refused(raw: RawArena) -> None:
    offset, other = int(vmalloc(raw.words, 20 * PAGE, 0)), int(vmalloc(raw.words, PAGE, 0))
    start = int(raw.words[H_VM_START_BYTES])
    assert kfree(raw.words, other) == 0  # lazy now
    before = metadata(raw)
    wrong = [start, start + 8, offset + 8, offset + PAGE, offset + GRANULE_BYTES, offset - GRANULE_BYTES, other]
    wrong += [offset + 1, offset + (64 << 20), raw.plan.total_bytes, raw.plan.total_bytes + GRANULE_BYTES, 1 << 50]
    for bad in wrong:
        assert kfree(raw.words, bad) == EINVAL
        assert ksize(raw.words, bad) == EINVAL
    assert_unchanged(raw, before)
    assert kfree(raw.words, offset) == 0


def test_the_window_merges_freed_neighbours_and_retreats(raw: RawArena) -> None:
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [0, 2, 1, 3]):
        areas = [int(vmalloc(raw.words, 3 * PAGE, 0)) for _ in range(4)]
        tail = int(vmalloc(raw.words, 3 * PAGE, 0))
        assert sorted([*areas, tail]) == [raw.words[H_VM_START_BYTES] + (k + 1) * GRANULE_BYTES for k in range(5)]
        by_place = sorted([*areas, tail])
        for k in order:
            assert kfree(raw.words, by_place[k]) == 0
            reclaim(raw.words)
            raw.validate()
        info = int(raw.words[area_record(raw, by_place[0]) + V_INFO])
        assert (info & AREA_KIND_MASK, info >> AREA_GRANULES_SHIFT) == (AREA_FREE, 4)
        assert raw.words[H_VM_FREE] == 1 << 32 | 1
        assert kfree(raw.words, by_place[4]) == 0
        reclaim(raw.words)
        assert raw.words[H_VM_FRONTIER] == 1
        assert raw.words[H_VM_FREE] == 0
    assert_pristine(raw)


def test_a_hole_in_the_window_is_used_before_the_frontier_moves(raw: RawArena) -> None:
    areas = [int(vmalloc(raw.words, 20 * PAGE, 0)) for _ in range(4)]
    assert kfree(raw.words, areas[1]) == 0
    reclaim(raw.words)
    frontier = int(raw.words[H_VM_FRONTIER])
    small = int(vmalloc(raw.words, PAGE, 0))
    assert small == areas[1]
    second = int(vmalloc(raw.words, PAGE, 0))
    assert second == small + GRANULE_BYTES
    assert raw.words[H_VM_FRONTIER] == frontier
    assert vmalloc(raw.words, PAGE, 0) > areas[3]


def test_the_window_can_run_full_and_nothing_is_lost() -> None:
    raw = RawArena(MIB, 4)
    granules = int(raw.words[H_VM_GRANULES])
    areas = []
    while (offset := int(vmalloc(raw.words, PAGE, 0))) > 0:  # one granule each
        areas.append(offset)
        if len(areas) == 20:
            raw.words[H_VM_GRANULES] = 40  # a smaller window: pages would run out first
    assert len(areas) == 39
    before = (free_blocks(raw), int(raw.words[H_ALLOCATED_PAGES]), int(raw.words[H_VM_PAGES]))
    assert vmalloc(raw.words, 3 * PAGE, 0) == ENOMEM
    assert before == (free_blocks(raw), int(raw.words[H_ALLOCATED_PAGES]), int(raw.words[H_VM_PAGES]))
    raw.validate()
    for offset in areas[::2]:
        kfree(raw.words, offset)
    assert vmalloc(raw.words, 3 * PAGE, 0) > 0  # lazy areas are purged for their addresses
    raw.words[H_VM_GRANULES] = granules
    raw.validate()


def test_large_areas_are_aligned_for_huge_pages() -> None:
    raw = RawArena(16 * MIB, 10)
    small = int(vmalloc(raw.words, PAGE, 0))
    offset = int(vmalloc(raw.words, 2 * MIB, 0))
    assert (raw.memory.address + offset) % (2 * MIB) == 0
    octets(raw, offset, 2 * MIB)[:] = 1
    third = int(vmalloc(raw.words, 2 * MIB - PAGE, 0))
    assert (third - offset) % (2 * MIB) != 0 or third < offset
    raw.validate()
    for area in (small, offset, third):
        assert kfree(raw.words, area) == 0
    assert_pristine(raw)
