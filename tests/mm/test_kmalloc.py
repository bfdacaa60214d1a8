"""kmalloc: every size and its class, alignment, contents, the way to blocks and areas, and frees that must be refused."""

from __future__ import annotations

import itertools
import random

import pytest
from kernels import (
    NR_INTERNAL,
    ORDERINGS,
    assert_pristine,
    assert_unchanged,
    class_cache,
    class_size,
    holds,
    is_zero,
    main_sheaf,
    make_cache,
    metadata,
    own,
    page_info,
    page_kind,
    pattern,
    spare_sheaf,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.arena import MAX_BYTES
from realalloc.mm.kmalloc import CLASS_SHEAF_SHIFT, kfree, kmalloc, ksize, validate_vmalloc, vmalloc
from realalloc.mm.kmem_cache import calculate_order
from realalloc.mm.layout import (
    BAD_AREA,
    C_ALLOCS,
    C_FREES,
    C_MIN_PARTIAL,
    C_NR_SLABS,
    C_OBJECT_BYTES,
    C_OBJECTS,
    C_ORDER,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CACHE_MASK,
    CACHE_SHIFT,
    CACHE_WORDS,
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_BAD_FREES,
    H_BLOCKS,
    H_CACHES,
    H_CLOSED,
    H_FREEMAP_CACHE,
    H_NR_CLASSES,
    H_SHEAF_CACHE,
    H_TOTAL_WORDS,
    H_VM_AREAS,
    H_VM_PAGES,
    H_VM_START_BYTES,
    KIND_LARGE,
    KIND_SLAB,
    KIND_TAIL,
    KMALLOC_FINE_SIZES,
    KMALLOC_SIZES,
    KMALLOC_TABLE,
    MAX_SHEAF_BYTES,
    SHEAF_BLOCKS,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    slab_min_objects,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages

LAST_SMALL = KMALLOC_SIZES[-1]
CLASS_SETS = pytest.mark.parametrize("sizes", [KMALLOC_SIZES, KMALLOC_FINE_SIZES], ids=["kernel", "fine"])
KERNEL_TABLE = {
    8: (512, 0), 16: (256, 0), 32: (128, 0), 64: (64, 0), 96: (42, 0), 128: (32, 0), 192: (21, 0), 256: (16, 0),
    512: (16, 1), 1024: (16, 2), 2048: (16, 3), 4096: (8, 3), 8192: (4, 3),
}  # fmt: skip


@CLASS_SETS
def test_every_size_has_its_class_alignment_and_bytes_of_its_own(sizes: tuple[int, ...]) -> None:
    raw = RawArena(64 * MIB, 10, sizes=sizes)
    live = {}
    for nbytes in range(1, LAST_SMALL + 2):
        offset = int(kmalloc(raw.words, nbytes, 0))
        usable = class_size(nbytes, sizes) if nbytes <= LAST_SMALL else 3 * PAGE + PAGE
        assert ksize(raw.words, offset) == usable
        if nbytes <= LAST_SMALL:
            assert offset % (usable & -usable) == offset % (nbytes & -nbytes) == 0
        else:
            assert offset % (4 * PAGE) == 0
            assert page_kind(raw, offset // PAGE) == KIND_LARGE
        live[offset] = (nbytes, usable)
        write(raw, offset, nbytes, nbytes)
    places = sorted((offset, usable) for offset, (_, usable) in live.items())
    assert all(a + size <= b for (a, size), (b, _) in zip(places, places[1:], strict=False))
    raw.validate()
    assert all(holds(raw, offset, nbytes, nbytes) for offset, (nbytes, _) in live.items())
    for offset in random.Random(1).sample(sorted(live), len(live)):
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


@pytest.mark.parametrize(
    ("sizes", "size"), [(sizes, size) for sizes in (KMALLOC_SIZES, KMALLOC_FINE_SIZES) for size in sizes]
)
def test_boundaries_of_a_class(sizes: tuple[int, ...], size: int) -> None:
    raw = RawArena(sizes=sizes)
    below = max((other for other in sizes if other < size), default=0)
    for nbytes in {below + 1, below + 2, (below + size) // 2, size - 1, size} - {0}:
        offset = int(kmalloc(raw.words, nbytes, 0))
        assert ksize(raw.words, offset) == size
        assert offset % (size & -size) == 0
        c = class_cache(raw, size)
        assert raw.words[c + C_OBJECT_BYTES] == size
        assert raw.words[c + C_ALLOCS] - raw.words[c + C_FREES] == 1
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


@CLASS_SETS
def test_the_class_table_names_a_cache_for_every_word_of_size(sizes: tuple[int, ...]) -> None:
    raw = RawArena(sizes=sizes)
    assert raw.words[H_NR_CLASSES] == len(sizes)
    for step in range(LAST_SMALL // 8 + 1):
        c = class_cache(raw, class_size(max(step * 8, 1), sizes))
        assert raw.words[KMALLOC_TABLE + step] == int(raw.words[c + C_SHEAF]) << CLASS_SHEAF_SHIFT | c


def test_the_class_table_of_the_largest_arena() -> None:
    """Its caches lie at words above 2**32: an entry of the table has more bits for that."""
    raw = RawArena(MAX_BYTES, 10)
    c = class_cache(raw, 64)
    assert c > 1 << 32
    assert raw.words[KMALLOC_TABLE + 8] == int(raw.words[c + C_SHEAF]) << CLASS_SHEAF_SHIFT | c
    blocks = [int(kmalloc(raw.words, 64, 0)) for _ in range(100)]
    assert len(set(blocks)) == 100
    assert {int(ksize(raw.words, offset)) for offset in blocks} == {64}
    for offset in blocks:
        assert kfree(raw.words, offset) == 0
    assert raw.words[H_BAD_FREES] == 0


@pytest.mark.parametrize(("size", "expected"), KERNEL_TABLE.items())
def test_objects_and_pages_of_a_slab_are_the_kernels(size: int, expected: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert slab_min_objects() == 12
    assert calculate_order(size, 10, 12) == expected[1]
    raw = RawArena(MIB, 4)
    c = class_cache(raw, size)
    assert (raw.words[c + C_OBJECTS], raw.words[c + C_ORDER]) == expected
    assert raw.words[c + C_STRIDE_BYTES] == size


def test_fine_classes_waste_little_of_a_block_and_of_a_slab(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    raw = RawArena(64 * MIB, 10, dma=16 * PAGE, sizes=KMALLOC_FINE_SIZES)
    for below, size in itertools.pairwise(KMALLOC_FINE_SIZES[3:]):
        assert size <= below * 4 // 3 if size <= 64 or size == LAST_SMALL else size <= below * 5 // 4
    for size in KMALLOC_FINE_SIZES:
        c = class_cache(raw, size)
        slab = PAGE << int(raw.words[c + C_ORDER])
        assert slab - int(raw.words[c + C_OBJECTS]) * size <= slab // 16
        assert raw.words[c + C_SHEAF] != 0
        assert raw.words[class_cache(raw, size, ZONE_DMA) + C_SHEAF] == 0
    caches = [make_cache(raw, 100) for _ in range(40)]  # the sheaf indices that are left are the users'
    left = SHEAF_BLOCKS - 1 - len(KMALLOC_FINE_SIZES)
    assert [bool(raw.words[c + C_SHEAF]) for c in caches] == [True] * left + [False] * (40 - left)
    for c in caches:  # without sheaves, they serve as well
        offset = int(kmem_cache_alloc(raw.words, c))
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert_pristine(raw)


def test_several_classes_an_octave_keep_no_more_than_one_may(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    kernel, fine = (RawArena(256 * MIB, 10, sizes=sizes) for sizes in (KMALLOC_SIZES, KMALLOC_FINE_SIZES))
    for low in (512, 1024, 2048, 4096):
        octave = [class_cache(fine, size) for size in KMALLOC_FINE_SIZES if low < size <= 2 * low]
        c = class_cache(kernel, 2 * low)
        slabs = sum(fine.words[f + C_MIN_PARTIAL] << fine.words[f + C_ORDER] for f in octave)
        assert 0 < slabs <= kernel.words[c + C_MIN_PARTIAL] << kernel.words[c + C_ORDER]
        sheaves = sum(fine.words[f + C_SHEAF_CAPACITY] * fine.words[f + C_STRIDE_BYTES] for f in octave)
        assert 0 < sheaves <= MAX_SHEAF_BYTES
    for raw in (kernel, fine):
        small = RawArena(4 * MIB, 6, sizes=raw.sizes)  # no class loses its sheaves for keeping less
        for size in KMALLOC_SIZES:
            assert (small.words[class_cache(small, size) + C_SHEAF] != 0) == (size <= 1024)


@pytest.mark.parametrize(
    ("cpus", "objects"), [(1, 8), (2, 12), (3, 12), (4, 16), (7, 16), (8, 20), (64, 32), (None, 8)]
)
def test_slabs_grow_with_the_processors_as_in_the_kernel(cpus: int | None, objects: int, monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    assert slab_min_objects() == objects


@pytest.mark.parametrize(
    ("sizes", "size", "ordering"),
    [(KMALLOC_SIZES, size, "shuffled") for size in KMALLOC_SIZES]
    + [(KMALLOC_SIZES, size, name) for size in (8, 96, 512, 8192) for name in ORDERINGS if name != "shuffled"]
    + [(KMALLOC_FINE_SIZES, size, "shuffled") for size in sorted({*KMALLOC_FINE_SIZES} - {*KMALLOC_SIZES})],
)
def test_a_class_fills_the_arena_and_comes_back_in_any_order(sizes: tuple[int, ...], size: int, ordering: str) -> None:
    raw = RawArena((512 if JIT and size > 64 else 224) << 10, 4, sizes=sizes)
    live = []
    while (offset := int(kmalloc(raw.words, size, 0))) > 0:
        live.append(offset)
    assert offset == ENOMEM
    assert len(live) == len(set(live))
    assert len(live) * size > 0.7 * zone_pages(raw) * PAGE
    for k, offset in enumerate(live):
        write(raw, offset, size, k)
    raw.validate()
    order = ORDERINGS[ordering](list(enumerate(live)))
    for step, (k, offset) in enumerate(order):
        assert holds(raw, offset, size, k)
        assert kfree(raw.words, offset) == 0
        if step % 2500 == 0:
            raw.validate()
    assert_pristine(raw)


def test_large_sizes_take_the_smallest_sufficient_block(raw: RawArena) -> None:
    for nbytes in (LAST_SMALL + 1, 3 * PAGE, 4 * PAGE - 1, 4 * PAGE, 4 * PAGE + 1, 8 * PAGE, 8 * PAGE + 1, 16 * PAGE):
        order = (-(-nbytes // PAGE) - 1).bit_length()
        offset = int(kmalloc(raw.words, nbytes, 0))
        assert offset % (PAGE << order) == 0
        assert ksize(raw.words, offset) == PAGE << order
        assert raw.words[H_ALLOCATED_PAGES] == 1 << order
        assert raw.words[H_BLOCKS] == 1
        write(raw, offset, nbytes, 9)
        assert holds(raw, offset, nbytes, 9)
        assert kfree(raw.words, offset) == 0
        assert raw.words[H_ALLOCATED_PAGES] == raw.words[H_BLOCKS] == 0


def test_sizes_above_the_largest_block_become_areas(raw: RawArena) -> None:
    for nbytes in (16 * PAGE + 1, 17 * PAGE, 40 * PAGE - 3):
        offset = int(kmalloc(raw.words, nbytes, 0))
        assert offset >= raw.words[H_VM_START_BYTES]
        assert ksize(raw.words, offset) == -(-nbytes // PAGE) * PAGE
        write(raw, offset, nbytes, 4)
        assert holds(raw, offset, nbytes, 4)
        assert raw.words[H_VM_AREAS] == 1
        assert kfree(raw.words, offset) == 0
        assert raw.words[H_VM_AREAS] == raw.words[H_VM_PAGES] == 0


@pytest.mark.parametrize("max_order", [0, 1, 2, 3])
def test_every_size_is_served_where_the_largest_block_is_small(max_order: int) -> None:
    raw = RawArena(2 * MIB, max_order)
    live = {}
    for nbytes in (1, 8, 96, 512, 4095, 4096, 4097, 6000, 8191, 8192, 8193, 3 * PAGE, 4 * PAGE + 1, 9 * PAGE):
        offset = int(kmalloc(raw.words, nbytes, GFP_ZERO_BIT))
        assert offset > 0
        assert ksize(raw.words, offset) >= nbytes
        assert is_zero(raw, offset, nbytes)
        write(raw, offset, nbytes, nbytes)
        live[offset] = nbytes
        raw.validate()
    assert all(holds(raw, offset, nbytes, nbytes) for offset, nbytes in live.items())
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("nbytes", [0, -1, -8, -(1 << 62), 1 << 30, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 63) - 4096])
def test_impossible_sizes_take_nothing(raw: RawArena, nbytes: int) -> None:
    before = metadata(raw)
    assert kmalloc(raw.words, nbytes, 0) == ENOMEM
    assert vmalloc(raw.words, nbytes, 0) == ENOMEM
    assert_unchanged(raw, before)


@pytest.mark.parametrize("nbytes", [1, 7, 8, 100, 192, 4096, 8192, 8193, 5 * PAGE, 16 * PAGE, 20 * PAGE + 5])
def test_zeroed_memory_reads_as_zero_after_dirty_use(raw: RawArena, nbytes: int) -> None:
    offset = int(kmalloc(raw.words, nbytes, 0))
    usable = int(ksize(raw.words, offset))
    for seed in range(3):
        write(raw, offset, usable, seed)
        assert kfree(raw.words, offset) == 0
        again = int(kmalloc(raw.words, nbytes, GFP_ZERO_BIT))
        assert again == offset
        assert is_zero(raw, again, nbytes)
    assert kfree(raw.words, offset) == 0


@pytest.mark.parametrize("nbytes", [1, 8, 100, 4096])
def test_what_an_exchange_of_the_sheaves_brings_is_zeroed_too(nbytes: int) -> None:
    raw = RawArena(64 * MIB, 10)
    c = class_cache(raw, class_size(nbytes))
    offsets = [int(kmalloc(raw.words, nbytes, 0)) for _ in range(2 * int(raw.words[c + C_SHEAF_CAPACITY]))]
    while main_sheaf(raw, own(raw, c)):
        offsets.append(int(kmalloc(raw.words, nbytes, 0)))
    for offset in offsets[: int(raw.words[c + C_SHEAF_CAPACITY]) - 1]:
        write(raw, offset, int(ksize(raw.words, offset)), offset)
        assert kfree(raw.words, offset) == 0
    spare = spare_sheaf(raw, own(raw, c))
    again = int(kmalloc(raw.words, nbytes, GFP_ZERO_BIT))
    assert (spare, main_sheaf(raw, own(raw, c))) == ([*spare[:-1], again], spare[:-1])
    assert is_zero(raw, again, nbytes)


@CLASS_SETS
def test_a_zeroed_neighbour_keeps_its_bytes(sizes: tuple[int, ...]) -> None:
    raw = RawArena(sizes=sizes)
    for size in sizes:
        offsets = sorted(int(kmalloc(raw.words, size, 0)) for _ in range(3))
        for offset in offsets:
            write(raw, offset, size, offset)
        assert kfree(raw.words, offsets[1]) == 0
        assert kmalloc(raw.words, size, GFP_ZERO_BIT) == offsets[1]
        assert is_zero(raw, offsets[1], size)
        assert holds(raw, offsets[0], size, offsets[0])
        assert holds(raw, offsets[2], size, offsets[2])
        for offset in offsets:
            assert kfree(raw.words, offset) == 0


def everything(raw: RawArena) -> list[int]:
    live = [int(kmalloc(raw.words, size, 0)) for size in raw.sizes for _ in range(3)]
    live += [int(kmalloc(raw.words, 3 * PAGE, 0)), int(kmalloc(raw.words, 20 * PAGE, 0))]
    return live


@CLASS_SETS
def test_refused_frees_change_not_one_word_of_metadata(sizes: tuple[int, ...]) -> None:
    raw = RawArena(2 * MIB, 4, sizes=sizes)
    live = everything(raw)
    total = int(raw.words[H_TOTAL_WORDS]) * 8
    end = raw.plan.end_pfn * PAGE
    before = metadata(raw)
    wrong = {
        0,
        1,
        7,
        8,
        -1,
        -8,
        -PAGE,
        -end,
        end - 1,
        end,
        end + 8,
        total - PAGE,
        total,
        total + PAGE,
        1 << 40,
        1 << 62,
    }
    wrong |= {-offset for offset in live}
    wrong |= {pfn * PAGE + shift for pfn in range(raw.plan.meta_pages) for shift in (0, 8, 64, 2048)}  # metadata
    wrong |= {offset + shift for offset in live for shift in (1, 4, 7, -1, -4, 3 * PAGE + 8, 1 << 33, -(1 << 33))}
    for size, first in zip([size for size in sizes for _ in range(3)], live, strict=False):
        wrong |= {first + shift for shift in range(1, min(size, 64))} | {first + size // 2, first + size - 1}
    window = int(raw.words[H_VM_START_BYTES])
    wrong |= {window, window + 8, window - PAGE, *(live[-1] + k * PAGE for k in range(1, 32)), live[-1] + (32 << 20)}
    frontier_page = (end // PAGE - 1) * PAGE  # never reached
    for offset in sorted(wrong - set(live)) + [frontier_page]:
        assert kfree(raw.words, offset) == EINVAL, offset
        assert ksize(raw.words, offset) == EINVAL, offset
    assert_unchanged(raw, before)
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_a_second_free_is_refused_while_the_slab_stays_and_after_it_went() -> None:
    raw = RawArena(2 * MIB, 4)
    live = everything(raw)
    for offset in live:
        assert kfree(raw.words, offset) == 0
        before = metadata(raw)
        assert kfree(raw.words, offset) == EINVAL
        assert ksize(raw.words, offset) == EINVAL
        assert_unchanged(raw, before)
    assert_pristine(raw)
    before = metadata(raw)
    for offset in live:
        assert kfree(raw.words, offset) == EINVAL
    assert_unchanged(raw, before)


def test_pages_of_a_vmalloc_area_cannot_be_freed_by_their_frames(raw: RawArena) -> None:
    area = int(vmalloc(raw.words, 9 * PAGE, 0))
    before = metadata(raw)
    for pfn in range(raw.plan.meta_pages, raw.plan.end_pfn):
        assert kfree(raw.words, pfn * PAGE) == EINVAL
        assert free_pages(raw.words, pfn, -1) == EINVAL
    assert_unchanged(raw, before)
    assert kfree(raw.words, area) == 0


def test_kfree_takes_blocks_and_runs_too(raw: RawArena) -> None:
    block, run = int(alloc_pages(raw.words, 2, 0)), int(alloc_run(raw.words, 21, 0))
    assert ksize(raw.words, block * PAGE) == 4 * PAGE
    assert ksize(raw.words, run * PAGE) == 21 * PAGE
    assert ksize(raw.words, block * PAGE + 8) == EINVAL
    assert kfree(raw.words, run * PAGE + 8) == EINVAL
    assert kfree(raw.words, block * PAGE) == 0
    assert kfree(raw.words, run * PAGE) == 0
    assert_pristine(raw)


@CLASS_SETS
def test_the_locked_zone_has_classes_of_its_own(sizes: tuple[int, ...]) -> None:
    raw = RawArena(2 * MIB, 4, dma=350 * PAGE, sizes=sizes)
    border = zone_word(raw, ZONE_NORMAL, Z_START_PFN) * PAGE
    live = []
    for size in (*sizes, 3 * PAGE, 5 * PAGE):
        low, high = int(kmalloc(raw.words, size, GFP_DMA_BIT)), int(kmalloc(raw.words, size, 0))
        assert zone_word(raw, ZONE_DMA, Z_START_PFN) * PAGE <= low < border <= high
        assert ksize(raw.words, low) == ksize(raw.words, high)
        if size <= LAST_SMALL:
            c = class_cache(raw, size, ZONE_DMA)
            assert raw.words[c + C_OBJECT_BYTES] == size
            assert raw.words[c + C_ALLOCS] == raw.words[c + C_NR_SLABS] == 1
        live += [low, high]
    assert kmalloc(raw.words, 17 * PAGE, GFP_DMA_BIT) == ENOMEM  # areas are not in the locked zone
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_an_arena_without_the_locked_zone_refuses_its_flag(raw: RawArena) -> None:
    before = metadata(raw)
    for nbytes in (8, 8192, 8193, 17 * PAGE):
        assert kmalloc(raw.words, nbytes, GFP_DMA_BIT) == ENOMEM
    assert_unchanged(raw, before)


def test_a_closed_arena_hands_out_nothing_and_takes_everything_back(raw: RawArena) -> None:
    live = everything(raw)
    raw.words[H_CLOSED] = 1
    for nbytes in (8, 9000, 30 * PAGE):
        assert kmalloc(raw.words, nbytes, 0) == ENOMEM
        assert vmalloc(raw.words, nbytes, 0) == ENOMEM
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_empty_slabs_of_one_class_serve_another_when_pages_run_out(raw: RawArena) -> None:
    small = []
    while (offset := int(kmalloc(raw.words, 64, 0))) > 0:
        small.append(offset)
    for offset in small:
        assert kfree(raw.words, offset) == 0
    assert raw.words[class_cache(raw, 64) + C_NR_SLABS] > 0
    pages = []
    while (offset := int(kmalloc(raw.words, PAGE, 0))) > 0:
        pages.append(offset)
    assert len(pages) > 0.9 * zone_pages(raw)
    assert raw.words[class_cache(raw, 64) + C_NR_SLABS] == 0
    for offset in pages:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_a_damaged_window_is_reported_with_the_lock_released(raw: RawArena) -> None:
    raw.words[H_VM_AREAS] += 1
    assert validate_vmalloc(raw.words) == BAD_AREA
    raw.words[H_VM_AREAS] -= 1
    assert validate_vmalloc(raw.words) == 0


def test_the_internal_caches_are_no_size_classes(raw: RawArena) -> None:
    first = int(raw.words[H_CACHES])
    inner = [int(raw.words[H_FREEMAP_CACHE]), int(raw.words[H_SHEAF_CACHE])]
    assert inner == [first, first + CACHE_WORDS]
    assert class_cache(raw, 8) == first + NR_INTERNAL * CACHE_WORDS
    assert [int(raw.words[c + C_SHEAF]) for c in inner] == [0, 0]


@CLASS_SETS
def test_a_long_random_life_keeps_every_byte(sizes: tuple[int, ...]) -> None:
    rng = random.Random(20240607)
    raw = RawArena(4 * MIB, 6, sizes=sizes)
    live: dict[int, tuple[int, int]] = {}
    asked = [*sizes, 1, 9, 65, 129, 1025, 3000, 8193, 20000, 100000, 300000]
    for step in range(60_000 if JIT else 6_000):
        if rng.random() < 0.52:
            nbytes = min(rng.choice(asked) + rng.randint(-3, 3), 300000)
            if nbytes <= 0:
                continue
            offset = int(kmalloc(raw.words, nbytes, rng.choice((0, GFP_ZERO_BIT))))
            if offset < 0:
                assert offset == ENOMEM
                for victim in rng.sample(sorted(live), len(live) // 2):
                    assert kfree(raw.words, victim) == 0
                    del live[victim]
                continue
            assert offset not in live
            write(raw, offset, min(nbytes, 64), step)
            live[offset] = (min(nbytes, 64), step)
        elif live:
            offset = rng.choice(list(live)[-50:])
            nbytes, seed = live.pop(offset)
            assert holds(raw, offset, nbytes, seed)
            assert kfree(raw.words, offset) == 0
        if step % 2000 == 0:
            raw.validate()
            assert all(holds(raw, offset, *written) for offset, written in live.items())
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_patterns_of_different_blocks_differ() -> None:
    assert len({pattern(seed, 64).tobytes() for seed in range(256)}) == 256


def test_metadata_is_nobodys_to_free() -> None:
    """Free maps of tiny objects and sheaves lie in slabs of the arena's own, beside those of users."""
    raw = RawArena(8 * MIB, 4)
    live = {int(kmalloc(raw.words, 8, 0)) for _ in range(2000)}
    inner = [int(raw.words[H_FREEMAP_CACHE]), int(raw.words[H_SHEAF_CACHE])]
    found = 0
    for pfn in range(raw.plan.meta_pages, raw.plan.end_pfn):
        if page_kind(raw, pfn) in (KIND_SLAB, KIND_TAIL):
            cache = int(raw.words[H_CACHES]) + (page_info(raw, pfn) >> CACHE_SHIFT & CACHE_MASK) * CACHE_WORDS
            if cache in inner:
                found += 1
                for offset in range(pfn * PAGE, (pfn + 1) * PAGE, 64):
                    assert ksize(raw.words, offset) == kfree(raw.words, offset) == EINVAL
    assert found >= 2
    raw.validate()
    for offset in live:
        assert kfree(raw.words, offset) == 0
