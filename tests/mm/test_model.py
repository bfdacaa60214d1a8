"""All kernels at once against a plain dict: whatever is done in whatever order, every byte and every account is right."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kernels import (
    assert_coalesced,
    assert_pristine,
    block_pages,
    class_size,
    destroy_pool,
    holds,
    is_zero,
    page_kind,
    resize_pool,
    trim,
    write,
    zone_word,
)
from support import JIT, PAGE, RawArena

from realalloc.mm.commit import set_limit
from realalloc.mm.kmalloc import kfree, kmalloc, ksize, vmalloc
from realalloc.mm.kmem_cache import cache_create, cache_destroy, cache_geometry, cache_shrink, next_live_object
from realalloc.mm.layout import (
    BACKING_KMALLOC,
    C_ALLOCS,
    C_FREES,
    EBUSY,
    EINVAL,
    ENOMEM,
    GFP_ZERO_BIT,
    H_ALLOCATED_PAGES,
    H_BLOCKS,
    H_COMMITTED_PAGES,
    H_LIMIT_PAGES,
    H_VM_AREAS,
    H_VM_LAZY_PAGES,
    H_VM_PAGES,
    KIND_FREE,
    KMALLOC_FINE_SIZES,
    KMALLOC_SIZES,
    P_CURR_NR,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_NORMAL,
)
from realalloc.mm.lazy import LAZY_SLACK_SHIFT
from realalloc.mm.mempool import pool_alloc, pool_free
from realalloc.mm.mempool_life import pool_create, pool_fill
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_alloc_bulk, kmem_cache_free
from realalloc.mm.page_alloc import alloc_pages, alloc_pages_bulk, alloc_run, free_pages
from realalloc.mm.reclaim import reclaim

ARENA_PAGES, MAX_ORDER = 301, 4
POOL_BYTES = 700
SIZES = st.one_of(
    st.integers(1, 9000),
    st.sampled_from([8, 16, 96, 192, 4096, 8192, 8193, 2 * PAGE, 16 * PAGE, 16 * PAGE + 1]),
    st.integers(1, 40 * PAGE),
)
INDEX = st.integers(0, 1 << 30)


class Life:
    """An arena, and what its users know: for every live block its length, seed and how it goes back."""

    def __init__(self, sizes: tuple[int, ...] = KMALLOC_SIZES) -> None:
        self.raw = RawArena(ARENA_PAGES * PAGE, MAX_ORDER, sizes=sizes)
        self.live: dict[int, tuple[int, int, str, int]] = {}
        self.dead: list[int] = []
        self.caches: list[tuple[int, int]] = []
        self.pools: list[tuple[int, int]] = []
        self.seed = 0

    def born(self, offset: int, nbytes: int, how: str, arg: int, *, zero: bool = False) -> None:
        offset = int(offset)
        assert offset > 0
        assert offset not in self.live
        if zero:
            assert is_zero(self.raw, offset, nbytes)
        self.seed += 1
        write(self.raw, offset, nbytes, self.seed)
        self.live[offset] = (nbytes, self.seed, how, arg)

    def pick(self, index: int, *hows: str) -> int | None:
        found = [offset for offset, (_, _, how, _) in self.live.items() if not hows or how in hows]
        return found[index % len(found)] if found else None

    def die(self, offset: int) -> None:
        nbytes, seed, how, arg = self.live.pop(offset)
        words = self.raw.words
        assert holds(self.raw, offset, nbytes, seed)
        if how == "pages":
            assert free_pages(words, offset // PAGE, arg) == 0
        elif how == "cache":
            assert kmem_cache_free(words, arg, offset) == 0
        elif how == "pool":
            assert pool_free(words, arg, offset) == 0
        else:
            assert kfree(words, offset) == 0
        if how != "pool":
            self.dead.append(offset)

    def kmalloc(self, nbytes: int, gfp: int) -> None:
        offset = int(kmalloc(self.raw.words, nbytes, gfp))
        if offset == ENOMEM:
            return
        usable = int(ksize(self.raw.words, offset))
        if nbytes <= 8192:
            assert usable == class_size(nbytes, self.raw.sizes)
        assert usable >= nbytes
        alignment = usable & -usable if nbytes <= 8192 else PAGE
        assert offset % alignment == 0
        self.born(offset, nbytes, "kmalloc", 0, zero=bool(gfp))

    def vmalloc(self, nbytes: int, gfp: int) -> None:
        offset = int(vmalloc(self.raw.words, nbytes, gfp))
        if offset != ENOMEM:
            self.born(offset, nbytes, "area", 0, zero=bool(gfp))

    def pages(self, order: int, gfp: int) -> None:
        pfn = int(alloc_pages(self.raw.words, order, gfp))
        if pfn != ENOMEM:
            assert pfn % (1 << order) == 0
            self.born(pfn * PAGE, PAGE << order, "pages", order, zero=bool(gfp))

    def run(self, pages: int, gfp: int) -> None:
        pfn = int(alloc_run(self.raw.words, pages, gfp))
        if pfn != ENOMEM:
            self.born(pfn * PAGE, pages * PAGE, "pages", -1, zero=bool(gfp))

    def bulk_pages(self, count: int) -> None:
        out = self.raw.out(count)
        for pfn in out[: int(alloc_pages_bulk(self.raw.words, count, 0, out))].tolist():
            self.born(pfn * PAGE, PAGE, "pages", 0)

    def new_cache(self, nbytes: int, align: int) -> None:
        stride, order = cache_geometry(nbytes, align, MAX_ORDER, 12)
        self.caches.append((int(cache_create(self.raw.words, nbytes, align, stride, order, 0, ZONE_NORMAL)), nbytes))

    def objects(self, index: int, count: int) -> None:
        c, nbytes = self.caches[index % len(self.caches)]
        out = self.raw.out(count)
        if count == 1:
            status = int(kmem_cache_alloc(self.raw.words, c))
            out[0] = status
        else:
            status = int(kmem_cache_alloc_bulk(self.raw.words, c, count, 0, out))
        if status < 0:
            assert status == ENOMEM
            return
        for offset in out[:count].tolist():
            self.born(offset, nbytes, "cache", c)

    def destroy_cache(self, index: int) -> None:
        c, _ = self.caches[index % len(self.caches)]
        used = any(how == "cache" and arg == c for _, _, how, arg in self.live.values())
        first = int(next_live_object(self.raw.words, c, 0))
        owned = sorted(offset for offset, (_, _, how, arg) in self.live.items() if (how, arg) == ("cache", c))
        assert first == (owned[0] if owned else 0)
        assert cache_destroy(self.raw.words, c) == (EBUSY if used else 0)
        if not used:
            self.caches.remove(self.caches[index % len(self.caches)])

    def new_pool(self, min_nr: int, order: int) -> None:
        p = int(pool_create(self.raw.words, min_nr, BACKING_KMALLOC, POOL_BYTES, POOL_BYTES, order, 0))
        if p == ENOMEM:
            return
        if pool_fill(self.raw.words, p) != 0:
            assert destroy_pool(self.raw, p) == 0
        else:
            self.pools.append((p, min_nr))

    def element(self, index: int, gfp: int) -> None:
        p, _ = self.pools[index % len(self.pools)]
        curr = int(self.raw.words[p + P_CURR_NR])
        offset = int(pool_alloc(self.raw.words, p, gfp))
        if offset == ENOMEM:
            assert curr == 0
        else:
            self.born(offset, POOL_BYTES, "pool", p, zero=bool(gfp))

    def resize(self, index: int, min_nr: int) -> None:
        at = index % len(self.pools)
        p, _ = self.pools[at]
        if resize_pool(self.raw, p, min_nr) == 0:
            self.pools[at] = (p, min_nr)
            pool_fill(self.raw.words, p)

    def destroy_pool(self, index: int) -> None:
        p, _ = self.pools[index % len(self.pools)]
        used = any(how == "pool" and arg == p for _, _, how, arg in self.live.values())
        assert destroy_pool(self.raw, p) == (EBUSY if used else 0)
        if not used:
            self.pools.remove(self.pools[index % len(self.pools)])

    def free_wrongly(self, index: int, shift: int) -> None:
        """Nothing that is not a live block's first byte can be freed."""
        known = [*self.live, *self.dead]
        wrong = known[index % len(known)] + shift if known else shift
        if ksize(self.raw.words, wrong) == EINVAL:
            assert wrong not in self.live
            assert kfree(self.raw.words, wrong) == EINVAL
        elif wrong not in self.live:  # an element in reserve, or a pool's own block
            assert self.pools

    def limit(self, pages: int) -> None:
        wanted = pages % (self.raw.pages + 1)
        allowed = wanted >= self.raw.words[H_ALLOCATED_PAGES]
        assert set_limit(self.raw.words, wanted) == (0 if allowed else ENOMEM)

    def give_back(self, how: int) -> None:
        if how == 0:
            trim(self.raw)
        elif how == 1:
            reclaim(self.raw.words)
        else:
            for c, _ in self.caches:
                cache_shrink(self.raw.words, c)

    def check(self) -> None:
        """Every walker, and every account that the model knows."""
        raw, words = self.raw, self.raw.words
        raw.validate()
        areas = [nbytes for nbytes, _, how, _ in self.live.values() if how == "area"]
        areas += [n for n, _, how, _ in self.live.values() if how == "kmalloc" and n > PAGE << MAX_ORDER]
        assert words[H_VM_AREAS] == len(areas)
        asked = [-(-nbytes // PAGE) for nbytes in areas]
        assert sum(asked) <= words[H_VM_PAGES] <= sum(pages + (pages >> LAZY_SLACK_SHIFT) for pages in asked)
        blocks = sum(
            how == "pages" or (how == "kmalloc" and 8192 < n <= PAGE << MAX_ORDER)
            for n, _, how, _ in self.live.values()
        )
        assert words[H_BLOCKS] == blocks
        for c, _ in self.caches:
            out = sum(how == "cache" and arg == c for _, _, how, arg in self.live.values())
            assert words[c + C_ALLOCS] - words[c + C_FREES] == out
        for p, min_nr in self.pools:
            assert words[p + P_CURR_NR] <= max(1, min_nr)
        taken, pfn = [], zone_word(raw, 0, Z_START_PFN)
        while pfn < zone_word(raw, 0, Z_FRONTIER_PFN):
            pages = block_pages(raw, pfn)
            if page_kind(raw, pfn) != KIND_FREE:
                taken.append((pfn, pages))
            pfn += pages
        assert_coalesced(raw, taken)
        assert words[H_ALLOCATED_PAGES] == sum(pages for _, pages in taken)
        assert words[H_VM_LAZY_PAGES] <= ARENA_PAGES // 4
        assert words[H_COMMITTED_PAGES] <= words[H_LIMIT_PAGES]

    def bytes_kept(self) -> None:
        assert all(holds(self.raw, offset, nbytes, seed) for offset, (nbytes, seed, _, _) in self.live.items())

    def end(self) -> None:
        self.bytes_kept()
        for offset in list(self.live):
            self.die(offset)
        for p, _ in self.pools:
            assert destroy_pool(self.raw, p) == 0
        for c, _ in self.caches:
            assert cache_destroy(self.raw.words, c) == 0
        assert_pristine(self.raw)


class Machine(RuleBasedStateMachine):
    """The rules that hypothesis may apply."""

    @initialize(sizes=st.sampled_from([KMALLOC_SIZES, KMALLOC_FINE_SIZES]))
    def begin(self, sizes: tuple[int, ...]) -> None:
        self.life = Life(sizes)

    @rule(nbytes=SIZES, zero=st.booleans())
    def kmalloc(self, nbytes: int, zero: bool) -> None:
        self.life.kmalloc(nbytes, GFP_ZERO_BIT * zero)

    @rule(nbytes=SIZES, zero=st.booleans())
    def vmalloc(self, nbytes: int, zero: bool) -> None:
        self.life.vmalloc(nbytes, GFP_ZERO_BIT * zero)

    @rule(order=st.integers(0, MAX_ORDER), zero=st.booleans())
    def pages(self, order: int, zero: bool) -> None:
        self.life.pages(order, GFP_ZERO_BIT * zero)

    @rule(pages=st.integers(1, 90), zero=st.booleans())
    def run_of_pages(self, pages: int, zero: bool) -> None:
        self.life.run(pages, GFP_ZERO_BIT * zero)

    @rule(count=st.integers(0, 60))
    def bulk_pages(self, count: int) -> None:
        self.life.bulk_pages(count)

    @rule(nbytes=st.sampled_from([8, 24, 100, 700, 5000]), align=st.sampled_from([8, 64]))
    @precondition(lambda self: len(self.life.caches) < 4)
    def new_cache(self, nbytes: int, align: int) -> None:
        self.life.new_cache(nbytes, align)

    @rule(index=INDEX, count=st.sampled_from([1, 1, 1, 3, 40, 600]))
    @precondition(lambda self: self.life.caches)
    def objects(self, index: int, count: int) -> None:
        self.life.objects(index, count)

    @rule(index=INDEX)
    @precondition(lambda self: self.life.caches)
    def destroy_cache(self, index: int) -> None:
        self.life.destroy_cache(index)

    @rule(min_nr=st.integers(0, 30), order=st.integers(0, 2))
    @precondition(lambda self: len(self.life.pools) < 3)
    def new_pool(self, min_nr: int, order: int) -> None:
        self.life.new_pool(min_nr, order)

    @rule(index=INDEX, zero=st.booleans())
    @precondition(lambda self: self.life.pools)
    def element(self, index: int, zero: bool) -> None:
        self.life.element(index, GFP_ZERO_BIT * zero)

    @rule(index=INDEX, min_nr=st.integers(0, 40))
    @precondition(lambda self: self.life.pools)
    def resize(self, index: int, min_nr: int) -> None:
        self.life.resize(index, min_nr)

    @rule(index=INDEX)
    @precondition(lambda self: self.life.pools)
    def destroy_pool(self, index: int) -> None:
        self.life.destroy_pool(index)

    @rule(index=INDEX, count=st.integers(1, 30))
    @precondition(lambda self: self.life.live)
    def free(self, index: int, count: int) -> None:
        for k in range(min(count, len(self.life.live))):
            offset = self.life.pick(index + 7 * k)
            if offset is not None:
                self.life.die(offset)

    @rule(index=INDEX, shift=st.sampled_from([0, 1, 8, 64, -8, PAGE, -PAGE, 3 * PAGE, 1 << 20, -(1 << 21), 1 << 40]))
    def free_wrongly(self, index: int, shift: int) -> None:
        self.life.free_wrongly(index, shift)

    @rule(pages=INDEX)
    def limit(self, pages: int) -> None:
        self.life.limit(pages)

    @rule(how=st.integers(0, 2))
    def give_back(self, how: int) -> None:
        self.life.give_back(how)

    @rule()
    def bytes_kept(self) -> None:
        self.life.bytes_kept()

    @invariant()
    def whole(self) -> None:
        if hasattr(self, "life"):
            self.life.check()

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.life.end()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=40 if JIT else 20,
    stateful_step_count=50 if JIT else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_long_random_life(seed: int) -> None:
    rng = random.Random(seed)
    life = Life()
    gfp = lambda: rng.choice((0, GFP_ZERO_BIT))
    number = lambda: rng.randrange(1 << 20)
    for nbytes in (8, 24, 300, 5000):
        life.new_cache(nbytes, 8)
    acts: list[tuple[int, Any]] = [
        (
            20,
            lambda: life.kmalloc(
                rng.choice((rng.randint(1, 300), rng.randint(1, 9000), rng.randint(1, 80_000))), gfp()
            ),
        ),
        (6, lambda: life.vmalloc(rng.randint(1, 30 * PAGE), gfp())),
        (6, lambda: life.pages(rng.randint(0, MAX_ORDER), gfp())),
        (4, lambda: life.run(rng.randint(1, 60), gfp())),
        (2, lambda: life.bulk_pages(rng.randint(0, 20))),
        (12, lambda: life.objects(number(), rng.choice((1, 1, 1, 2, 30)))),
        (1, lambda: life.new_pool(rng.randint(0, 20), rng.randint(0, 1)) if len(life.pools) < 3 else None),
        (10, lambda: life.element(number(), gfp()) if life.pools else None),
        (1, lambda: life.resize(number(), rng.randint(0, 30)) if life.pools else None),
        (1, lambda: life.destroy_pool(number()) if life.pools else None),
        (4, lambda: life.free_wrongly(number(), rng.choice((0, 1, 8, -8, PAGE, -PAGE, 1 << 30)))),
        (2, lambda: life.limit(number())),
        (2, lambda: life.give_back(rng.randrange(3))),
    ]
    weights = [weight for weight, _ in acts]
    for step in range(4000 if JIT else 900):
        growing = step // 300 % 2 == 0
        if life.live and rng.random() < (0.35 if growing else 0.65):
            life.die(life.pick(number()))
        else:
            rng.choices(acts, weights)[0][1]()
        if step % 10 == 0:
            life.check()
        if step % 250 == 0:
            life.bytes_kept()
            life.dead.clear()
    life.check()
    life.end()


def test_the_model_notices_a_lost_byte_and_a_lost_block() -> None:
    life = Life()
    life.kmalloc(5000, 0)
    (offset,) = life.live
    life.raw.words[offset // 8] ^= 1
    with pytest.raises(AssertionError):
        life.bytes_kept()
    life.raw.words[offset // 8] ^= 1
    life.bytes_kept()
    life.pages(0, 0)
    del life.live[next(where for where, block in life.live.items() if block[2] == "pages")]
    with pytest.raises(AssertionError):
        life.check()
