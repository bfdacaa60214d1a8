"""Grouping by lifetime: where slab pages may land, against a plain model; exact books; nothing fails that could be served."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kernels import assert_pristine, dirty_pages, free_blocks, trim, zone_pages, zone_word
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.buddy import alloc_block_locked, free_block_locked, validate_buddy
from realalloc.mm.commit import purge_locked
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import (
    BAD_PAGE_BLOCK,
    ENOMEM,
    GFP_DMA_BIT,
    H_COMMITTED_PAGES,
    H_META_PAGES,
    H_MOBILITY,
    HUGE_ALWAYS,
    HUGE_AUTO,
    HUGE_NEVER,
    KIND_PAGES,
    KIND_RECORD,
    KIND_SLAB,
    M_BLOCKS,
    M_COUNTS,
    M_HEADS,
    M_PINNED,
    M_WORDS,
    MIN_PAGE_BLOCKS,
    Z_END_PFN,
    Z_FRONTIER_PFN,
    Z_PAGE_BLOCK_ORDER,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.mobility import ungroup
from realalloc.mm.page_alloc import alloc_run, free_pages
from realalloc.mm.resize import krealloc_in_place

ORDER = 4  # of the page blocks here
WHOLE = 1 << ORDER
ROOM = MIB + 52 * PAGE  # some seventeen page blocks
EVERYTHING = 1 << 30


def groups(raw: RawArena, field: int, zone: int = ZONE_NORMAL) -> int:
    return int(raw.words[raw.words[H_MOBILITY] + zone * M_WORDS + field])


def held(raw: RawArena, pfn: int, order: int = ORDER) -> int:
    """Unmovable pages in the page block of ``pfn``, as the table counts them."""
    return int(raw.words[raw.words[H_MOBILITY] + M_BLOCKS + (pfn >> order)]) & (M_PINNED - 1)


class Zone:
    """A plain model of zone NORMAL: what every page is, and which choices a request has."""

    def __init__(self, raw: RawArena) -> None:
        self.raw = raw
        self.start, self.end = zone_word(raw, 0, Z_START_PFN), zone_word(raw, 0, Z_END_PFN)
        self.blocks: dict[int, tuple[int, int]] = {}  # pfn: order, kind
        self.owner: dict[int, int] = {}  # page: kind
        self.pinned = {self.start // WHOLE} if self.start % WHOLE else set()

    def members(self, block: int) -> range:
        return range(max(block * WHOLE, self.start), min((block + 1) * WHOLE, self.end))

    def is_whole(self, block: int) -> bool:
        """Whether the page block is free whole: 16 free pages that are one block, or will be; or the zone's last few
        pages, while the frontier has not come to them.
        """
        pages = self.members(block)
        far = pages[-1] + 1 == self.end and zone_word(self.raw, 0, Z_FRONTIER_PFN) < pages[0]
        return (len(pages) == WHOLE or far) and not any(pfn in self.owner for pfn in pages)

    def is_unmovable(self, block: int) -> bool:
        return block in self.pinned or any(self.owner.get(p) in (KIND_SLAB, KIND_RECORD) for p in self.members(block))

    def places(self, order: int) -> set[int]:
        """All page blocks in which a block of an order below ORDER could be had."""
        size = 1 << order
        first = -(-self.start // size) * size
        found = set()
        for pfn in range(first, self.end - size + 1, size):
            if not any(page in self.owner for page in range(pfn, pfn + size)):
                found.add(pfn // WHOLE)
        return found

    def alloc(self, order: int, kind: int) -> int:
        """Ask, and check that the answer is one of the best choices."""
        places = self.places(order)
        whole = {place for place in places if self.is_whole(place)}
        unmovable = {place for place in places if self.is_unmovable(place)}
        pfn = int(alloc_block_locked(self.raw.words, ZONE_NORMAL, order, kind, 0))
        if pfn < 0:
            assert pfn == ENOMEM
            assert not places
            return 0
        block = pfn // WHOLE
        assert pfn % (1 << order) == 0
        assert block in places or order >= ORDER
        if order < ORDER:
            self.check_choice(block, places, whole, unmovable, kind)
        self.take(pfn, order, kind)
        return pfn

    def check_choice(self, block: int, places: set[int], whole: set[int], unmovable: set[int], kind: int) -> None:
        assert not whole & unmovable
        if kind == KIND_PAGES:
            ranks = [places - whole - unmovable, whole, unmovable]
        else:  # never in a free page block while another choice exists
            ranks = [unmovable, places - whole - unmovable, whole]
        assert block in next(rank for rank in ranks if rank)

    def take(self, pfn: int, order: int, kind: int) -> None:
        self.blocks[pfn] = order, kind
        for page in range(pfn, pfn + (1 << order)):
            assert page not in self.owner
            self.owner[page] = kind

    def free(self, pfn: int) -> None:
        order, _ = self.blocks.pop(pfn)
        free_block_locked(self.raw.words, pfn)
        for page in range(pfn, pfn + (1 << order)):
            del self.owner[page]

    def check(self) -> None:
        assert validate_buddy(self.raw.words) == 0
        for block in range(self.start // WHOLE, -(-zone_word(self.raw, 0, Z_FRONTIER_PFN) // WHOLE)):
            lasting = [p for p in self.members(block) if self.owner.get(p) in (KIND_SLAB, KIND_RECORD)]
            assert held(self.raw, block * WHOLE) == len(lasting)
        assert len(self.owner) + sum(1 << order for order, _ in free_blocks(self.raw)) == (
            zone_word(self.raw, 0, Z_FRONTIER_PFN) - self.start
        )


def zone_of_blocks(max_order: int = ORDER, **how) -> Zone:
    raw = RawArena(ROOM, max_order, sheaves=False, **how)
    assert zone_word(raw, ZONE_NORMAL, Z_PAGE_BLOCK_ORDER) == ORDER
    return Zone(raw)


@pytest.mark.parametrize("kind", [KIND_SLAB, KIND_PAGES, KIND_RECORD])
@pytest.mark.parametrize("order", range(ORDER))
def test_every_mixture_of_three_page_blocks_is_served_by_the_best_choice(order: int, kind: int) -> None:
    """All others are full: each of three is free, full, or partly so, with a slab page or without, in every order."""
    zone = zone_of_blocks()
    while zone.alloc(0, KIND_PAGES):
        pass
    blocks = [(zone.start // WHOLE + k) * WHOLE for k in (3, 4, 9)]
    shapes = {  # which pages are free, and which become a slab
        "free": (range(WHOLE), ()),
        "full": ((), ()),
        "a page": ((7,), ()),
        "half": (range(8, 16), ()),
        "odd pages": (range(1, 16, 2), ()),
        "all but one": (range(1, 16), ()),
        "a slab and half": (range(8, 16), (0,)),
        "a slab and a page": ((3,), (15,)),
    }
    for three in itertools.product(shapes, repeat=3):
        for begin, shape in zip(blocks, three, strict=True):
            for k in shapes[shape][1]:
                zone.free(begin + k)
                assert zone.alloc(0, KIND_SLAB) == begin + k
        for begin, shape in zip(blocks, three, strict=True):
            for k in shapes[shape][0]:
                zone.free(begin + k)
        got = zone.alloc(order, kind)
        zone.check()
        if got:
            zone.free(got)
        for begin in blocks:  # full again
            for pfn in [pfn for pfn in range(begin, begin + WHOLE) if zone.blocks.get(pfn, (0, 0))[1] == KIND_SLAB]:
                zone.free(pfn)
        while zone.alloc(0, KIND_PAGES):
            pass


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_order", [ORDER])
def test_a_random_life_of_all_kinds(seed: int, max_order: int) -> None:
    rng = random.Random(seed)
    zone = zone_of_blocks(max_order)
    for step in range(2500 if JIT else 500):
        if rng.random() < (0.7 if step // 200 % 2 else 0.45):
            kind = rng.choice((KIND_SLAB, KIND_PAGES, KIND_PAGES, KIND_RECORD))
            order = 0 if kind == KIND_RECORD else rng.choice((0, 0, 1, 2, 3) if kind == KIND_SLAB else (0, 1, 2, 3, 4))
            zone.alloc(order, kind)
        elif zone.blocks:
            zone.free(rng.choice(sorted(zone.blocks)))
        zone.check()
        if step % 300 == 0:
            trim(zone.raw)
            zone.check()
    for pfn in list(zone.blocks):
        zone.free(pfn)
    assert_pristine(zone.raw)


class Groups(RuleBasedStateMachine):
    """Blocks of all kinds, runs and blocks that grow, trims and purges, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.zone = zone_of_blocks(limit=ROOM // 2)
        self.limited = False
        self.runs: dict[int, int] = {}

    @rule(order=st.integers(0, 3), record=st.booleans())
    def slab(self, order: int, record: bool) -> None:
        self.ask(0 if record else order, KIND_RECORD if record else KIND_SLAB)

    @rule(order=st.integers(0, ORDER))
    def pages(self, order: int) -> None:
        self.ask(order, KIND_PAGES)

    def ask(self, order: int, kind: int) -> None:
        if zone_pages(self.zone.raw) // 2 - WHOLE > len(self.zone.owner):
            self.zone.alloc(order, kind)
        else:  # the limit may refuse what has a place
            pfn = int(alloc_block_locked(self.zone.raw.words, ZONE_NORMAL, order, kind, 0))
            if pfn > 0:
                self.zone.take(pfn, order, kind)

    @rule(pages=st.integers(1, 70))
    def run(self, pages: int) -> None:
        pfn = int(alloc_run(self.zone.raw.words, pages, 0))
        if pfn > 0:
            self.runs[pfn] = pages
            for page in range(pfn, pfn + pages):
                assert page not in self.zone.owner
                self.zone.owner[page] = KIND_PAGES

    @precondition(lambda self: self.zone.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.zone.free(data.draw(st.sampled_from(sorted(self.zone.blocks))))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def free_run(self, data: st.DataObject) -> None:
        pfn = data.draw(st.sampled_from(sorted(self.runs)))
        for page in range(pfn, pfn + self.runs.pop(pfn)):
            del self.zone.owner[page]
        assert free_pages(self.zone.raw.words, pfn, -1) == 0

    @rule()
    def trim(self) -> None:
        trim(self.zone.raw)

    @rule()
    def purge(self) -> None:
        purge_locked(self.zone.raw.words, EVERYTHING, 0, 1)
        assert dirty_pages(self.zone.raw) == set()

    @invariant()
    def exact(self) -> None:
        self.zone.check()


Groups.TestCase.settings = settings(max_examples=50 if JIT else 10, stateful_step_count=40, deadline=None)
TestGroups = Groups.TestCase


def test_free_blocks_of_both_types_give_their_memory_back() -> None:
    zone = zone_of_blocks()
    taken = [zone.alloc(0, KIND_SLAB if k % 3 else KIND_PAGES) for k in range(150)]
    for pfn in taken[::2]:
        zone.free(pfn)
    own = [groups(zone.raw, M_COUNTS + order) for order in range(ORDER)]
    assert any(own)
    assert len(dirty_pages(zone.raw)) == 75
    assert purge_locked(zone.raw.words, EVERYTHING, 0, 1) == 75
    assert dirty_pages(zone.raw) == set()
    zone.check()


@pytest.mark.parametrize("kind", [KIND_SLAB, KIND_PAGES])
def test_a_request_over_the_limit_changes_no_group(kind: int) -> None:
    zone = zone_of_blocks(limit=40 * PAGE)
    for k in range(40):
        assert zone.alloc(0, KIND_SLAB if k % 2 else KIND_PAGES)
    counts = [held(zone.raw, pfn) for pfn in range(0, zone.end, WHOLE)]
    assert alloc_block_locked(zone.raw.words, ZONE_NORMAL, 3 if kind == KIND_SLAB else 0, kind, 0) == ENOMEM
    assert [held(zone.raw, pfn) for pfn in range(0, zone.end, WHOLE)] == counts
    zone.check()


def test_a_run_across_page_blocks_does_not_hide_what_is_free_behind_it() -> None:
    zone = zone_of_blocks()
    whole = (zone.start // WHOLE + 2) * WHOLE
    run = int(alloc_run(zone.raw.words, 3 * WHOLE - 5, 0))
    assert run % WHOLE == 0
    tail = run + 3 * WHOLE - 5
    for page in range(run, tail):
        zone.owner[page] = KIND_PAGES
    while len(zone.blocks) < zone.start % WHOLE + WHOLE + 5:
        if zone.alloc(0, KIND_SLAB) // WHOLE == tail // WHOLE:
            break
    assert whole <= run + 2 * WHOLE
    assert held(zone.raw, tail) == 1
    zone.check()
    zone.free(max(pfn for pfn in zone.blocks if pfn >= tail))
    assert held(zone.raw, tail) == 0
    zone.check()


def test_a_block_that_grows_takes_free_pages_of_either_type() -> None:
    raw = RawArena(64 * MIB, 10, sheaves=False)
    big, behind = (int(kmalloc(raw.words, 256 << 10, 0)) for _ in range(2))
    assert behind == big + (256 << 10)
    small = []
    while held(raw, big // PAGE, 9) == 0:
        small.append(int(kmalloc(raw.words, 4096, 0)))
    assert kfree(raw.words, behind) == 0
    own = groups(raw, M_COUNTS + 6)
    assert own > 0
    assert krealloc_in_place(raw.words, big, 512 << 10) == big
    assert groups(raw, M_COUNTS + 6) == own - 1
    raw.validate()
    for offset in [*small, big]:
        assert kfree(raw.words, offset) == 0
    raw.validate()
    assert_pristine(raw)


@pytest.mark.parametrize("huge", [HUGE_NEVER, HUGE_AUTO, HUGE_ALWAYS])
def test_slabs_lie_together_and_large_blocks_leave_whole_page_blocks(huge: int) -> None:
    """What it is for, in small: among 32 MiB of large blocks, a thousand slab pages, then the large ones go."""
    raw = RawArena(96 * MIB, 10, sheaves=False, huge=huge)
    rng = random.Random(1)
    large: list[int] = []
    slabs: list[int] = []
    for step in range(4000 if JIT else 800):
        if step % 4:
            slabs.append(int(kmalloc(raw.words, 4096, 0)))
        else:
            large.append(int(kmalloc(raw.words, rng.choice((16, 60, 200, 900)) << 10, 0)))
        if len(large) > 60:
            assert kfree(raw.words, large.pop(rng.randrange(60))) == 0
    assert min(large + slabs) > 0
    for offset in large:
        assert kfree(raw.words, offset) == 0
    raw.validate()
    frontier = zone_word(raw, 0, Z_FRONTIER_PFN)
    used = {offset >> 21 for offset in slabs}
    assert len(used) <= 3 + len(slabs) // 512
    assert sum(1 << order - 9 for order, _ in free_blocks(raw) if order >= 9) >= (frontier >> 9) - len(used) - 1
    for offset in slabs:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


def test_small_zones_and_small_blocks_are_not_grouped() -> None:
    cases = ((MIB, ORDER, 0), (2 * MIB, 3, 0), (ROOM, ORDER, ORDER), (16 * MIB, 10, 0), (64 * MIB, 10, 9))
    for size, max_order, order in cases:
        raw = RawArena(size, max_order)
        assert zone_word(raw, ZONE_NORMAL, Z_PAGE_BLOCK_ORDER) == order
        blocks = zone_word(raw, 0, Z_END_PFN) // WHOLE - -(-zone_word(raw, 0, Z_START_PFN) // WHOLE)
        assert order != ORDER or blocks >= MIN_PAGE_BLOCKS
        slab = [int(kmalloc(raw.words, 4096, 0)) for _ in range(30)]
        raw.validate()
        for offset in slab:
            kfree(raw.words, offset)
        assert_pristine(raw)


@pytest.mark.parametrize("dma_pages", [7, 40, 300, 333])
def test_a_page_block_of_two_zones_is_pinned(dma_pages: int) -> None:
    raw = RawArena(3 * MIB, ORDER, dma=dma_pages * PAGE, sheaves=False)
    border = zone_word(raw, ZONE_NORMAL, Z_START_PFN)
    assert zone_word(raw, ZONE_NORMAL, Z_PAGE_BLOCK_ORDER) == ORDER
    assert zone_word(raw, ZONE_DMA, Z_PAGE_BLOCK_ORDER) == (ORDER if dma_pages >= 300 else 0)
    shared = border % WHOLE != 0
    assert raw.words[raw.words[H_MOBILITY] + M_BLOCKS + (border >> ORDER)] == (M_PINNED if shared else 0)
    assert raw.words[H_META_PAGES] + dma_pages == border
    offsets = []
    for gfp in (0, GFP_DMA_BIT):
        while (offset := int(kmalloc(raw.words, 4096, gfp))) > 0:
            offsets.append(offset)
        raw.validate()
    random.Random(2).shuffle(offsets)
    for k, offset in enumerate(offsets):
        assert kfree(raw.words, offset) == 0
        if k % 100 == 0:
            raw.validate()
    trim(raw)  # empty slabs are kept
    raw.validate()
    assert raw.words[raw.words[H_MOBILITY] + M_BLOCKS + (border >> ORDER)] == (M_PINNED if shared else 0)


def test_without_grouping_everything_goes_on_as_one_type() -> None:
    zone = zone_of_blocks()
    for k in range(150):
        zone.alloc(k % 3, KIND_SLAB if k % 2 else KIND_PAGES)
    for pfn in sorted(zone.blocks)[::3]:
        zone.free(pfn)
    before = free_blocks(zone.raw)
    assert any(groups(zone.raw, M_COUNTS + order) for order in range(ORDER))
    ungroup(zone.raw.words)
    assert free_blocks(zone.raw) == before
    assert [groups(zone.raw, word) for word in range(M_COUNTS + ORDER)] == [0] * (M_COUNTS + ORDER)
    assert validate_buddy(zone.raw.words) == 0
    for pfn in list(zone.blocks):
        zone.free(pfn)
    assert zone.raw.words[H_COMMITTED_PAGES] > 0
    assert_pristine(zone.raw)


def miscount(raw: RawArena, pfn: int) -> None:
    raw.words[raw.words[H_MOBILITY] + M_BLOCKS + (pfn >> ORDER)] += 1


def wrong_list(raw: RawArena, pfn: int) -> None:
    """Make a page block's type another than its lists say."""
    raw.words[raw.words[H_MOBILITY] + M_BLOCKS + (pfn >> ORDER)] = 0


@pytest.mark.parametrize("damage", [miscount, wrong_list])
def test_the_walker_reports(damage) -> None:
    zone = zone_of_blocks()
    taken = [zone.alloc(0, KIND_SLAB) for _ in range(WHOLE + 5)]
    zone.check()
    damage(zone.raw, taken[-1])
    assert validate_buddy(zone.raw.words) == BAD_PAGE_BLOCK


def test_a_block_on_the_list_of_another_type_is_found() -> None:
    zone = zone_of_blocks()
    taken = [zone.alloc(0, KIND_PAGES) for _ in range(WHOLE)]
    zone.free(taken[3])
    zone.check()
    words = zone.raw.words
    words[words[H_MOBILITY] + M_HEADS] = taken[3] << 32 | taken[3]
    words[words[H_MOBILITY] + M_COUNTS] = 1
    assert validate_buddy(words) != 0
