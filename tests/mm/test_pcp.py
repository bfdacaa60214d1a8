"""Page blocks that a thread keeps: every order and fill level, exact refusals, batches, and threads that are disturbed."""

from __future__ import annotations

import itertools
import random
import threading

import numba
import pytest
from kernels import (
    Worker,
    assert_pristine,
    assert_unchanged,
    holds,
    identity,
    is_zero,
    kept_blocks,
    main_sheaf,
    metadata,
    own_record,
    page_kind,
    slots,
    spare_sheaf,
    write,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.decay import set_decay
from realalloc.mm.drain import cached_objects
from realalloc.mm.kmalloc import kfree, kfree_fast, kmalloc, kmalloc_fast, ksize
from realalloc.mm.layout import (
    D_PUT,
    D_PUT_END,
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ZERO_BIT,
    H_BAD_FREES,
    H_BLOCKS,
    H_COMMITTED_PAGES,
    H_NR_RECORDS,
    KIND_CACHED,
    KIND_LARGE,
    KIND_PAGES,
    MAX_BLOCK_SHEAF_BYTES,
    MAX_SHEAF_OBJECTS,
    MIN_SHEAVES_PAGES,
    SHEAF_BLOCK_ORDERS,
    SHEAF_BLOCKS,
    SHEAF_DESC_WORDS,
    T_RECENT,
)
from realalloc.mm.page_alloc import alloc_pages, alloc_run, free_pages
from realalloc.mm.pcp import BATCH_ORDERS
from realalloc.mm.pcp_walkers import validate_kept_blocks
from realalloc.mm.reclaim import drain_locked, reclaim
from realalloc.mm.resize import krealloc_in_place

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def capacity_of(pages: int, order: int) -> int:
    """A sheaf's share of the arena: a 64th, 512 KiB, 60 blocks; one block at least, if that is in the share."""
    share = pages // 64 // (1 << order)
    if order >= SHEAF_BLOCK_ORDERS or share == 0:
        return 0
    return min(share, max(1, min(MAX_BLOCK_SHEAF_BYTES // (PAGE << order), MAX_SHEAF_OBJECTS)))


def batch_of(pages: int, order: int) -> int:
    """zone_batchsize of mm/page_alloc.c for single pages, as many bytes for other orders up to 3."""
    batch = max(min(pages >> 12, 64), 0)
    batch = (1 << (max(batch + batch // 2, 1).bit_length() - 1)) - 1
    return max(1, min(batch >> order, capacity_of(pages, order) // 2)) if order < 4 else 1


def descriptor(raw: RawArena, order: int) -> int:
    return own_record(raw) + (SHEAF_BLOCKS + order) * SHEAF_DESC_WORDS


def kept_of_mine(raw: RawArena, order: int) -> tuple[list[int], list[int]]:
    d = descriptor(raw, order)
    return [at // PAGE for at in main_sheaf(raw, d)], [at // PAGE for at in spare_sheaf(raw, d)]


class Twin:
    """What a thread's two sheaves of an order should hold."""

    def __init__(self, raw: RawArena, order: int) -> None:
        self.raw, self.order = raw, order
        self.capacity = capacity_of(raw.plan.end_pfn, order)
        self.main: list[int] = []
        self.spare: list[int] = []
        self.live: list[int] = []

    def alloc(self) -> None:
        pfn = int(alloc_pages(self.raw.words, self.order, 0))
        assert pfn > 0
        assert pfn % (1 << self.order) == 0
        if self.order >= BATCH_ORDERS:  # the one that was freed last
            near = self.spare or self.main
        else:
            if not self.main and len(self.spare) > 1:  # of one block there is nothing to exchange
                self.main, self.spare = self.spare, []
            near = self.main or self.spare
        if near:
            assert pfn == near.pop()
        elif batch_of(self.raw.plan.end_pfn, self.order) > 1:
            self.main = kept_of_mine(self.raw, self.order)[0]
            assert len(self.main) == batch_of(self.raw.plan.end_pfn, self.order) - 1
        assert page_kind(self.raw, pfn) == KIND_PAGES
        assert pfn not in self.live
        self.live.append(pfn)

    def free(self, pfn: int) -> None:
        self.live.remove(pfn)
        assert free_pages(self.raw.words, pfn, self.order) == 0
        if self.capacity == 0:
            return
        if len(self.spare) == self.capacity:
            if not self.main:
                self.main, self.spare = self.spare, []
            else:  # the colder half, one at least, goes to the buddy
                self.spare = self.spare[(self.capacity + 1) // 2 :]
        self.spare.append(pfn)

    def check(self) -> None:
        raw = self.raw
        if self.capacity and own_record(raw) and self.main + self.spare:
            assert kept_of_mine(raw, self.order) == (self.main, self.spare)
        kept = kept_blocks(raw, self.order)
        assert kept == sorted(self.main + self.spare)
        assert cached_objects(raw.words, SHEAF_BLOCKS + self.order) == len(kept)
        assert {page_kind(raw, pfn) for pfn in kept} <= {KIND_CACHED}
        assert raw.words[H_BLOCKS] == len(kept) + len(self.live)
        assert len({*kept, *self.live}) == len(kept) + len(self.live)
        assert validate_kept_blocks(raw.words) == 0


@pytest.mark.parametrize("order", [4, 6, 8])
def test_of_large_blocks_the_one_that_was_freed_last_comes_first(order: int) -> None:
    raw = RawArena(256 * MIB, 10)
    blocks = [int(alloc_pages(raw.words, order, 0)) for _ in range(2)]
    for pfn in blocks * 3:  # however sheaves were exchanged in between
        assert free_pages(raw.words, pfn, order) == 0
        assert alloc_pages(raw.words, order, 0) == pfn
    for pfn in blocks:
        assert free_pages(raw.words, pfn, order) == 0
    assert [int(alloc_pages(raw.words, order, 0)) for _ in range(2)] == blocks[::-1]
    for pfn in blocks:
        free_pages(raw.words, pfn, order)
    assert_pristine(raw)


@pytest.mark.parametrize("order", range(6))
def test_every_fill_level_of_an_order_and_every_step_from_it(order: int) -> None:
    raw = RawArena(SMALLEST, 5)
    twin, rng = Twin(raw, order), random.Random(order)
    assert twin.capacity == (16, 8, 4, 2, 1, 0)[order]
    taken: dict[tuple[int, int, bool], int] = {}
    for step in range(2500 if JIT else 1000):
        level = len(twin.main), len(twin.spare)
        pops, puts = (taken.get((*level, pop), 0) for pop in (True, False))
        up = step // (3 * twin.capacity + 2) % 2 == 0 if pops == puts else pops < puts
        if not twin.live or (up and len(twin.live) << order < 500):
            taken[*level, True] = pops + 1
            twin.alloc()
        else:
            taken[*level, False] = puts + 1
            twin.free(rng.choice(twin.live))
        twin.check()
    seen = {level[:2] for level in taken}
    assert seen <= set(itertools.product(range(twin.capacity + 1), repeat=2))
    assert seen >= {(0, level) for level in range(twin.capacity + 1)}
    if 0 < twin.capacity <= 4:
        assert seen >= {(level, twin.capacity) for level in range(twin.capacity + 1)}
    for pfn in list(twin.live):
        twin.free(pfn)
    assert_pristine(raw)


@pytest.mark.parametrize("size", [SMALLEST, 64 * MIB, 256 * MIB, 1024 * MIB])
def test_small_orders_are_refilled_in_batches_and_capacities_are_shares(size: int) -> None:
    raw = RawArena(size, 10)
    for order in range(11):
        pfn = int(alloc_pages(raw.words, order, 0))
        if pfn == ENOMEM:  # its largest block is taken by a record
            assert (size, order) == (SMALLEST, 10)
            continue
        assert len(kept_blocks(raw, order) if order < SHEAF_BLOCK_ORDERS else []) == batch_of(size // PAGE, order) - 1
        assert free_pages(raw.words, pfn, order) == 0
        if order < SHEAF_BLOCK_ORDERS and capacity_of(size // PAGE, order) > 0:
            d = descriptor(raw, order)
            base = int(raw.words[d + D_PUT]) - len(spare_sheaf(raw, d)) + 1
            assert raw.words[d + D_PUT_END] - base + 1 == capacity_of(size // PAGE, order)
            assert pfn in kept_blocks(raw, order)
        elif order < SHEAF_BLOCK_ORDERS:
            assert kept_blocks(raw, order) == []
    raw.validate()
    assert_pristine(raw)


QUARTER = 1 << 8  # pages that a thread keeps in the tests that follow, of any order up to 8


def written(raw: RawArena, order: int, count: int) -> list[int]:
    blocks = [int(alloc_pages(raw.words, order, 0)) for _ in range(count)]
    for pfn in blocks:
        write(raw, pfn * PAGE, PAGE << order, pfn)
    return blocks


def keep(raw: RawArena, order: int) -> int:
    """Have the calling thread keep blocks of an order, in an arena where all that is free is fresh; how many pages are not."""
    for pfn in written(raw, order, QUARTER >> order):
        assert free_pages(raw.words, pfn, order) == 0
    assert len(kept_blocks(raw, order)) >= QUARTER >> order
    return int(raw.words[H_COMMITTED_PAGES])


@pytest.mark.parametrize(("order", "wanted"), [(3, 6), (4, 7), (4, 8), (6, 4), (7, 5), (8, 0), (8, 2), (3, 2), (3, 8)])
def test_what_a_thread_keeps_serves_other_orders_before_fresh_memory_does(order: int, wanted: int) -> None:
    raw = RawArena(256 * MIB, 10)
    before = keep(raw, order)
    got = written(raw, wanted, max(1, QUARTER // 2 >> wanted))
    assert raw.words[H_COMMITTED_PAGES] == before
    assert kept_blocks(raw, order) == []
    assert raw.words[H_BLOCKS] == len(got) + len(kept_blocks(raw, wanted))
    assert all(holds(raw, pfn * PAGE, PAGE << wanted, pfn) for pfn in got)
    raw.validate()
    for pfn in got:
        assert free_pages(raw.words, pfn, wanted) == 0
    assert_pristine(raw)


def test_what_a_thread_keeps_stays_where_the_buddy_has_memory_that_was_used() -> None:
    raw = RawArena(256 * MIB, 10)
    used = [int(alloc_pages(raw.words, 10, 0))]  # no thread keeps blocks of that order
    keep(raw, 4)
    kept = kept_blocks(raw, 4)
    assert free_pages(raw.words, used[0], 10) == 0
    assert alloc_pages(raw.words, 10, 0) == used[0]
    assert kept_blocks(raw, 4) == kept
    assert free_pages(raw.words, used[0], 10) == 0
    assert_pristine(raw)


def test_fresh_memory_leaves_alone_what_other_threads_keep_and_a_request_that_cannot_be_served() -> None:
    raw = RawArena(256 * MIB, 10)
    other = Worker()
    blocks = [int(other.do(alloc_pages, raw.words, 5, 0)) for _ in range(3)]
    for pfn in blocks:
        assert other.do(free_pages, raw.words, pfn, 5) == 0
    mine = int(alloc_pages(raw.words, 6, 0))
    assert kept_blocks(raw, 5) == sorted(blocks)
    assert free_pages(raw.words, mine, 6) == 0
    for order in (11, 18, 63):  # above the largest
        assert alloc_pages(raw.words, order, 0) < 0
    assert kept_blocks(raw, 6) == [mine]
    other.end(raw)
    assert_pristine(raw)


def test_where_freed_memory_goes_back_at_once_what_is_kept_stays_kept() -> None:
    raw = RawArena(256 * MIB, 10)
    assert set_decay(raw.words, 0) == 0
    keep(raw, 4)
    kept = kept_blocks(raw, 4)
    pfn = int(alloc_pages(raw.words, 7, 0))
    assert kept_blocks(raw, 4) == kept
    assert free_pages(raw.words, pfn, 7) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("order", range(SHEAF_BLOCK_ORDERS + 1))
def test_a_second_free_of_a_block_is_refused_exactly(order: int) -> None:
    raw = RawArena(256 * MIB, 10)
    first, second = int(alloc_pages(raw.words, order, 0)), int(alloc_pages(raw.words, order, 0))
    other = Worker()
    assert free_pages(raw.words, first, order) == 0
    before = metadata(raw)
    for wrong in (order, -1, order + 1):
        assert free_pages(raw.words, first, wrong) == EINVAL
        assert other.do(free_pages, raw.words, first, wrong) == EINVAL
    for do in (kfree, ksize):
        assert do(raw.words, first * PAGE) == EINVAL
        assert other.do(do, raw.words, first * PAGE) == EINVAL
    for wrong in {order - 1, order + 1} - {-1}:
        assert free_pages(raw.words, second, wrong) == EINVAL
    if order > 0:
        assert free_pages(raw.words, second + 1, 0) == EINVAL
        assert kfree(raw.words, second * PAGE + PAGE) == EINVAL
    assert_unchanged(raw, before)
    assert free_pages(raw.words, second, -1) == 0
    assert raw.words[H_BAD_FREES] == 0
    other.end(raw)
    assert_pristine(raw)


def test_blocks_of_pages_and_of_kmalloc_share_the_sheaves_and_say_whose_they_are() -> None:
    raw = RawArena(16 * MIB, 6)
    block = int(alloc_pages(raw.words, 2, 0))
    write(raw, block * PAGE, 4 * PAGE, 1)
    assert free_pages(raw.words, block, 2) == 0
    assert page_kind(raw, block) == KIND_CACHED
    offset = int(kmalloc(raw.words, 3 * PAGE, GFP_ZERO_BIT))
    assert offset == block * PAGE
    assert page_kind(raw, block) == KIND_LARGE
    assert is_zero(raw, offset, 4 * PAGE)
    assert ksize(raw.words, offset) == 4 * PAGE
    assert free_pages(raw.words, block, 2) == EINVAL
    write(raw, offset, 4 * PAGE, 2)
    assert kfree(raw.words, offset) == 0
    assert alloc_pages(raw.words, 2, GFP_ZERO_BIT) == block
    assert page_kind(raw, block) == KIND_PAGES
    assert is_zero(raw, offset, 4 * PAGE)
    assert kfree(raw.words, offset) == 0
    assert alloc_pages(raw.words, 2, 0) == block
    assert free_pages(raw.words, block, 2) == 0
    assert_pristine(raw)


def test_runs_and_blocks_of_the_locked_zone_are_not_kept() -> None:
    raw = RawArena(16 * MIB, 6, dma=MIB)
    low, run = int(alloc_pages(raw.words, 1, GFP_DMA_BIT)), int(alloc_run(raw.words, 2, 0))
    large = int(kmalloc(raw.words, 3 * PAGE, GFP_DMA_BIT))
    assert raw.words[H_BLOCKS] == 3
    assert free_pages(raw.words, low, 1) == free_pages(raw.words, run, -1) == kfree(raw.words, large) == 0
    assert raw.words[H_BLOCKS] == 0
    assert all(kept_blocks(raw, order) == [] for order in range(SHEAF_BLOCK_ORDERS))
    assert free_pages(raw.words, low, 1) == free_pages(raw.words, run, -1) == EINVAL
    assert_pristine(raw)


def test_a_drain_gives_every_block_of_every_thread_back_to_the_buddy() -> None:
    raw = RawArena(64 * MIB, 10)
    threads = [Worker() for _ in range(3)]
    used = [int(alloc_pages(raw.words, 10, 0)) for _ in range(12)]
    for pfn in used:  # memory enough that was used: before fresh memory is taken, what is kept would serve
        assert free_pages(raw.words, pfn, 10) == 0
    for order in range(SHEAF_BLOCK_ORDERS):
        for worker in threads:
            blocks = [int(worker.do(alloc_pages, raw.words, order, 0)) for _ in range(3)]
            for pfn in blocks:
                assert worker.do(free_pages, raw.words, pfn, order) == 0
    kept = sum(len(kept_blocks(raw, order)) for order in range(SHEAF_BLOCK_ORDERS))
    assert kept == raw.words[H_BLOCKS] > 3 * 9
    assert raw.words[H_NR_RECORDS] == 3
    raw.validate()
    assert drain_locked(raw.words) == kept + 3
    assert raw.words[H_BLOCKS] == raw.words[H_NR_RECORDS] == 0
    assert drain_locked(raw.words) == 0
    for worker in threads:
        worker.end(raw)
    assert_pristine(raw)


@pytest.mark.parametrize("order", [0, 2, 5])
@pytest.mark.parametrize("pages", [MIN_SHEAVES_PAGES, 2 * MIN_SHEAVES_PAGES])
def test_what_one_thread_keeps_serves_another_when_pages_run_out(order: int, pages: int) -> None:
    raw = RawArena(pages * PAGE, 5)
    threads = [Worker(), Worker()]
    counts = []
    for turn in range(3):
        live = []
        while (pfn := int(threads[turn % 2].do(alloc_pages, raw.words, order, 0))) > 0:
            live.append(pfn)
        assert pfn == ENOMEM
        assert len(set(live)) == len(live)
        assert sum(len(kept_blocks(raw, k)) for k in range(6)) == 0
        counts.append(len(live))
        for k, pfn in enumerate(live):
            write(raw, pfn * PAGE, PAGE << order, k)
        raw.validate()
        for k, pfn in enumerate(live):
            assert holds(raw, pfn * PAGE, PAGE << order, k)
            assert threads[k % 2].do(free_pages, raw.words, pfn, order) == 0
        raw.validate()
    assert max(counts) - min(counts) <= 4
    for worker in threads:
        worker.end(raw)
    assert_pristine(raw)


def recent(raw: RawArena) -> int:
    """What the calling thread's slot names as the large block that was taken last."""
    return int(raw.words[slots(raw)[int(identity())] + T_RECENT])


def taken_twice(raw: RawArena, order: int) -> int:
    """A large block that the calling thread had, and took again from its sheaf."""
    block = int(kmalloc(raw.words, PAGE << order, 0))
    assert kfree(raw.words, block) == 0
    for _ in range(2 * MAX_SHEAF_OBJECTS):  # small orders take turns
        again = int(kmalloc(raw.words, PAGE << order, 0))
        if again == block:
            break
        assert kfree(raw.words, again) == 0
    assert again == block == recent(raw)
    return block


@pytest.mark.parametrize("order", range(2, SHEAF_BLOCK_ORDERS))
@pytest.mark.parametrize("became", range(2, SHEAF_BLOCK_ORDERS))
def test_the_block_taken_last_is_freed_by_what_it_is_now(order: int, became: int) -> None:
    raw, other = RawArena(256 * MIB, 10), Worker()
    block = taken_twice(raw, order)
    assert other.do(kfree, raw.words, block) == 0
    before = metadata(raw)
    assert kfree(raw.words, block) == EINVAL  # in the other's sheaf
    assert_unchanged(raw, before)
    drain_locked(raw.words)
    before = metadata(raw)
    assert kfree(raw.words, block) == EINVAL  # in the buddy
    assert_unchanged(raw, before)
    blocks = []
    while block not in blocks and len(blocks) < 4096:  # another life of it, of another order; lower ones are taken, too
        blocks.append(int(other.do(kmalloc, raw.words, PAGE << became, 0)))
    if block not in blocks:  # inside a larger one
        assert became > order
        assert kfree(raw.words, block) == EINVAL
    else:
        assert recent(raw) == block
        blocks.remove(block)
        assert kfree(raw.words, block + PAGE) == EINVAL
        assert kfree(raw.words, block) == 0
        assert block // PAGE in kept_blocks(raw, became)
        assert kfree(raw.words, block) == EINVAL
    raw.validate()
    for each in blocks:
        assert other.do(kfree, raw.words, each) == 0
    other.end(raw)
    assert_pristine(raw)


def test_the_block_taken_last_that_grew_goes_to_the_sheaf_of_its_order() -> None:
    raw = RawArena(256 * MIB, 10)
    block = taken_twice(raw, 4)
    assert krealloc_in_place(raw.words, block, PAGE << 5) > 0
    assert recent(raw) == block
    assert kfree(raw.words, block) == 0
    assert kept_blocks(raw, 4) == []
    assert kept_blocks(raw, 5) == [block // PAGE]
    raw.validate()
    assert_pristine(raw)


@numba.njit(nogil=True)
def churn_pages(words, rounds, seed, held):
    """Allocate, mark, look and free blocks of small orders; return what was wrong."""
    wrong = 0
    state = seed
    for _ in range(rounds):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        k = (state >> 8) % len(held)
        order = k % 4
        if held[k] != 0:
            if words[held[k] * 512] != seed * 1000 + k or free_pages(words, held[k], order) != 0:
                wrong += 1
            held[k] = 0
        else:
            pfn = alloc_pages(words, order, 0)
            if pfn > 0:
                words[pfn * 512] = seed * 1000 + k
                held[k] = pfn
    return wrong


@numba.njit(nogil=True)
def churn_large(words, rounds, seed, held):
    """The same with kmalloc, of 3 and 16 pages, by its fast paths; each second block is freed at once."""
    wrong = 0
    state = seed
    for _ in range(rounds):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        k = (state >> 8) % len(held)
        size = 3 * 4096 if k % 2 == 0 else 16 * 4096
        if held[k] != 0:
            if words[held[k] * 512] != seed * 1000 + k or kfree_fast(words, held[k] * 4096) != 0:
                wrong += 1
            held[k] = 0
        else:
            offset = kmalloc_fast(words, size, 0)
            if offset > 0:
                words[offset // 8] = seed * 1000 + k
                held[k] = offset // 4096
        offset = kmalloc_fast(words, size, 0)
        if offset > 0:
            words[offset // 8] = -seed
            if words[offset // 8] != -seed or kfree_fast(words, offset) != 0:
                wrong += 1
    return wrong


def life_of_threads(disturb, rounds: int, churn=churn_pages) -> RawArena:
    """Three threads at work, and one that disturbs them until they are done."""
    raw = RawArena(2 * SMALLEST, 5)
    held = [raw.out(24) for _ in range(3)]
    assert churn(raw.words, 1, 1, held[0]) == 0
    disturb(raw)
    wrong: list[int] = []
    threads = [
        threading.Thread(target=lambda k=k: wrong.append(int(churn(raw.words, rounds, k + 1, held[k]))))
        for k in range(3)
    ]
    assert kfree(raw.words, int(held[0].max()) * PAGE) == 0
    held[0][:] = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        disturb(raw)
    for thread in threads:
        thread.join()
    for mine in held:
        for pfn in mine.tolist():
            assert pfn == 0 or kfree(raw.words, pfn * PAGE) == 0
    raw.validate()
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)
    assert wrong == [0, 0, 0]
    return raw


def test_threads_that_are_drained_while_they_work_never_share_a_block() -> None:
    life_of_threads(lambda raw: reclaim(raw.words), 150_000 if JIT else 600)


def test_threads_that_are_drained_while_they_free_what_they_took_last_never_share_a_block() -> None:
    life_of_threads(lambda raw: reclaim(raw.words), 100_000 if JIT else 400, churn_large)


def test_a_walker_among_threads_at_work_raises_no_false_alarm() -> None:
    found: list[int] = []
    life_of_threads(lambda raw: found.append(int(validate_kept_blocks(raw.words))), 600_000 if JIT else 1500)
    life_of_threads(
        lambda raw: found.append(int(validate_kept_blocks(raw.words))), 200_000 if JIT else 700, churn_large
    )
    assert set(found) == {0}
