"""An arena in text that tools which parse /proc can parse, and that agrees with its records."""

from __future__ import annotations

import itertools
import re

from checks import eat_everything
from support import MIB, PAGE

import realalloc as ra
from realalloc.views import INTERNAL

TYPE_LINE = re.compile(r"Node    0, zone ([ \w]{8}), type ([ \w]{12}) ((?:>?[ \d]{6} )+)\n")
BUDDY_LINE = re.compile(r"Node 0, zone ( *\w+) ((?:[ \d]{5}\d )+)\n")
SLAB_LINE = re.compile(
    r"(\S+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) : tunables +0 +0 +0 : slabdata +(\d+) +(\d+) +(\d+)\n"
)
AREA_LINE = re.compile(r"0x([0-9a-f]{16})-0x([0-9a-f]{16}) ([ \d]{6}\d) (.*)\n")
SLAB_HEAD = (
    "slabinfo - version: 2.1\n"
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> "
    "<sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
)


def buddy(arena: ra.Arena) -> dict[str, list[int]]:
    text = arena.buddyinfo()
    lines = [match for line in text.splitlines(keepends=True) if (match := BUDDY_LINE.fullmatch(line))]
    assert "".join(match[0] for match in lines) == text, "every line is in the kernel's format"
    assert all(len(match[1]) == 8 for match in lines)
    return {match[1].strip(): [int(count) for count in match[2].split()] for match in lines}


def test_buddyinfo_parses_as_the_kernels_and_counts_every_free_page(busy: ra.Arena) -> None:
    zones = buddy(busy)
    orders = max(11, len(next(iter(zones.values()))))
    assert list(zones) == (["DMA", "Normal"] if len(zones) == 2 else ["Normal"])
    assert all(len(counts) == orders for counts in zones.values())
    stats = busy.stats()
    free = sum(count << order for counts in zones.values() for order, count in enumerate(counts)) * PAGE
    managed = stats.size - stats.metadata
    assert free == managed - stats.allocated
    assert stats.free == (free if stats.limit == managed or len(zones) == 2 else stats.limit - stats.allocated)
    largest = max(order for counts in zones.values() for order, count in enumerate(counts) if count)
    assert stats.largest_free == min(PAGE << largest, 1 << stats.free.bit_length() - 1)


def test_an_allocation_moves_one_block_in_buddyinfo() -> None:
    with ra.Arena(MIB, max_order=4) as arena:
        before = buddy(arena)["Normal"]
        assert len(before) == 11 and before[5:] == [0] * 6
        with arena.alloc_pages(4).view:
            after = buddy(arena)["Normal"]
        assert before[4] - after[4] in (1, 2) or sum(before) != sum(after)
        held = eat_everything(arena)
        assert buddy(arena)["Normal"] == [0] * 11
        held.clear()
        arena.trim()
        assert buddy(arena)["Normal"] == before


def test_buddyinfo_has_exactly_the_kernels_spacing() -> None:
    with ra.Arena(MIB, max_order=10) as arena:
        held = eat_everything(arena)
        assert arena.buddyinfo() == "Node 0, zone   Normal " + "     0 " * 11 + "\n"
        held.clear()


def test_pagetypeinfo_parses_as_the_kernels_and_agrees_with_buddyinfo(busy: ra.Arena) -> None:
    lines = busy.pagetypeinfo().splitlines(keepends=True)
    zones = buddy(busy)
    orders = len(next(iter(zones.values())))
    order = re.fullmatch(r"Page block order: (\d+)\n", lines[0])
    pages = re.fullmatch(r"Pages per block:  (\d+)\n", lines[1])
    assert order and pages and 1 << int(order[1]) == int(pages[1]) and lines[2] == "\n"
    assert (
        lines[3]
        == f"{'Free pages count per migrate type at order':<43} " + "".join(f"{k:6d} " for k in range(orders)) + "\n"
    )
    rows = [TYPE_LINE.fullmatch(line) for line in lines[4 : 4 + 2 * len(zones)]]
    assert [(row[1].strip(), row[2].strip()) for row in rows if row] == list(
        itertools.product(zones, ("Unmovable", "Movable"))
    )
    for unmovable, movable, counts in zip(rows[::2], rows[1::2], zones.values(), strict=True):
        pairs = zip(unmovable[3].split(), movable[3].split(), strict=True)
        assert [int(mine) + int(others) for mine, others in pairs] == counts
    rest = lines[4 + 2 * len(zones) :]
    assert rest[0] == "\n" and rest[1] == f"{'Number of blocks type ':<23}{'Unmovable':>12} {'Movable':>12} \n"
    blocks = [re.fullmatch(r"Node 0, zone ([ \w]{8}) ([ \d]{12}) ([ \d]{12}) \n", line) for line in rest[2:]]
    assert [match[1].strip() for match in blocks if match] == list(zones)
    managed = busy.stats().size - busy.stats().metadata
    total = sum(int(match[2]) + int(match[3]) for match in blocks if match) * int(pages[1]) * PAGE
    assert 0 <= total - managed <= 3 * int(pages[1]) * PAGE


def types(arena: ra.Arena) -> tuple[list[int], list[int], tuple[int, int]]:
    """Free blocks of both types and the numbers of page blocks of an arena with one zone."""
    text = arena.pagetypeinfo()
    unmovable, movable = ([int(n) for n in match[3].split()] for match in TYPE_LINE.finditer(text))
    blocks = re.search(r"Node 0, zone   Normal +(\d+) +(\d+) \n$", text)
    return unmovable, movable, (int(blocks[1]), int(blocks[2]))


def test_pagetypeinfo_shows_where_slabs_are() -> None:
    with ra.Arena(64 * MIB) as arena:
        _, movable, blocks = types(arena)
        assert blocks == (1, 31)  # the first page block begins with metadata
        assert movable[:9] == [0] * 9
        held = [arena.kmalloc(4096) for _ in range(1000)]
        large = arena.kmalloc(MIB)
        unmovable, movable, blocks = types(arena)
        assert blocks == (3, 29)
        assert movable[:9] == [0] * 8 + [1]  # the other half of the page block of the large one
        assert sum(unmovable[:9]) > 0 and unmovable[9:] == [0, 0]
        held.clear()
        large.release()
        arena.trim()
        assert types(arena)[2] == (1, 31)


def test_pagetypeinfo_says_unmovable_where_nothing_is_grouped() -> None:
    with ra.Arena(MIB) as arena:
        unmovable, movable, blocks = types(arena)
        assert sum(unmovable) > 0 and not any(movable) and blocks == (1, 0)


def test_pagetypeinfo_marks_counts_that_are_too_long() -> None:
    with ra.Arena("1GiB", max_order=0) as arena:
        assert ">100000 " in arena.pagetypeinfo()


def slabs(arena: ra.Arena) -> dict[str, list[int]]:
    text = arena.slabinfo()
    assert text.startswith(SLAB_HEAD)
    rows = [SLAB_LINE.fullmatch(line) for line in text[len(SLAB_HEAD) :].splitlines(keepends=True)]
    assert all(rows), "every row is in the kernel's format"
    return {row[1]: [int(n) for n in row.groups()[1:]] for row in rows if row}


def test_slabinfo_parses_as_version_2_1_and_adds_up(busy: ra.Arena) -> None:
    rows = slabs(busy)
    stats = busy.stats()
    assert {"kmalloc-8", "kmalloc-96", "kmalloc-1k", "kmalloc-8k", "a_rather_long_name_of_a_cache"} <= set(rows)
    assert ("dma-kmalloc-256" in rows) == ("DMA" in buddy(busy))
    for active, total, _size, per_slab, pages, active_slabs, num_slabs, shared in rows.values():
        assert 0 <= active <= total and active_slabs <= num_slabs and shared == 0 and pages in (1, 2, 4, 8)
        assert total <= num_slabs * per_slab
    assert sum(row[0] for name, row in rows.items() if name not in INTERNAL) == stats.live_objects
    assert rows["a_rather_long_name_of_a_cache"][0] == 22
    assert rows["kmalloc-96"][:1] == [1] and rows["kmalloc-96"][2] == 96


def test_slabinfo_has_exactly_the_kernels_spacing() -> None:
    with ra.Arena(MIB) as arena, arena.kmalloc(64):
        row = next(line for line in arena.slabinfo().splitlines() if line.startswith("kmalloc-64"))
        assert re.fullmatch(
            r"kmalloc-64 {13}1 {3,5}\d+     64 {1,3}\d+    1 : tunables    0    0    0 : slabdata      1      1      0",
            row,
        )


def test_vmallocinfo_parses_as_the_kernels_and_counts_guard_pages(busy: ra.Arena) -> None:
    big = busy.vmalloc(5 * PAGE + 1)
    rows = [AREA_LINE.fullmatch(line) for line in busy.vmallocinfo().splitlines(keepends=True)]
    assert rows and all(rows)
    live = lazy = end = 0
    for row in rows:
        assert row is not None
        low, high, nbytes = int(row[1], 16), int(row[2], 16), int(row[3])
        assert high - low == nbytes and low >= end and low % PAGE == 0
        end = high
        if row[4] == "unpurged vm_area":
            lazy += nbytes - PAGE
        else:
            pages = re.search(r" pages=(\d+) vmalloc N0=(\d+)$", row[4])
            assert pages and pages[1] == pages[2] and nbytes == (int(pages[1]) + 1) * PAGE
            live += int(pages[1]) * PAGE
    stats = busy.stats()
    assert (live, lazy) == (stats.vmalloc, stats.vmalloc_lazy) == (9 * PAGE, stats.vmalloc_lazy)
    assert f"{7 * PAGE:7d} " in busy.vmallocinfo()
    busy.vfree(big)


def test_meminfo_parses_as_the_kernels_and_agrees_with_stats(busy: ra.Arena) -> None:
    rows = {}
    for line in busy.meminfo().splitlines(keepends=True):
        match = re.fullmatch(r"(\w+): {2,}(\d+) kB\n", line)
        assert match and len(line) == len("MemTotal:       16000000 kB\n")
        rows[match[1]] = int(match[2]) * 1024
    stats = busy.stats()
    assert rows["MemTotal"] == stats.size - stats.metadata
    assert rows["MemFree"] == stats.free <= rows["MemAvailable"] <= rows["MemTotal"]
    assert rows["Slab"] == stats.slab == rows["SReclaimable"] + rows["SUnreclaim"]
    assert rows["CommitLimit"] == stats.limit and rows["Committed_AS"] == stats.committed
    assert rows["VmallocUsed"] == stats.vmalloc <= rows["VmallocTotal"]
    assert rows["Mlocked"] == (MIB if "DMA" in buddy(busy) else 0)


def test_the_cheap_looks_take_nothing(busy: ra.Arena) -> None:
    before = busy.stats()
    for look in (busy.buddyinfo, busy.slabinfo, busy.vmallocinfo, busy.pagetypeinfo, busy.meminfo, busy.validate):
        look()
    assert busy.stats() == before
