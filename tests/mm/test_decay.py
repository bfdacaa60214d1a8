"""What kswapd does for one arena, step by step, by a clock of our own: dirty pages, what threads keep, lazy areas."""

from __future__ import annotations

import pytest
from kernels import assert_pristine, class_cache, dirty_pages, field, octets, records, trim
from support import MIB, PAGE, RawArena

from realalloc.mm.commit import DROP_PAGES, purge
from realalloc.mm.decay import BRIEF_NS, DRAIN_SHEAVES, IDLE_NS, decay_tick, serve, set_decay
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import (
    C_NR_BARN_FULL,
    DECAY,
    DECAY_EPOCHS,
    H_ALLOCATED_PAGES,
    H_CLOSED,
    H_COMMITTED_PAGES,
    H_VM_LAZY_PAGES,
    HUGE_AUTO,
    MAX_SHEAF_OBJECTS,
    Y_EPOCH_NS,
    Y_NS,
    Y_PENDING,
    Y_PURGED,
    Y_SERVED,
    Y_SMALL,
    Y_STUCK,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages

STEP = 10 * BRIEF_NS
DECAY_NS = STEP * DECAY_EPOCHS


class Served:
    """A raw arena with a clock."""

    def __init__(self, size: int = 32 * MIB, max_order: int = 10, decay_ns: int = DECAY_NS, huge: int = 0) -> None:
        self.raw = RawArena(size, max_order, huge=huge)
        set_decay(self.raw.words, decay_ns)
        serve(self.raw.words, 1, 0)
        self.now = int(self.raw.words[DECAY + Y_EPOCH_NS])
        self.tick()

    def tick(self) -> int:
        return int(decay_tick(self.raw.words, self.now))

    def run(self, epochs: float) -> int:
        """Let time pass, doing what is due; return how many steps that took."""
        end = self.now + int(epochs * STEP)
        steps = 0
        while self.now < end:
            due = self.tick()
            assert due >= 0
            self.now += min(due, end - self.now)
            steps += 1
        return steps

    def burst(self, count: int, order: int) -> None:
        """Write into blocks and free them."""
        taken = [int(alloc_pages(self.raw.words, order, 0)) for _ in range(count)]
        for pfn in taken:
            octets(self.raw, pfn * PAGE, PAGE << order)[:] = 1
        for pfn in taken:
            assert free_pages(self.raw.words, pfn, order) == 0

    @property
    def committed(self) -> int:
        return int(self.raw.words[H_COMMITTED_PAGES])


def test_all_goes_back_within_the_decay_time_and_no_sooner() -> None:
    it = Served()
    it.burst(4, 10)
    seen = [it.committed]
    assert seen[0] >= 4 << 10
    for _ in range(DECAY_EPOCHS + 2):
        it.run(1)
        seen.append(it.committed)
        it.raw.validate()
    assert seen[2] > 0.95 * seen[0]
    assert seen == sorted(seen, reverse=True)
    assert 0.3 * seen[0] < seen[DECAY_EPOCHS // 2] < 0.7 * seen[0]
    it.run(DECAY_EPOCHS)  # what the thread kept became free when the first decay time was over
    assert it.committed <= 16
    assert it.raw.words[DECAY + Y_PURGED] >= (4 << 10) - 16
    assert it.raw.words[DECAY + Y_STUCK] == 0
    assert_pristine(it.raw)


def test_a_step_gives_back_no_more_than_its_share() -> None:
    it = Served()
    it.burst(6, 10)
    before = it.committed
    it.now += 100 * DECAY_NS
    while it.tick() == 0:
        assert 0 <= before - it.committed <= 2 * DROP_PAGES
        before = it.committed
        it.now += STEP // 100
    it.now += 100 * DECAY_NS
    while it.tick() == 0:
        assert 0 <= before - it.committed <= 2 * DROP_PAGES
        before = it.committed
    assert it.raw.words[DECAY + Y_PENDING] == 0


def test_what_is_used_all_the_time_stays() -> None:
    it = Served()
    for _ in range(5 * DECAY_EPOCHS):
        it.burst(2, 8)
        it.run(1)
    assert it.committed >= 2 << 8  # never given back, though it was free each time kswapd looked
    assert it.raw.words[DECAY + Y_PURGED] <= 2 << 8


def test_what_threads_keep_goes_back_too() -> None:
    it = Served()
    offsets = [int(kmalloc(it.raw.words, 1000, 0)) for _ in range(3000)]
    for offset in offsets:
        assert kfree(it.raw.words, offset) == 0
    assert records(it.raw) != []
    it.run(3 * DECAY_EPOCHS + 2)
    it.raw.validate()
    assert records(it.raw) == []
    assert it.committed <= 16
    assert_pristine(it.raw)


def test_a_barn_of_many_sheaves_goes_back_with_the_rest() -> None:
    it = Served(64 * MIB)
    for _ in range(2):  # asked for again: a barn's room grows with use
        offsets = [int(kmalloc(it.raw.words, 16, 0)) for _ in range(40 * DRAIN_SHEAVES * MAX_SHEAF_OBJECTS // 10)]
        for offset in offsets:
            assert kfree(it.raw.words, offset) == 0
    assert field(it.raw, class_cache(it.raw, 16), C_NR_BARN_FULL) > 2 * DRAIN_SHEAVES
    it.run(DECAY_EPOCHS // 2 + 2)
    assert field(it.raw, class_cache(it.raw, 16), C_NR_BARN_FULL) == 0
    assert records(it.raw) == []
    it.raw.validate()
    it.run(3 * DECAY_EPOCHS)
    assert it.committed <= 16
    assert_pristine(it.raw)


def test_lazy_areas_go_back_when_they_are_old_the_oldest_first() -> None:
    it = Served(64 * MIB)
    areas = [int(kmalloc(it.raw.words, (4 << 20) + 1, 0)) for _ in range(2)]
    for offset in areas:
        octets(it.raw, offset, 4 << 20)[:] = 1
    kfree(it.raw.words, areas[0])
    lazy = int(it.raw.words[H_VM_LAZY_PAGES])
    assert lazy > 0
    it.run(DECAY_EPOCHS // 2)
    kfree(it.raw.words, areas[1])
    assert it.raw.words[H_VM_LAZY_PAGES] == 2 * lazy
    it.run(DECAY_EPOCHS // 2 + 1)
    assert it.raw.words[H_VM_LAZY_PAGES] == lazy
    it.run(DECAY_EPOCHS // 2 + 1)
    assert it.raw.words[H_VM_LAZY_PAGES] == 0
    assert it.committed <= 16
    assert_pristine(it.raw)


def test_zero_means_at_once_for_all_that_is_free() -> None:
    it = Served(decay_ns=-1)
    it.burst(4, 10)
    area = int(kmalloc(it.raw.words, (4 << 20) + 1, 0))
    octets(it.raw, area, 4 << 20)[:] = 1
    kfree(it.raw.words, area)
    assert it.committed > 4 << 10
    set_decay(it.raw.words, 0)
    assert it.raw.words[H_VM_LAZY_PAGES] == 0
    assert it.committed <= 16 + (1 << 9)  # a block of 2 MiB at most is with the thread
    area = int(kmalloc(it.raw.words, (4 << 20) + 1, 0))
    kfree(it.raw.words, area)
    assert it.raw.words[H_VM_LAZY_PAGES] == 0
    it.run(3)
    assert it.committed <= 16
    it.raw.validate()
    assert_pristine(it.raw)


@pytest.mark.parametrize("why", ["closed", "not wanted", "never"])
def test_an_arena_that_wants_nothing_gets_nothing(why: str) -> None:
    it = Served()
    it.burst(2, 10)
    before = it.committed
    if why == "closed":
        it.raw.words[H_CLOSED] = 1
    elif why == "not wanted":
        serve(it.raw.words, 0, 0)
    else:
        set_decay(it.raw.words, -1)
    for _ in range(40):
        assert it.tick() == IDLE_NS
        it.now += DECAY_NS
    assert it.raw.words[DECAY + Y_SERVED] == 0
    assert it.committed == before
    it.raw.words[H_CLOSED] = 0


def test_pages_that_cannot_go_do_not_make_others_go_early() -> None:
    it = Served(huge=HUGE_AUTO)
    big = int(alloc_pages(it.raw.words, 10, 0))
    octets(it.raw, big * PAGE, 4 << 20)[:] = 1
    free_pages(it.raw.words, big, 10)
    purge(it.raw.words, 0, 0, 0)
    kept = []
    while not kept or not big <= kept[-1] < big + 1024:  # one page in use in each huge unit that was written
        kept.append(int(alloc_pages(it.raw.words, 0, 0)))
    it.run(DECAY_EPOCHS + 2)
    stuck = it.committed
    it.run(2)
    assert it.committed == stuck
    it.burst(1, 10)
    it.run(2)
    assert it.committed >= stuck + 512  # as young as can be; less than a huge unit may be rounded up to one
    it.run(2 * DECAY_EPOCHS)
    assert it.committed <= stuck + 16
    for pfn in kept:
        free_pages(it.raw.words, pfn, 0)
    it.raw.validate()
    assert_pristine(it.raw)


def test_dirty_pages_are_counted_as_they_lie_on_the_lists() -> None:
    it = Served()
    it.burst(3, 7)
    assert len(dirty_pages(it.raw)) == it.committed - int(it.raw.words[H_ALLOCATED_PAGES])
    assert it.raw.words[DECAY + Y_NS] == DECAY_NS


def test_clean_holes_hold_nothing_back() -> None:
    """Small free blocks without memory once stood for dirty ones, and as many pages never went."""
    it = Served(64 * MIB)
    singles = []
    while (pfn := int(alloc_pages(it.raw.words, 0, 0))) > 0:
        singles.append(pfn)
    singles.sort()
    for pfn in singles[: len(singles) // 2 : 2]:
        free_pages(it.raw.words, pfn, 0)
    trim(it.raw)
    used = it.committed
    assert it.raw.words[DECAY + Y_SMALL] == 0
    for pfn in singles[len(singles) // 2 :]:
        octets(it.raw, pfn * PAGE, 8)[:] = 1
        free_pages(it.raw.words, pfn, 0)
    it.run(3 * DECAY_EPOCHS)
    assert it.committed <= used - len(singles) // 2 + 64
    it.raw.validate()


def test_an_idle_arena_is_looked_at_seldom() -> None:
    for decay_ns in (0, 10 * BRIEF_NS, DECAY_NS):
        it = Served(decay_ns=decay_ns)
        it.burst(2, 9)
        it.run(40 * DECAY_EPOCHS)
        assert it.tick() == IDLE_NS
