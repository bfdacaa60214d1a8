"""Chains: as few blocks as there can be, page-table entries there and back with their bytes, and every way to be refused."""

from __future__ import annotations

import numba
import pytest
from kernels import (
    assert_pristine,
    block_pages,
    free_blocks,
    holds,
    is_zero,
    octets,
    page_index,
    pattern,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm import chain
from realalloc.mm.chain import collect_blocks, free_chain, map_chain, unmap_chain
from realalloc.mm.kmalloc import vmalloc
from realalloc.mm.layout import (
    ENOMEM,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_VM_REFUSED_PAGES,
    H_VM_START_BYTES,
    PG_LINK,
    Z_FREE_PAGES,
    Z_START_PFN,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.prim import madvise

COLLECT, MAP, UNMAP, FREE, ADVISE = range(5)
MADV_DONTDUMP = 16


@numba.njit
def _do(words, what, a, b, c):
    if what == COLLECT:
        return collect_blocks(words, a, b)
    if what == MAP:
        return map_chain(words, a, b, c)
    if what == UNMAP:
        unmap_chain(words, a, b, c)
        return 0
    if what == ADVISE:
        return madvise(a, b, c)
    free_chain(words, a, b)
    return 0


def do(raw: RawArena, what: int, a: int, b: int = 0, c: int = 0) -> int:
    return int(_do(raw.words, what, a, b, c))


def members(raw: RawArena, head: int) -> list[tuple[int, int]]:
    """Follow a chain: (pfn, pages) of its blocks."""
    found = []
    while head != 0:
        found.append((head, block_pages(raw, head)))
        head = int(raw.words[page_index(raw, head) + PG_LINK])
    return found


def resident(raw: RawArena) -> int:
    """Count the pages of the zone that hold memory, the window's not."""
    return int(raw.memory.resident_pages(raw.plan.meta_pages * PAGE, raw.pages * PAGE))


def scatter(raw: RawArena, keep: int = 2) -> list[int]:
    """Take every page and free all but each ``keep``-th."""
    pages = sorted(int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw)))
    for k, pfn in enumerate(pages):
        if k % keep != 0:
            assert free_pages(raw.words, pfn, 0) == 0
    return pages[::keep]


def test_every_number_of_pages_is_as_few_blocks_as_there_can_be() -> None:
    raw = RawArena(MIB, 4, sheaves=False)
    for pages in range(1, zone_pages(raw) + 1):
        orders = sorted((order for order, _ in free_blocks(raw)), reverse=True)
        head = do(raw, COLLECT, pages)
        blocks = members(raw, head)
        assert sum(length for _, length in blocks) == pages == raw.words[H_ALLOCATED_PAGES]
        assert sorted((length for _, length in blocks), reverse=True) == [length for _, length in blocks]
        if orders and orders[0] == 4 and sum(order == 4 for order in orders) * 16 >= pages:
            assert len(blocks) == pages // 16 + (pages % 16).bit_count()
        do(raw, FREE, head)
        assert raw.words[H_ALLOCATED_PAGES] == 0
    before = zone_word(raw, 0, Z_FREE_PAGES)
    assert do(raw, COLLECT, zone_pages(raw) + 1) == ENOMEM
    assert zone_word(raw, 0, Z_FREE_PAGES) == before
    assert_pristine(raw)


@pytest.mark.parametrize("keep", [2, 3, 5, 100])
def test_pages_move_into_one_range_and_back_up_to_any_page(keep: int) -> None:
    raw = RawArena(MIB // 2, 4, sheaves=False)
    kept = scatter(raw, keep)
    head = do(raw, COLLECT, 23)
    blocks = members(raw, head)
    assert len(blocks) > 1
    ends = [sum(pages for _, pages in blocks[: k + 1]) for k, (pfn, pages) in enumerate(blocks)
            if k + 1 == len(blocks) or blocks[k + 1][0] != pfn + pages]  # fmt: skip
    window = int(raw.words[H_VM_START_BYTES]) + 16 * PAGE
    source = pattern(1, 23 * PAGE)
    for limit in range(1, 24):
        done = 0
        for pfn, pages in blocks:
            octets(raw, pfn * PAGE, pages * PAGE)[:] = source[done * PAGE : (done + pages) * PAGE]
            done += pages
        moved = do(raw, MAP, head, window, limit)
        assert moved == next(end for end in ends if end >= limit)  # whole runs of adjacent pages
        assert (octets(raw, window, moved * PAGE) == source[: moved * PAGE]).all()
        octets(raw, window, PAGE)[:8] = 7  # what is written there comes back
        do(raw, UNMAP, head, window, moved)
        assert (octets(raw, head * PAGE, PAGE)[:8] == 7).all()
        octets(raw, head * PAGE, 8)[:] = source[:8]
        done = 0
        for pfn, pages in blocks:
            assert (octets(raw, pfn * PAGE, pages * PAGE) == source[done * PAGE : (done + pages) * PAGE]).all()
            done += pages
    do(raw, FREE, head)
    for pfn in kept:
        free_pages(raw.words, pfn, 0)
    assert_pristine(raw)


def test_a_chain_that_was_dropped_reads_as_zero(raw: RawArena) -> None:
    head = do(raw, COLLECT, 21)
    blocks = members(raw, head)
    for pfn, pages in blocks:
        write(raw, pfn * PAGE, pages * PAGE, pfn)
        raw.memory.purge(pfn * PAGE, pages * PAGE)
    do(raw, FREE, head, 1)
    raw.validate()
    assert do(raw, COLLECT, 21) == head
    assert all(is_zero(raw, pfn * PAGE, pages * PAGE) for pfn, pages in members(raw, head))
    do(raw, FREE, head, 0)
    assert_pristine(raw)


def patchwork(raw: RawArena) -> None:
    """Leave all pages free, and every third one in a mapping of its own, which core dumps leave out."""
    start, pages = zone_word(raw, 0, Z_START_PFN), zone_pages(raw)
    for pfn in range(start + 1, start + pages, 3):
        assert do(raw, ADVISE, raw.memory.address + pfn * PAGE, PAGE, MADV_DONTDUMP) == 0


def test_a_run_over_several_mappings_moves_a_mapping_at_a_time() -> None:
    raw = RawArena(MIB // 2, 4, sheaves=False)
    patchwork(raw)
    head, window = do(raw, COLLECT, 40), int(raw.words[H_VM_START_BYTES]) + 256 * PAGE
    blocks = members(raw, head)
    for pfn, pages in blocks:
        write(raw, pfn * PAGE, pages * PAGE, pfn)
    assert max(pages for _, pages in blocks) == 16
    assert do(raw, MAP, head, window, 40) == 40
    done = 0
    for pfn, pages in blocks:
        assert holds(raw, window + done * PAGE, pages * PAGE, pfn)
        done += pages
    do(raw, UNMAP, head, window, 40)
    assert all(holds(raw, pfn * PAGE, pages * PAGE, pfn) for pfn, pages in blocks)
    do(raw, FREE, head)
    assert_pristine(raw)


@pytest.mark.skipif(JIT, reason="calls are refused one by one in plain Python")
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("keep", [0, 3])
def test_an_area_refused_at_any_of_its_calls_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, back: bool, keep: int
) -> None:
    """The n-th mremap fails, for every n; with ``back`` those that undo it fail too. Free pages: scattered, or a patchwork."""
    real = chain.move_pages
    number = 0
    served = False
    while not served:
        raw = RawArena(MIB // 2, 4, sheaves=False)
        kept = scatter(raw, keep) if keep else []
        if not keep:
            patchwork(raw)
        for pfn in kept:
            write(raw, pfn * PAGE, PAGE, pfn)
        free, calls = zone_pages(raw) - len(kept), []
        everything = [int(alloc_pages(raw.words, 0, 0)) for _ in range(free)]
        for pfn in everything:
            write(raw, pfn * PAGE, PAGE, pfn)
        for pfn in everything:
            assert free_pages(raw.words, pfn, 0) == 0
        assert resident(raw) == raw.words[H_COMMITTED_PAGES] == zone_pages(raw)

        def move(source: int, target: int, length: int, calls: list = calls, number: int = number) -> int:
            calls.append(length)
            refused = len(calls) > number if back else len(calls) == number + 1
            return -12 if refused else real(source, target, length)

        monkeypatch.setattr(chain, "move_pages", move)
        offset = int(vmalloc(raw.words, 20 * PAGE, 0))
        monkeypatch.setattr(chain, "move_pages", real)
        served = offset > 0
        assert raw.words[H_VM_REFUSED_PAGES] == (0 if served else 20)
        assert raw.words[H_ALLOCATED_PAGES] == len(kept) + (20 if served else 0)
        raw.validate()
        assert all(holds(raw, pfn * PAGE, PAGE, pfn) for pfn in kept)
        if not served:
            assert resident(raw) == raw.words[H_COMMITTED_PAGES]  # what was dropped is in the books,
            assert back or resident(raw) == zone_pages(raw)  # and what could move back was not dropped
        if not served:  # the pages that moved and those that did not can all be had, and read as zero where asked
            pages = [int(alloc_pages(raw.words, 0, GFP_ZERO_BIT)) for _ in range(free)]
            assert all(is_zero(raw, pfn * PAGE, PAGE) for pfn in pages)
            for pfn in pages:
                write(raw, pfn * PAGE, PAGE, pfn)
            assert all(holds(raw, pfn * PAGE, PAGE, pfn) for pfn in (*pages, *kept))
            assert raw.memory.resident_pages(int(raw.words[H_VM_START_BYTES]), raw.plan.granules * 16 * PAGE) == 0
        number += 1
    assert number > 5
