"""The verbs of caches by sheaves: a model that knows who has what, frees that are refused, threads that share objects."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kernels import (
    Worker,
    assert_pristine,
    assert_unchanged,
    cached,
    class_cache,
    field,
    holds,
    kept_blocks,
    kept_objects,
    make_cache,
    metadata,
    own_record,
    records,
    slots,
    spare_sheaf,
    used,
    write,
)
from support import JIT, PAGE, RawArena

from realalloc.mm.atomic import atomic_load, compare_and_swap
from realalloc.mm.buddy import alloc_block_locked, free_block_locked
from realalloc.mm.drain import cached_objects
from realalloc.mm.kmalloc import kfree, kfree_bulk, kmalloc
from realalloc.mm.kmem_cache import (
    cache_create,
    cache_destroy,
    cache_drain,
    cache_geometry,
    cache_shrink,
    construct_begin,
    construct_put,
    validate_caches,
)
from realalloc.mm.layout import (
    C_OBJECTS,
    C_ORDER,
    C_SHEAF,
    C_SHEAF_CAPACITY,
    C_STRIDE_BYTES,
    CF_CTOR,
    EAGAIN,
    EINVAL,
    ENOMEM,
    GFP_ORDINARY,
    H_BAD_FREES,
    H_BLOCKS,
    H_CLOSED,
    H_NR_RECORDS,
    KIND_PAGES,
    KMALLOC_FINE_SIZES,
    KMALLOC_SIZES,
    MIN_SHEAVES_PAGES,
    SHEAF_BLOCK_ORDERS,
    SHEAF_BLOCKS,
    ZONE_NORMAL,
)
from realalloc.mm.objects import (
    kmem_cache_alloc,
    kmem_cache_alloc_bulk,
    kmem_cache_free,
    kmem_cache_free_bulk,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.pcp_walkers import validate_kept_blocks
from realalloc.mm.reclaim import drain_locked, reclaim

SMALLEST = MIN_SHEAVES_PAGES * PAGE
MAX_ORDER = 5


@contextlib.contextmanager
def workers(count: int, *arenas: RawArena) -> Iterator[list[Worker]]:
    made = [Worker() for _ in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            worker.end(*arenas)


class Life:
    """What the users of an arena know, whichever thread they are: for every live block its length, seed and how it goes."""

    THREADS = 3

    def __init__(self, sizes: tuple[int, ...] = KMALLOC_SIZES) -> None:
        self.raw = RawArena(SMALLEST, MAX_ORDER, sizes=sizes)
        self.threads = [Worker() for _ in range(self.THREADS)]
        self.caches = {make_cache(self.raw, nbytes): nbytes for nbytes in (16, 100, 1000)}
        self.watched = {**self.caches, **{class_cache(self.raw, size): size for size in (8, 64, 192, 512)}}
        self.live: dict[int, tuple[int, int, str, int]] = {}
        self.bad_frees = 0
        self.seed = 0

    def born(self, offset: int, nbytes: int, how: str, arg: int) -> None:
        assert offset > 0
        assert offset not in self.live
        self.seed += 1
        write(self.raw, offset, nbytes, self.seed)
        self.live[offset] = (nbytes, self.seed, how, arg)

    def objects(self, thread: int, index: int, count: int) -> None:
        c, nbytes = list(self.caches.items())[index % len(self.caches)]
        out = self.raw.out(count)
        if self.threads[thread].do(kmem_cache_alloc_bulk, self.raw.words, c, count, 0, out) == 0:
            for offset in out[:count].tolist():
                self.born(offset, nbytes, "cache", c)

    def kmalloc(self, thread: int, nbytes: int, count: int) -> None:
        for _ in range(count):
            offset = int(self.threads[thread].do(kmalloc, self.raw.words, nbytes, 0))
            if offset == ENOMEM:
                break
            self.born(offset, nbytes, "kmalloc", 0)

    def pages(self, thread: int, order: int) -> None:
        pfn = int(self.threads[thread].do(alloc_pages, self.raw.words, order, 0))
        if pfn != ENOMEM:
            self.born(pfn * PAGE, PAGE << order, "pages", order)

    def die(self, thread: int, offset: int) -> None:
        nbytes, seed, how, arg = self.live.pop(offset)
        assert holds(self.raw, offset, nbytes, seed)
        assert self.free(thread, offset, how, arg) == 0

    def free(self, thread: int, offset: int, how: str, arg: int) -> int:
        do, words = self.threads[thread].do, self.raw.words
        if how == "pages":
            return int(do(free_pages, words, offset // PAGE, arg))
        if how == "cache":
            return int(do(kmem_cache_free, words, arg, offset))
        return int(do(kfree, words, offset))

    def free_many(self, thread: int, index: int, count: int) -> None:
        offsets = list(self.live)
        for k in range(min(count, len(offsets))):
            self.die(thread, offsets[(index + k) % len(offsets)])

    def free_twice(self, thread: int, other: int, index: int) -> None:
        """Again by any thread, before anybody allocates; a drain settles it: counted or refused, never obeyed."""
        offset = list(self.live)[index % len(self.live)]
        nbytes, _, how, arg = self.live[offset]
        self.die(thread, offset)
        status = self.free(other, offset, how, arg)
        if how == "pages" or nbytes > KMALLOC_SIZES[-1]:
            assert status == EINVAL
        else:
            assert status in (0, EINVAL)
            self.bad_frees += status == 0
        self.drain()

    def free_wrongly(self, thread: int, index: int, shift: int) -> None:
        """What nobody has: refused, or counted by a drain where an object that its slab has begins there; never obeyed."""
        wrong = list(self.live)[index % len(self.live)] + shift
        kept = {offset for c in self.watched for offset in kept_objects(self.raw, c)}
        kept |= {pfn * PAGE for order in range(SHEAF_BLOCK_ORDERS) for pfn in kept_blocks(self.raw, order)}
        if (
            wrong in self.live
            or wrong in kept
            or any(wrong // PAGE == record * 8 // PAGE for record in records(self.raw))
        ):
            return
        if any(how == "pages" and offset <= wrong < offset + n for offset, (n, _, how, _) in self.live.items()):
            assert self.threads[thread].do(kfree, self.raw.words, wrong) == EINVAL
        for c in self.caches:
            status = self.threads[thread].do(kmem_cache_free, self.raw.words, c, wrong)
            assert status in (0, EINVAL)
            if status == 0:
                self.bad_frees += 1
                self.drain()

    def drain(self) -> None:
        with_lock = drain_locked  # nobody else is at work
        with_lock(self.raw.words)
        assert self.raw.words[H_NR_RECORDS] == 0
        assert self.raw.words[H_BAD_FREES] == self.bad_frees
        for c in self.watched:
            assert used(self.raw, c) == self.users(c)

    def users(self, c: int) -> int:
        if c in self.caches:
            return sum(how == "cache" and arg == c for _, _, how, arg in self.live.values())
        size = self.watched[c]
        below = max((other for other in self.raw.sizes if other < size), default=0)
        return sum(how == "kmalloc" and below < nbytes <= size for nbytes, _, how, _ in self.live.values())

    def give_back(self, how: int) -> None:
        if how == 0:
            self.drain()
        elif how == 1:
            reclaim(self.raw.words)
        else:
            for c in self.caches:
                (cache_drain if how == 2 else cache_shrink)(self.raw.words, c)
                assert cached(self.raw, c) == 0

    def end_thread(self, thread: int) -> None:
        """Another takes its place, and maybe its record."""
        before = len(records(self.raw))
        self.threads[thread].end(self.raw)
        assert len(records(self.raw)) == before
        self.threads[thread] = Worker()

    def check(self) -> None:
        raw = self.raw
        raw.validate()
        assert validate_caches(raw.words) == validate_kept_blocks(raw.words) == 0
        for c in self.watched:
            kept = kept_objects(raw, c)
            assert len(kept) == len(set(kept)) == cached(raw, c)
            assert not set(kept) & set(self.live)
            assert used(raw, c) == len(kept) + self.users(c)
        blocks = 0
        for order in range(SHEAF_BLOCK_ORDERS):
            pfns = kept_blocks(raw, order)
            assert len(pfns) == len(set(pfns)) == cached_objects(raw.words, SHEAF_BLOCKS + order)
            assert not {pfn * PAGE for pfn in pfns} & set(self.live)
            blocks += len(pfns)
        taken = sum(how == "pages" or nbytes > KMALLOC_SIZES[-1] for nbytes, _, how, _ in self.live.values())
        assert raw.words[H_BLOCKS] == blocks + taken
        assert raw.words[H_BAD_FREES] == self.bad_frees
        assert raw.words[H_NR_RECORDS] == len(records(raw))

    def end(self) -> None:
        assert all(holds(self.raw, offset, nbytes, seed) for offset, (nbytes, seed, _, _) in self.live.items())
        for k, offset in enumerate(list(self.live)):
            self.die(k % self.THREADS, offset)
        for c in self.caches:
            assert cache_destroy(self.raw.words, c) == 0
        self.stop()
        assert slots(self.raw) == {}
        assert_pristine(self.raw)

    def stop(self) -> None:
        for worker in self.threads:
            worker.end(self.raw)
        self.threads = []


INDEX = st.integers(0, 1 << 20)
THREAD = st.integers(0, Life.THREADS - 1)
KMALLOC = st.sampled_from([1, 8, 40, 64, 150, 192, 300, 512, 8193, 4 * PAGE, 5 * PAGE, 8 * PAGE])


class Machine(RuleBasedStateMachine):
    """The rules that hypothesis may apply."""

    life: Life | None = None

    @initialize(sizes=st.sampled_from([KMALLOC_SIZES, KMALLOC_FINE_SIZES]))
    def begin(self, sizes: tuple[int, ...]) -> None:
        self.life = Life(sizes)

    @rule(thread=THREAD, index=INDEX, count=st.sampled_from([1, 3, 4, 30, 61, 200]))
    def objects(self, thread: int, index: int, count: int) -> None:
        self.life.objects(thread, index, count)

    @rule(thread=THREAD, nbytes=KMALLOC, count=st.sampled_from([1, 5, 20]))
    def kmalloc(self, thread: int, nbytes: int, count: int) -> None:
        self.life.kmalloc(thread, nbytes, count)

    @rule(thread=THREAD, order=st.integers(0, MAX_ORDER))
    def pages(self, thread: int, order: int) -> None:
        self.life.pages(thread, order)

    @rule(thread=THREAD, index=INDEX, count=st.sampled_from([1, 4, 30, 61, 200]))
    @precondition(lambda self: self.life and self.life.live)
    def free(self, thread: int, index: int, count: int) -> None:
        self.life.free_many(thread, index, count)

    @rule(thread=THREAD, other=THREAD, index=INDEX)
    @precondition(lambda self: self.life and self.life.live)
    def free_twice(self, thread: int, other: int, index: int) -> None:
        self.life.free_twice(thread, other, index)

    @rule(
        thread=THREAD, index=INDEX, shift=st.sampled_from([1, 4, 8, -8, 32, PAGE, -PAGE, 1 << 22, -(1 << 23), 1 << 62])
    )
    @precondition(lambda self: self.life and self.life.live)
    def free_wrongly(self, thread: int, index: int, shift: int) -> None:
        self.life.free_wrongly(thread, index, shift)

    @rule(how=st.integers(0, 3))
    def give_back(self, how: int) -> None:
        self.life.give_back(how)

    @rule(thread=THREAD)
    def end_thread(self, thread: int) -> None:
        self.life.end_thread(thread)

    @invariant()
    def whole(self) -> None:
        if self.life is not None:
            self.life.check()

    def teardown(self) -> None:
        if self.life is not None and self.life.threads:
            try:
                self.life.end()
            finally:
                self.life.stop()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=25 if JIT else 8,
    stateful_step_count=40 if JIT else 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def churned(raw: RawArena, c: int, count: int = 150) -> list[int]:
    """Leave objects in both sheaves and in the barn, and return those that are still in use."""
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(count)]
    for offset in live[1::2]:
        assert kmem_cache_free(raw.words, c, offset) == 0
    return live[::2]


@pytest.mark.parametrize("nbytes", [8, 24, 96, 200, 1000])
def test_frees_of_anything_but_an_object_change_nothing(nbytes: int) -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c, other = make_cache(raw, nbytes), make_cache(raw, nbytes)
    live, theirs = churned(raw, c), churned(raw, other)
    stride, span = field(raw, c, C_STRIDE_BYTES), PAGE << field(raw, c, C_ORDER)
    block = int(alloc_pages(raw.words, 1, 0))
    wrong = {offset + shift for offset in live for shift in (1, 4, 7, stride // 2, stride - 1)}
    wrong |= {offset - 1 for offset in live}
    slabs = {offset // span * span for offset in live}
    behind = field(raw, c, C_OBJECTS) * stride
    wrong |= {slab + at for slab in slabs for at in range(behind, span, 8)}  # the gap behind the last object
    wrong |= {0, 8, -8, -PAGE, -(1 << 40), -(1 << 63), (1 << 63) - 1, 1 << 62, 1 << 40, SMALLEST, SMALLEST + stride}
    wrong |= {block * PAGE, block * PAGE + stride, own_record(raw) * 8, raw.plan.meta_pages * PAGE - 8}
    wrong |= {offset - (1 << 63) for offset in live}
    before = metadata(raw)
    kept = kept_objects(raw, c)
    wrong -= set(live) | set(kept)
    for offset in sorted(wrong):
        assert kmem_cache_free(raw.words, c, offset) == EINVAL, offset
    for offset in theirs:
        assert kmem_cache_free(raw.words, c, offset) == EINVAL
    assert kmem_cache_free_bulk(raw.words, c, len(theirs), np.array(theirs, np.int64)) == len(theirs)
    for offset in sorted(wrong - {block * PAGE, *theirs} - set(kept_objects(raw, other))):
        assert kfree(raw.words, offset) == EINVAL, offset
    assert_unchanged(raw, before)
    assert kept_objects(raw, c) == kept
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    for offset in theirs:
        assert kfree(raw.words, offset) == 0  # whose it is finds out by itself
    assert free_pages(raw.words, block, 1) == 0
    assert_pristine(raw)
    assert raw.words[H_BAD_FREES] == 0


def test_an_object_of_a_slab_that_was_given_back_is_refused() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw)
    dead = int(kmem_cache_alloc(raw.words, c))
    assert kmem_cache_free(raw.words, c, dead) == 0
    assert cache_shrink(raw.words, c) > 0
    before = metadata(raw)
    assert kmem_cache_free(raw.words, c, dead) == EINVAL
    assert kfree(raw.words, dead) == EINVAL
    assert_unchanged(raw, before)
    keeper = make_cache(raw)
    while int(kmem_cache_alloc(raw.words, keeper)) != dead:
        pass
    assert kmem_cache_free(raw.words, c, dead) == EINVAL  # another cache's now
    assert kmem_cache_free(raw.words, keeper, dead) == 0


@pytest.mark.parametrize("free", ["kfree", "kmem_cache_free", "bulk"])
@pytest.mark.parametrize("between", [0, 1, 2, 30, 70, 200])
def test_a_second_free_is_refused_at_once_or_counted_later_and_never_obeyed(free: str, between: int) -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = class_cache(raw, 64)
    verbs = {
        "kfree": lambda offset: int(kfree(raw.words, offset)),
        "kmem_cache_free": lambda offset: int(kmem_cache_free(raw.words, c, offset)),
        "bulk": lambda offset: EINVAL if kmem_cache_free_bulk(raw.words, c, 1, np.array([offset], np.int64)) else 0,
    }
    live = [int(kmalloc(raw.words, 64, 0)) for _ in range(between + 5)]
    victim = live[0]
    assert verbs[free](victim) == 0
    for offset in live[1 : 1 + between]:
        assert verbs[free](offset) == 0
    status = verbs[free](victim)
    assert status == (EINVAL if between == 0 else 0)
    assert raw.words[H_BAD_FREES] == 0
    assert cached(raw, c) == used(raw, c) - 4 + (status == 0)
    assert cache_drain(raw.words, c) == 0
    assert raw.words[H_BAD_FREES] == (status == 0)
    assert used(raw, c) == 4
    assert verbs[free](victim) == EINVAL  # back in its slab: exact
    raw.validate()
    for offset in live[1 + between :]:
        assert verbs[free](offset) == 0
    assert_pristine(raw)


def test_a_second_free_by_another_thread_is_counted() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw)
    with workers(3, raw) as made:
        live = [int(made[0].do(kmem_cache_alloc, raw.words, c)) for _ in range(20)]
        assert [int(made[0].do(kmem_cache_free, raw.words, c, offset)) for offset in live] == [0] * 20
        assert [int(made[1].do(kmem_cache_free, raw.words, c, offset)) for offset in live] == [0] * 20
        assert [int(made[2].do(kmem_cache_free, raw.words, c, offset)) for offset in live[::-1]] == [0] * 20
        assert raw.words[H_BAD_FREES] == 0
        assert cache_drain(raw.words, c) == 0
        assert raw.words[H_BAD_FREES] == 40
        assert used(raw, c) == 0
        raw.validate()
    assert_pristine(raw)


def test_a_second_free_that_overflows_is_counted_at_the_flush() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw)
    raw.words[c + C_SHEAF_CAPACITY] = 2
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(60)]
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    before = used(raw, c)
    for _ in range(3):  # two objects by turns: none is ever on top, and the barn is full
        for offset in live[-2:]:
            assert kmem_cache_free(raw.words, c, offset) in (0, EINVAL)
    assert cache_drain(raw.words, c) == 0
    assert 0 < before
    assert used(raw, c) == 0
    assert 0 < raw.words[H_BAD_FREES] <= 6
    raw.validate()
    assert_pristine(raw)


def test_without_sheaves_every_free_is_exact() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER, sheaves=False)
    c = make_cache(raw)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(300)]
    blocks = [int(alloc_pages(raw.words, order, 0)) for order in range(MAX_ORDER + 1)]
    for k, offset in enumerate(live):
        assert kmem_cache_free(raw.words, c, offset) == 0
        assert kmem_cache_free(raw.words, c, offset) == EINVAL
        assert kmem_cache_free(raw.words, c, live[0]) == EINVAL
        assert used(raw, c) == len(live) - k - 1
    for order, pfn in enumerate(blocks):
        assert free_pages(raw.words, pfn, order) == 0
        assert free_pages(raw.words, pfn, order) == EINVAL
    assert (raw.words[H_NR_RECORDS], raw.words[H_BAD_FREES], raw.words[H_BLOCKS]) == (0, 0, 0)
    assert cached(raw, c) == 0
    assert slots(raw) == {}
    assert_pristine(raw)


@pytest.mark.parametrize("page", [0, 1, 2, 3])
def test_an_object_that_is_with_the_constructor_cannot_be_freed(page: int) -> None:
    raw = RawArena(2 * SMALLEST, MAX_ORDER)
    c = int(cache_create(raw.words, 1024, 1024, 1024, 2, CF_CTOR, ZONE_NORMAL))
    assert field(raw, c, C_SHEAF) != 0
    pfn = int(construct_begin(raw.words, c, GFP_ORDINARY))
    inside = (pfn + page) * PAGE
    for offset in range(inside, inside + PAGE, 1024):
        assert kmem_cache_free(raw.words, c, offset) == EINVAL
        assert kfree(raw.words, offset) == EINVAL
    for offset in range(pfn * PAGE, (pfn + 4) * PAGE, 1024):
        assert construct_put(raw.words, offset) == 0
    assert (cached(raw, c), used(raw, c)) == (0, 0)
    raw.validate()
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_bulk_request_is_all_or_nothing_and_a_bulk_free_says_how_many_it_refused() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c, other = make_cache(raw, 500), make_cache(raw, 500)
    out = raw.out(10_000)
    assert kmem_cache_alloc_bulk(raw.words, c, 10_000, 0, out) == ENOMEM
    assert cache_drain(raw.words, c) == 0
    assert used(raw, c) == 0
    for count in (0, 1, 7, 8, 9, 100):
        assert kmem_cache_alloc_bulk(raw.words, c, count, 0, out) == 0
        live = out[:count].tolist()
        assert len(set(live)) == count
        stranger = int(kmem_cache_alloc(raw.words, other))
        for k in range(min(count, 9)):
            mixed = np.array([*live[:k], stranger, 12, -5, *live[k:]], np.int64)
            if k:
                assert kmem_cache_alloc_bulk(raw.words, c, count, 0, out) == 0
                mixed = np.array([*out[:k].tolist(), stranger, 12, -5, *out[k:count].tolist()], np.int64)
            assert kmem_cache_free_bulk(raw.words, c, len(mixed), mixed) == 3
        if count == 0:
            assert kmem_cache_free_bulk(raw.words, c, 0, out) == 0
        assert kmem_cache_free(raw.words, other, stranger) == 0
        assert used(raw, c) == cached(raw, c)
        raw.validate()
    raw.words[H_CLOSED] = 1
    assert kmem_cache_alloc_bulk(raw.words, c, 1, 0, out) == ENOMEM
    raw.words[H_CLOSED] = 0
    assert_pristine(raw)


@numba.njit(nogil=True)
def use_up(words, nbytes, out):
    """Allocate until there is no more; return how many there were."""
    for k in range(len(out)):
        offset = kmalloc(words, nbytes, 0)
        if offset < 0:
            return k
        out[k] = offset
    return len(out)


@numba.njit(nogil=True)
def free_all(words, count, out):
    """Free what is in ``out[:count]``; return how many were refused."""
    refused = 0
    for k in range(count):
        refused += kfree(words, out[k]) != 0
    return refused


@pytest.mark.parametrize("size", [8, 64, 512, 2048, 8192] if JIT else [512, 2048, 8192])
@pytest.mark.parametrize("pages", [MIN_SHEAVES_PAGES, 2 * MIN_SHEAVES_PAGES])
def test_an_arena_is_used_up_by_two_threads_and_comes_back(size: int, pages: int) -> None:
    raw = RawArena(pages * PAGE, MAX_ORDER)
    c = class_cache(raw, size)
    out = raw.out(pages * PAGE // size)
    counts = []
    with workers(2, raw) as made:
        for turn in range(3):
            count = int(made[turn % 2].do(use_up, raw.words, size, out))
            assert kmalloc(raw.words, size, 0) == ENOMEM
            assert len(np.unique(out[:count])) == count
            counts.append(count)
            assert cached(raw, c) == 0
            raw.validate()
            assert made[(turn + 1) % 2].do(free_all, raw.words, count, out) == 0
            raw.validate()
            assert used(raw, c) == cached(raw, c)
    assert max(counts) - min(counts) <= 16 * PAGE // size + 64  # what records and sheaves take
    assert min(counts) * size > 0.9 * (pages - raw.plan.meta_pages - 32) * PAGE
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)


@numba.njit(nogil=True)
def trade(words, c, market, seed, rounds, mine):
    """Allocate, mark and put into the market, and free what was there, after a look at its marks; return what was wrong.

    A place of the market is a word: whoever swaps the offset out owns it.
    """
    wrong = 0
    state = seed
    for k in range(rounds):
        state = (state * 6364136223846793005 + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
        place = (state >> 33) % len(market)
        seen = atomic_load(market, place)
        fresh = 0
        if state >> 20 & 3 != 0:
            fresh = kmem_cache_alloc(words, c)
            if fresh < 0:
                fresh = 0
        if fresh != 0:
            for j in range(mine):
                words[fresh // 8 + j] = fresh * 31 + j
        if compare_and_swap(market, place, seen, fresh) == 0:
            seen = fresh
        if seen != 0:
            for j in range(mine):
                if words[seen // 8 + j] != seen * 31 + j:
                    wrong += 1
                words[seen // 8 + j] = -seed
            if kmem_cache_free(words, c, seen) != 0:
                wrong += 1
    return wrong


def in_threads(*works) -> list[object]:
    """Run each in a thread of its own, all at once; return what they return."""
    answers: list[object] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(k: int) -> None:
        start.wait()
        try:
            answers[k] = works[k]()
        except BaseException as error:
            answers[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("capacity", [1, 3, 60])
@pytest.mark.parametrize("nbytes", [16, 64, 520])
def test_objects_made_in_one_thread_and_freed_in_another_keep_their_marks(nbytes: int, capacity: int) -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw, nbytes)
    raw.words[c + C_SHEAF_CAPACITY] = min(capacity, field(raw, c, C_SHEAF_CAPACITY))
    market = np.zeros(400, np.int64)
    rounds = 60_000 if JIT else 250
    assert trade(raw.words, c, market, 9, 1, nbytes // 8) == 0
    works = [lambda seed=seed: trade(raw.words, c, market, seed, rounds, nbytes // 8) for seed in (1, 2, 3, 4)]
    assert in_threads(*works) == [0] * 4
    raw.validate()
    live = [offset for offset in market.tolist() if offset]
    assert used(raw, c) == cached(raw, c) + len(live)
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert raw.words[H_BAD_FREES] == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_drainers_and_walkers_among_threads_at_work_disturb_nothing() -> None:
    raw = RawArena(2 * SMALLEST, MAX_ORDER)
    c = make_cache(raw, 64)
    market = np.zeros(300, np.int64)
    rounds = 40_000 if JIT else 200
    assert trade(raw.words, c, market, 9, 1, 8) == 0
    found = []

    def disturb() -> int:
        for _ in range(150 if JIT else 12):
            found.append(int(validate_caches(raw.words)))
            found.append(int(validate_kept_blocks(raw.words)))
            cache_drain(raw.words, c)
            reclaim(raw.words)
            cache_shrink(raw.words, c)
        return 0

    works = [lambda seed=seed: trade(raw.words, c, market, seed, rounds, 8) for seed in (1, 2, 3)]
    assert in_threads(disturb, *works) == [0] * 4
    assert set(found) == {0}
    for offset in market.tolist():
        assert offset == 0 or kmem_cache_free(raw.words, c, offset) == 0
    assert raw.words[H_BAD_FREES] == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_random_life_of_three_threads() -> None:
    rng = random.Random(11)
    life = Life()
    try:
        for step in range(700 if JIT else 150):
            thread = rng.randrange(life.THREADS)
            if rng.random() < 0.5 and life.live:
                life.free_many(thread, rng.randrange(1 << 20), rng.choice((1, 10, 70)))
            elif rng.random() < 0.7:
                life.objects(thread, rng.randrange(9), rng.choice((1, 2, 60, 61)))
            elif rng.random() < 0.6:
                life.kmalloc(thread, rng.choice((8, 60, 190, 512, 8193, 6 * PAGE)), rng.randrange(20))
            elif rng.random() < 0.6:
                life.pages(thread, rng.randrange(MAX_ORDER + 1))
            elif rng.random() < 0.5:
                life.give_back(rng.randrange(4))
            else:
                life.end_thread(thread)
            if step % 5 == 0:
                life.check()
        life.end()
    finally:
        life.stop()


@pytest.mark.parametrize("flags", [0, CF_CTOR])
def test_what_another_thread_keeps_is_taken_back_before_a_request_is_refused(flags: int) -> None:
    raw = RawArena(MIN_SHEAVES_PAGES * PAGE, 4)
    stride, order = cache_geometry(64, 64, 4, 12)
    c = int(cache_create(raw.words, 64, 64, stride, order, flags, ZONE_NORMAL))
    if flags & CF_CTOR:  # one slab is ready, and there will be no other
        first = int(construct_begin(raw.words, c, GFP_ORDINARY)) * PAGE
        for k in range(PAGE // stride):
            construct_put(raw.words, first + k * stride)
    other = Worker()
    kept = [int(other.do(kmem_cache_alloc, raw.words, c)) for _ in range(20)]
    assert [other.do(kmem_cache_free, raw.words, c, offset) for offset in kept] == [0] * 20
    pages = []
    while (pfn := int(alloc_block_locked(raw.words, ZONE_NORMAL, 0, KIND_PAGES, 0))) > 0:
        pages.append(pfn)
    slab = int(raw.words[c + C_OBJECTS])
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(slab)]
    assert min(live) > 0 and len(set(live)) == slab
    assert kmem_cache_alloc(raw.words, c) == (EAGAIN if flags & CF_CTOR else ENOMEM)
    for pfn in pages:
        free_block_locked(raw.words, pfn)
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    other.end(raw)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_the_model_notices_a_lost_object_and_a_lost_byte() -> None:
    life = Life()
    try:
        life.objects(0, 0, 5)
        life.check()
        offset, block = next(iter(life.live.items()))
        del life.live[offset]
        with pytest.raises(AssertionError):
            life.check()
        life.live[offset] = block
        life.raw.words[offset // 8] ^= 1
        with pytest.raises(AssertionError):
            life.die(0, offset)
    finally:
        life.stop()


def test_the_top_of_the_spare_sheaf_is_what_a_second_free_meets() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw)
    first, second = int(kmem_cache_alloc(raw.words, c)), int(kmem_cache_alloc(raw.words, c))
    for offset in (first, second):
        assert kmem_cache_free(raw.words, c, offset) == 0
        assert spare_sheaf(raw, own_record(raw) + field(raw, c, C_SHEAF))[-1] == offset
        for _ in range(3):
            assert kmem_cache_free(raw.words, c, offset) == EINVAL
    assert cache_drain(raw.words, c) == 0
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)


def test_a_bulk_free_over_many_slabs_refuses_each_wrong_one_and_takes_all_others() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    rng = random.Random(7)
    caches = [make_cache(raw, nbytes) for nbytes in (24, 64, 1000)] + [class_cache(raw, 64)]
    for everything in (False, True):  # free by cache, or by kfree_bulk, which takes blocks too
        mine = []
        for c in caches:
            out = raw.out(150)
            assert kmem_cache_alloc_bulk(raw.words, c, 150, 0, out) == 0
            mine.append(out.tolist())
        block = int(alloc_pages(raw.words, 1, 0))
        large = int(kmalloc(raw.words, 3 * PAGE, 0))
        wrong = [8, 0, -8, -PAGE, block * PAGE + 8, raw.words.size * 8 + PAGE, 1 << 62, large + 64]
        batches = [[o for some in mine for o in some]] if everything else mine
        for c, batch in zip(caches, batches, strict=False):
            bad = wrong + [offset + 8 for offset in rng.sample(batch, 20)]
            bad += [] if everything else rng.sample(mine[0] if c != caches[0] else mine[1], 5) + [large]
            mixed = rng.sample(batch, len(batch)) if everything else batch[:]
            for offset in bad:
                mixed.insert(rng.randrange(len(mixed) + 1), offset)
            given = np.array(mixed, np.int64)
            if everything:
                assert kfree_bulk(raw.words, len(given), given) == len(bad)
            else:
                assert kmem_cache_free_bulk(raw.words, c, len(given), given) == len(bad)
            assert given.tolist() == mixed
        assert kfree_bulk(raw.words, 2, np.array([large, block * PAGE], np.int64)) == 0
        assert [used(raw, c) - cached(raw, c) for c in caches] == [0] * len(caches)
        raw.validate()
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)


@pytest.mark.parametrize("by", ["cache", "kfree"])
def test_a_bulk_free_refuses_what_it_has_just_freed(by: str) -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = class_cache(raw, 64)
    out = raw.out(20)
    assert kmem_cache_alloc_bulk(raw.words, c, 20, 0, out) == 0
    twice = np.repeat(out, 2)
    if by == "cache":
        assert kmem_cache_free_bulk(raw.words, c, 40, twice) == 20
    else:
        assert kfree_bulk(raw.words, 40, twice) == 20
    assert cached(raw, c) == used(raw, c)
    assert_pristine(raw)
    assert raw.words[H_BAD_FREES] == 0


def test_bulk_requests_of_any_size_meet_no_object_twice() -> None:
    raw = RawArena(SMALLEST, MAX_ORDER)
    c = make_cache(raw)
    rng = random.Random(3)
    live: list[int] = []
    for _ in range(300):
        count = rng.randint(0, 90)
        if rng.random() < 0.5:
            out = raw.out(count)
            assert kmem_cache_alloc_bulk(raw.words, c, count, 0, out) == 0
            live += out.tolist()[:count]
            assert len(set(live)) == len(live)
        else:
            rng.shuffle(live)
            dead, live = live[:count], live[count:]
            assert kmem_cache_free_bulk(raw.words, c, len(dead), np.array(dead, np.int64)) == 0
        assert used(raw, c) - cached(raw, c) == len(live)
    assert kmem_cache_free_bulk(raw.words, c, len(live), np.array(live, np.int64)) == 0
    assert_pristine(raw)
