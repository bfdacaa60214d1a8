"""vmalloc: scattered pages at one range of addresses, guards, lazy areas, a walker that can fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kernels import (
    CHILD,
    area_record,
    assert_pristine,
    assert_unchanged,
    free_blocks,
    holds,
    info_index,
    is_zero,
    metadata,
    page_index,
    trim,
    write,
    zone_pages,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena, run_child

from realalloc.mm.kmalloc import kfree, kmalloc, ksize, validate_vmalloc, vmalloc
from realalloc.mm.layout import (
    AREA_FREE,
    AREA_GRANULES_SHIFT,
    AREA_KIND_MASK,
    AREA_LIVE,
    BAD_AREA,
    BAD_AREA_BLOCKS,
    BAD_AREA_SUM,
    ENOMEM,
    GFP_ZERO_BIT,
    GRANULE_PAGES,
    H_ALLOCATED_PAGES,
    H_COMMITTED_PAGES,
    H_VM_AREAS,
    H_VM_FREE,
    H_VM_LAZY,
    H_VM_LAZY_PAGES,
    H_VM_PAGES,
    H_VM_START_BYTES,
    PG_LINK,
    PG_MAP0,
    V_BYTES,
    V_INFO,
    V_PAGES,
    V_TAG,
    Z_FREE_PAGES,
)
from realalloc.mm.lazy import LAZY_SLACK_SHIFT
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.reclaim import reclaim


def fragment(raw: RawArena, keep: int = 2) -> list[int]:
    """Take every page, then free all but each ``keep``-th: no two free pages are buddies where keep is 2."""
    pages = sorted(int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw)))
    for pfn in pages:
        write(raw, pfn * PAGE, PAGE, pfn)
    for k, pfn in enumerate(pages):
        if k % keep != 0:
            assert free_pages(raw.words, pfn, 0) == 0
    return pages[::keep]


def map_lines() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("keep", [2, 3, 16])
def test_scattered_pages_become_one_range_and_everybody_keeps_their_bytes(keep: int) -> None:
    raw = RawArena(2 * MIB, 6)
    kept = fragment(raw, keep)
    free = zone_word(raw, 0, Z_FREE_PAGES)
    assert max(order for order, _ in free_blocks(raw)) < 4
    assert kmalloc(raw.words, 16 * PAGE, 0) == ENOMEM
    nbytes = free // 2 * PAGE
    offset = int(vmalloc(raw.words, nbytes, 0))
    assert offset >= raw.words[H_VM_START_BYTES]
    write(raw, offset, nbytes, 77)
    assert holds(raw, offset, nbytes, 77)
    assert all(holds(raw, pfn * PAGE, PAGE, pfn) for pfn in kept)
    assert zone_word(raw, 0, Z_FREE_PAGES) == free - free // 2
    raw.validate()
    second = int(vmalloc(raw.words, (free - free // 2) * PAGE, 0))  # the last free page too
    write(raw, second, (free - free // 2) * PAGE, 78)
    assert vmalloc(raw.words, 1, 0) == ENOMEM
    assert holds(raw, offset, nbytes, 77)
    raw.validate()
    assert kfree(raw.words, offset) == kfree(raw.words, second) == 0
    reclaim(raw.words)
    for pfn in kept:
        assert holds(raw, pfn * PAGE, PAGE, pfn)
        assert free_pages(raw.words, pfn, 0) == 0
    assert_pristine(raw)


def test_an_area_freed_without_being_dropped_gives_its_very_pages_back(raw: RawArena) -> None:
    offset = int(vmalloc(raw.words, 90 * PAGE, 0))  # more than the bound on lazy areas
    write(raw, offset, 90 * PAGE, 5)
    assert kfree(raw.words, offset) == 0
    assert raw.words[H_VM_LAZY_PAGES] == 0
    assert raw.words[H_COMMITTED_PAGES] >= 90
    pages = [int(alloc_pages(raw.words, 0, GFP_ZERO_BIT)) for _ in range(zone_pages(raw))]
    assert all(is_zero(raw, pfn * PAGE, PAGE) for pfn in pages)
    for pfn in pages:
        write(raw, pfn * PAGE, PAGE, pfn)
    assert all(holds(raw, pfn * PAGE, PAGE, pfn) for pfn in pages)
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert_pristine(raw)


@pytest.mark.parametrize("pages", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_an_area_has_its_pages_and_at_least_one_guard_behind_them(raw: RawArena, pages: int) -> None:
    for nbytes in (pages * PAGE, pages * PAGE - 1, (pages - 1) * PAGE + 1):
        offset = int(vmalloc(raw.words, nbytes, 0))
        at = area_record(raw, offset)
        granules = int(raw.words[at + V_INFO]) >> AREA_GRANULES_SHIFT
        assert granules == pages // GRANULE_PAGES + 1
        assert (raw.words[at + V_PAGES], raw.words[at + V_BYTES]) == (pages, nbytes)
        assert ksize(raw.words, offset) == pages * PAGE
        assert (raw.words[H_VM_AREAS], raw.words[H_VM_PAGES]) == (1, pages)
        assert raw.words[H_ALLOCATED_PAGES] == pages
        assert kfree(raw.words, offset) == 0
        trim(raw)
    assert_pristine(raw)


def test_touching_what_is_not_the_areas_faults() -> None:
    code = CHILD + (
        "import os\n"
        "from support import RawArena\n"
        "from realalloc.mm.kmalloc import kfree, vmalloc\n"
        "from realalloc.mm.reclaim import reclaim\n"
        "def touch(pages, where, gone):\n"
        "    raw = RawArena(1 << 20, 4)\n"
        "    offset = int(vmalloc(raw.words, pages * 4096, 0))\n"
        "    raw.words[offset // 8] = raw.words[(offset + pages * 4096 - 8) // 8] = 1\n"
        "    if gone: kfree(raw.words, offset); reclaim(raw.words)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        raw.words[(offset + where) // 8] = 1\n"
        "        os._exit(0)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(*[touch(n, n * 4096, False) for n in (1, 15, 16, 31, 40)])  # behind the end\n"
        "print(*[touch(n, -8, False) for n in (1, 16)])  # before the beginning\n"
        "print(*[touch(n, at, True) for n, at in ((5, 0), (5, 4 * 4096), (40, 20 * 4096))])  # a freed area\n"
        "print(*[touch(n, n * 4096 - 8, False) for n in (1, 16)])  # the last word of an area\n"
    )
    done = run_child(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-11 " * 4 + "-11", "-11 -11", "-11 -11 -11", "0 0"]


def test_zeroed_areas_read_as_zero_whether_new_or_lazy(raw: RawArena) -> None:
    for nbytes in (PAGE, 5 * PAGE, 30 * PAGE):
        offset = int(vmalloc(raw.words, nbytes, GFP_ZERO_BIT))
        assert is_zero(raw, offset, nbytes)
        write(raw, offset, nbytes, 3)
        assert kfree(raw.words, offset) == 0
        assert vmalloc(raw.words, nbytes, GFP_ZERO_BIT) == offset  # the lazy one
        assert is_zero(raw, offset, nbytes)
        write(raw, offset, nbytes, 3)
        assert kfree(raw.words, offset) == 0
        assert raw.words[H_VM_LAZY_PAGES] == nbytes // PAGE
        pages = [int(alloc_pages(raw.words, 0, 0)) for _ in range(zone_pages(raw))]  # purges it with its bytes
        assert raw.words[H_VM_LAZY_PAGES] == 0
        for pfn in pages:
            free_pages(raw.words, pfn, 0)
        again = int(vmalloc(raw.words, nbytes, GFP_ZERO_BIT))
        assert is_zero(raw, again, nbytes)
        assert kfree(raw.words, again) == 0
        trim(raw)
    assert_pristine(raw)


def test_more_than_is_free_takes_nothing(raw: RawArena) -> None:
    before = metadata(raw)
    for pages in (zone_pages(raw) + 1, raw.plan.end_pfn, raw.plan.end_pfn + 1, 1 << 40):
        assert vmalloc(raw.words, pages * PAGE, 0) == ENOMEM
    assert_unchanged(raw, before)


def test_the_number_of_mappings_returns_to_where_it_began() -> None:
    raw = RawArena(4 * MIB, 6)
    start = map_lines()
    kept = fragment(raw)
    areas = [int(vmalloc(raw.words, 100 * PAGE, 0)) for _ in range(4)]
    for offset in areas:
        write(raw, offset, 100 * PAGE, 1)
    assert map_lines() > start + 100
    for offset in areas:
        assert kfree(raw.words, offset) == 0
    for pfn in kept:
        free_pages(raw.words, pfn, 0)
    trim(raw)
    assert map_lines() <= start + 40
    assert_pristine(raw)


def test_a_mapping_limit_of_the_system_is_an_enomem_that_loses_nothing() -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if not JIT or limit > 70_000:
        pytest.skip("needs as many scattered pages as the system allows mappings")
    code = CHILD + (
        "from kernels import *\n"
        "from support import *\n"
        "from realalloc.mm.kmalloc import vmalloc, kfree\n"
        "from realalloc.mm.page_alloc import alloc_pages_bulk, free_pages\n"
        f"raw = RawArena({(2 * limit + 20_000) * PAGE}, 10, sheaves=False)\n"
        "out = raw.out(zone_pages(raw))\n"
        "assert alloc_pages_bulk(raw.words, len(out), 0, out) == len(out)\n"
        "pages = sorted(out.tolist())\n"
        "for pfn in pages[::2]: free_pages(raw.words, pfn, 0)\n"
        "for pfn in pages[1::1000]: write(raw, pfn * PAGE, PAGE, pfn)\n"
        "allocated = int(raw.words[H_ALLOCATED_PAGES])\n"
        f"print(int(vmalloc(raw.words, {limit + 5000} * PAGE, 0)))\n"
        "assert raw.words[H_ALLOCATED_PAGES] == allocated\n"
        "raw.validate()\n"
        "offset = int(vmalloc(raw.words, 500 * PAGE, 0))\n"
        "write(raw, offset, 500 * PAGE, 4); assert holds(raw, offset, 500 * PAGE, 4)\n"
        "assert all(holds(raw, pfn * PAGE, PAGE, pfn) for pfn in pages[1::1000])\n"
        "assert kfree(raw.words, offset) == 0\n"
        "for pfn in pages[1::2]: free_pages(raw.words, pfn, 0)\n"
        "assert_pristine(raw)\n"
    )
    done = run_child(code)
    assert (done.returncode, done.stdout) == (0, f"{ENOMEM}\n"), done.stderr


def test_a_random_life_of_areas_in_a_fragmented_arena() -> None:
    rng = random.Random(5)
    raw = RawArena(3 * MIB, 5)
    live: dict[int, tuple[int, int]] = {}
    pages: dict[int, int] = {}
    for step in range(2500 if JIT else 400):
        action = rng.random()
        if action < 0.3:
            nbytes = rng.randint(1, 60 * PAGE)
            offset = int(vmalloc(raw.words, nbytes, rng.choice((0, GFP_ZERO_BIT))))
            if offset > 0:
                assert offset not in live
                live[offset] = (nbytes, step)
                write(raw, offset, nbytes, step)
        elif action < 0.55 and live:
            offset = rng.choice(list(live))
            assert holds(raw, offset, *live.pop(offset))
            assert kfree(raw.words, offset) == 0
        elif action < 0.8:
            order = rng.randint(0, 2)
            pfn = int(alloc_pages(raw.words, order, 0))
            if pfn > 0:
                pages[pfn] = order
                write(raw, pfn * PAGE, PAGE << order, pfn)
        elif action < 0.97 and pages:
            pfn = rng.choice(list(pages))
            order = pages.pop(pfn)
            assert holds(raw, pfn * PAGE, PAGE << order, pfn)
            assert free_pages(raw.words, pfn, order) == 0
        elif action >= 0.97:
            rng.choice((trim, lambda raw: reclaim(raw.words)))(raw)
        if step % 20 == 0:
            raw.validate()
            asked = [-(-nbytes // PAGE) for nbytes, _ in live.values()]
            assert sum(asked) <= raw.words[H_VM_PAGES] <= sum(n + (n >> LAZY_SLACK_SHIFT) for n in asked)
    for offset, written in live.items():
        assert holds(raw, offset, *written)
        assert kfree(raw.words, offset) == 0
    for pfn, order in pages.items():
        assert free_pages(raw.words, pfn, order) == 0
    assert_pristine(raw)


def damaged_window() -> tuple[RawArena, dict[str, int]]:
    raw = RawArena(MIB, 4)
    areas = {name: int(vmalloc(raw.words, 5 * PAGE, 0)) for name in ("live", "hole", "lazy", "last")}
    assert kfree(raw.words, areas["hole"]) == 0
    reclaim(raw.words)
    assert kfree(raw.words, areas["lazy"]) == 0
    assert validate_vmalloc(raw.words) == 0
    return raw, {name: area_record(raw, offset) for name, offset in areas.items()}


def first_block(raw: RawArena, at: int) -> int:
    return int(raw.words[at + 3])


def set_word(name: str, field: int, change):
    def damage(raw: RawArena, at: dict[str, int]) -> None:
        raw.words[at[name] + field] = change(int(raw.words[at[name] + field]))

    return damage


def set_header(field: int, change):
    def damage(raw: RawArena, _at: dict[str, int]) -> None:
        raw.words[field] = change(int(raw.words[field]))

    return damage


def set_block(name: str, field: int | None, change):
    """Change a field of the struct page of an area's first block, or what the page is (None)."""

    def damage(raw: RawArena, at: dict[str, int]) -> None:
        pfn = first_block(raw, at[name])
        index = info_index(pfn) if field is None else page_index(raw, pfn) + field
        raw.words[index] = change(int(raw.words[index]))

    return damage


DAMAGE = {
    "a tag": (BAD_AREA, set_word("live", V_TAG, lambda tag: tag + 1)),
    "an area without a kind": (BAD_AREA, set_word("live", V_INFO, lambda info: info & ~AREA_KIND_MASK)),
    "an area without a length": (BAD_AREA, set_word("live", V_INFO, lambda _: AREA_LIVE)),
    "free areas that touch": (BAD_AREA, set_word("lazy", V_INFO, lambda info: info & ~AREA_KIND_MASK | AREA_FREE)),
    "the number of areas": (BAD_AREA, set_header(H_VM_AREAS, lambda n: n + 1)),
    "a lost free list": (BAD_AREA, set_header(H_VM_FREE, lambda _: 0)),
    "a lost lazy list": (BAD_AREA, set_header(H_VM_LAZY, lambda _: 0)),
    "a frontier inside an area": (BAD_AREA, set_word("last", V_INFO, lambda info: info + (1 << AREA_GRANULES_SHIFT))),
    "live pages": (BAD_AREA_SUM, set_header(H_VM_PAGES, lambda n: n - 1)),
    "lazy pages": (BAD_AREA_SUM, set_header(H_VM_LAZY_PAGES, lambda n: n + 1)),
    "the pages of an area": (BAD_AREA_BLOCKS, set_word("live", V_PAGES, lambda n: n + 1)),
    "fewer pages than blocks": (BAD_AREA_BLOCKS, set_word("lazy", V_PAGES, lambda n: n - 1)),
    "a block's granule": (BAD_AREA_BLOCKS, set_block("live", PG_MAP0, lambda granule: granule + 1)),
    "a block's kind": (BAD_AREA_BLOCKS, set_block("last", None, lambda info: info ^ 1)),
    "a broken chain": (BAD_AREA_BLOCKS, set_block("lazy", PG_LINK, lambda _: 0)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_walker_reports(what: str) -> None:
    code, damage = DAMAGE[what]
    raw, at = damaged_window()
    damage(raw, at)
    assert validate_vmalloc(raw.words) == code
