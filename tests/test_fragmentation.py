"""The report on fragmentation: what it says of arenas whose state is known, and where else its numbers appear."""

from __future__ import annotations

import pytest
from checks import exhaust, refuses
from support import MIB, PAGE

import realalloc as ra
from realalloc.fragmentation import indices, thousandths, why


def checkerboard(arena: ra.Arena) -> list[ra.Pages]:
    """Take all pages singly and free every second one."""
    held = exhaust(lambda: arena.alloc_pages(0))
    held.sort(key=lambda pages: pages.pfn)
    return held[::2]


def test_an_empty_arena_is_not_fragmented(arena: ra.Arena) -> None:
    report = arena.fragmentation()
    (zone,) = report.zones
    assert (zone.name, zone.free_bytes) == ("Normal", arena.stats().free)
    assert zone.extfrag_index == (-1000,) * 11 and zone.unusable_index[0] == 0
    assert zone.largest_block == arena.stats().largest_free == 4 * MIB
    whole = arena.alloc_pages_exact(zone.largest_run)
    assert zone.largest_run > 8 * MIB
    del whole
    assert report.largest_vmalloc == zone.free_bytes
    assert (report.caches, report.slab_bytes, report.slab_wasted) == ((), 0, 0)


def test_a_checkerboard_is_all_fragmentation() -> None:
    with ra.Arena(MIB, max_order=4) as arena:
        held = checkerboard(arena)
        (zone,) = arena.fragmentation().zones
        assert zone.largest_block == zone.largest_run == PAGE
        assert zone.extfrag_index[0] == -1000 and zone.unusable_index[0] == 0
        free = zone.free_bytes // PAGE
        for order in range(1, 5):
            assert zone.extfrag_index[order] == 1000 - (1000 + free * 1000 // (1 << order)) // free
            assert zone.unusable_index[order] == 1000
        assert arena.stats().unusable_index == 1000
        text = refuses(arena, ra.OutOfMemory, "fragmented", arena.kmalloc, 16 * PAGE)
        index = zone.extfrag_index[4] / 1000
        assert f"free in zone Normal but fragmented (extfrag index {index:.2f} at order 4), largest block 4 KiB" in text
        text = refuses(arena, ra.OutOfMemory, "adjacent", arena.alloc_pages_exact, 17 * PAGE)
        assert "free in zone Normal but no 17 pages adjacent, largest block" in text
        assert arena.fragmentation().largest_vmalloc >= zone.free_bytes
        for call in (lambda: arena.vmalloc(2 * MIB), lambda: arena.alloc_pages_exact(MIB)):
            text = refuses(arena, ra.OutOfMemory, "free in zone Normal, largest block", call)
            assert "fragmented" not in text and "adjacent" not in text
        del held


def test_text_has_the_kernels_columns() -> None:
    with ra.Arena(MIB, max_order=3, lock=8 * PAGE) as arena:
        held = checkerboard(arena)
        lines = arena.extfrag_index().splitlines()
        assert [line[:21] for line in lines] == ["Node 0, zone      DMA", "Node 0, zone   Normal"]
        assert all(len(line.split()) == 4 + 4 and line.endswith(" ") for line in lines)
        normal = arena.fragmentation().zones[0]
        for text, numbers in (
            (arena.extfrag_index(), normal.extfrag_index),
            (arena.unusable_index(), normal.unusable_index),
        ):
            row = text.splitlines()[1].split()[4:]
            assert [round(1000 * float(cell)) for cell in row] == list(numbers)
        del held


@pytest.mark.parametrize(
    ("index", "text"),
    [(-1000, "-1.000"), (0, " 0.000"), (7, " 0.007"), (870, " 0.870"), (1000, " 1.000"), (-500, "-0.500")],
)
def test_indices_are_spelt_as_in_debugfs(index: int, text: str) -> None:
    assert thousandths(index) == text


def test_the_index_tells_shortage_from_fragmentation() -> None:
    assert indices([0, 0, 0])[0] == (0, 0, 0)  # nothing is free
    few, many = indices([2, 0, 0, 0, 0, 0])[0][5], indices([900, 0, 0, 0, 0, 0])[0][5]
    assert few < 500 < 960 < many
    assert why([900, 0, 0, 0], 4 * PAGE).startswith(" but fragmented") and why([900, 0, 0, 0], 9000 * PAGE) == ""
    assert why([0, 0, 1], 4 * PAGE) == why([1], 0) == ""


def test_a_limit_bounds_what_can_be_had_and_fragments_nothing(arena: ra.Arena) -> None:
    pages = arena.stats().free // PAGE
    arena.set_limit(40 * PAGE)
    (zone,) = arena.fragmentation().zones
    assert zone.free_bytes == zone.largest_run == arena.fragmentation().largest_vmalloc == 40 * PAGE
    assert zone.largest_block == 32 * PAGE
    assert zone.extfrag_index[10] == -1000
    with pytest.raises(ra.OutOfMemory, match="raise limit= or set_limit") as info:
        arena.alloc_pages_exact(41 * PAGE)
    assert "fragmented" not in str(info.value) and "adjacent" not in str(info.value)
    assert len(arena.alloc_pages_exact(40 * PAGE).view) == 40 * PAGE
    arena.set_limit(None)
    assert arena.fragmentation().zones[0].free_bytes == pages * PAGE


def test_every_byte_of_a_slab_is_accounted_for(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("odd", 1000, align=64)  # a stride of 1024
    held = cache.alloc_bulk(37)
    del held[5:20]
    small = arena.kmalloc(3)
    report = arena.fragmentation()
    every = {waste.name: waste for waste in report.caches}
    odd = every["odd"]
    stats = cache.stats()
    assert odd.slab_bytes == stats.slabs * (PAGE << stats.order)
    assert (odd.used_bytes, odd.padding_bytes) == (22 * 1000, 22 * 24)
    assert odd.free_bytes == (stats.total_objects - 22) * 1024
    assert odd.tail_bytes == odd.slab_bytes - stats.total_objects * 1024
    assert every["kmalloc-8"].used_bytes == 8
    for waste in report.caches:
        assert waste.slab_bytes == waste.used_bytes + waste.padding_bytes + waste.free_bytes + waste.tail_bytes
        assert waste.wasted_bytes == waste.slab_bytes - waste.used_bytes
    assert report.slab_bytes == arena.stats().slab == sum(waste.slab_bytes for waste in report.caches)
    assert report.slab_wasted == sum(waste.wasted_bytes for waste in report.caches)
    del held, small
    cache.destroy()


def test_tails_of_slabs_are_waste(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("tail", 1400)
    held = cache.alloc()
    (waste,) = [waste for waste in arena.fragmentation().caches if waste.name == "tail"]
    stats = cache.stats()
    assert waste.tail_bytes == stats.slabs * ((PAGE << stats.order) - stats.objects_per_slab * 1400) > 0
    del held
    cache.destroy()


def test_the_report_is_a_record(arena: ra.Arena) -> None:
    report = arena.fragmentation()
    assert isinstance(report, ra.Fragmentation) and isinstance(report.zones[0], ra.ZoneFragmentation)
    plain = report.as_dict()
    assert plain["zones"][0]["free_blocks"] == report.zones[0].free_blocks and plain["caches"] == ()
    with pytest.raises(AttributeError):
        report.slab_bytes = 1  # type: ignore[misc]


def test_a_closed_arena_has_no_report() -> None:
    arena = ra.Arena(MIB)
    arena.close()
    for call in (arena.fragmentation, arena.extfrag_index, arena.unusable_index):
        with pytest.raises(ra.ArenaClosed):
            call()
