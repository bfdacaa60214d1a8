"""Mempools: the reserve and its guarantee, both orders, exhaustion, resize while elements are out, a walker that can fail."""

from __future__ import annotations

import random

import pytest
from kernels import (
    assert_pristine,
    assert_unchanged,
    destroy_pool,
    free_blocks,
    holds,
    is_zero,
    metadata,
    resize_pool,
    write,
    zone_word,
)
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, kmalloc, ksize
from realalloc.mm.kmem_cache import cache_create, cache_destroy, cache_geometry, construct_begin, construct_put
from realalloc.mm.layout import (
    BACKING_CACHE,
    BACKING_KMALLOC,
    BACKING_PAGES,
    BAD_POOL,
    BAD_POOL_ELEMENT,
    C_ALLOCS,
    C_FREES,
    C_OBJECTS,
    C_STRIDE_BYTES,
    CF_CTOR,
    EAGAIN,
    EBUSY,
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    H_POOLS,
    P_ARG,
    P_CAPACITY,
    P_CURR_NR,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_FAILS,
    P_GETS_ALLOC,
    P_GETS_RESERVE,
    P_LOW,
    P_MIN_NR,
    P_MISSING,
    P_PUTS_FREE,
    P_PUTS_RESERVE,
    P_WAITERS,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import (
    pool_alloc,
    pool_alloc_reserved,
    pool_create,
    pool_fill,
    pool_free,
    validate_pool,
    validate_pools,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages


def make_pool(raw: RawArena, min_nr: int, nbytes: int = 2000, order: int = 0, zone: int = ZONE_NORMAL) -> int:
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, nbytes, nbytes, order, zone))
    assert p > 0
    assert pool_fill(raw.words, p) == 0
    return p


def make_cache(raw: RawArena, nbytes: int, flags: int = 0) -> int:
    stride, order = cache_geometry(nbytes, 8, raw.plan.max_order, 12)
    return int(cache_create(raw.words, nbytes, 8, stride, order, flags, ZONE_NORMAL))


def get(raw: RawArena, p: int, name: int) -> int:
    return int(raw.words[p + name])


def gets_and_puts(raw: RawArena, p: int) -> tuple[int, int, int, int]:
    names = (P_GETS_RESERVE, P_GETS_ALLOC, P_PUTS_RESERVE, P_PUTS_FREE)
    return tuple(get(raw, p, name) for name in names)  # type: ignore[return-value]


def hog(raw: RawArena) -> list[int]:
    """Take every free page, so that no backing allocator can serve."""
    pages = []
    while (pfn := int(alloc_pages(raw.words, 0, 0))) > 0:
        pages.append(pfn)
    return pages


def drain(raw: RawArena, p: int, count: int) -> list[int]:
    taken = [int(pool_alloc(raw.words, p, 0)) for _ in range(count)]
    assert all(offset > 0 for offset in taken)
    assert len(set(taken)) == count
    return taken


@pytest.mark.parametrize("min_nr", [0, 1, 2, 7, 64])
def test_a_new_pool_holds_its_reserve_touched_and_ready(raw: RawArena, min_nr: int) -> None:
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, 3 * 2000, 3 * 2000, 0, ZONE_NORMAL))
    capacity = max(1, min_nr)  # as in the kernel, an empty pool keeps one element
    assert [get(raw, p, name) for name in (P_MIN_NR, P_CAPACITY, P_CURR_NR, P_MISSING)] == [
        min_nr,
        capacity,
        0,
        capacity,
    ]
    assert raw.words[H_POOLS] == p
    assert validate_pool(raw.words, p) == 0
    assert pool_fill(raw.words, p) == 0
    assert [get(raw, p, name) for name in (P_CURR_NR, P_MISSING, P_LOW)] == [capacity, 0, capacity]
    elements = raw.words[get(raw, p, P_ELEMENTS_BYTES) // 8 :][:capacity].tolist()
    for offset in elements:
        first, last = offset // PAGE, (offset + 5999) // PAGE
        assert raw.memory.resident_pages(first * PAGE, (last - first + 1) * PAGE) == last - first + 1
        assert ksize(raw.words, offset) == 8192
    raw.validate()
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_the_reserve_is_used_first_and_refilled_first(raw: RawArena) -> None:
    p = make_pool(raw, 4)
    reserve = set(raw.words[get(raw, p, P_ELEMENTS_BYTES) // 8 :][:4].tolist())
    taken = drain(raw, p, 6)
    assert set(taken[:4]) == reserve
    assert gets_and_puts(raw, p) == (4, 2, 0, 0)
    assert (get(raw, p, P_CURR_NR), get(raw, p, P_LOW)) == (0, 0)
    for k, offset in enumerate(taken):
        assert validate_pool(raw.words, p) == 0
        assert pool_free(raw.words, p, offset) == 0
        assert get(raw, p, P_CURR_NR) == min(k + 1, 4)
    assert gets_and_puts(raw, p) == (4, 2, 4, 2)
    assert pool_alloc(raw.words, p, 0) == taken[3]  # last in, first out
    assert pool_free(raw.words, p, taken[3]) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_the_kernels_order_spares_the_reserve(raw: RawArena) -> None:
    p = make_pool(raw, 3, order=1)
    taken = drain(raw, p, 5)
    assert gets_and_puts(raw, p) == (0, 5, 0, 0)
    assert get(raw, p, P_CURR_NR) == 3
    pages = hog(raw)
    reserve_before = get(raw, p, P_GETS_RESERVE)
    more = []
    while (offset := int(pool_alloc(raw.words, p, 0))) > 0:
        more.append(offset)
    assert offset == ENOMEM
    assert get(raw, p, P_GETS_RESERVE) - reserve_before == 3
    assert get(raw, p, P_FAILS) == 1
    raw.validate()
    for offset in taken + more:
        assert pool_free(raw.words, p, offset) == 0
    assert get(raw, p, P_CURR_NR) == 3
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("min_nr", [0, 1, 5])
def test_the_reserve_is_there_when_memory_has_run_out(raw: RawArena, min_nr: int, order: int) -> None:
    p = make_pool(raw, min_nr, 8192, order)
    extra = drain(raw, p, 3)
    for offset in extra:
        pool_free(raw.words, p, offset)
    while kmalloc(raw.words, 8192, 0) > 0:
        pass
    taken = drain(raw, p, max(1, min_nr))
    assert pool_alloc(raw.words, p, 0) == ENOMEM
    assert pool_alloc_reserved(raw.words, p) == ENOMEM
    for _ in range(50):  # whoever waits gets one whenever another returns theirs
        back = taken.pop(0)
        assert pool_free(raw.words, p, back) == 0
        assert pool_alloc(raw.words, p, 0) == back
        taken.append(back)
        assert validate_pool(raw.words, p) == 0
    for offset in taken:
        assert pool_free(raw.words, p, offset) == 0
    assert destroy_pool(raw, p) == 0


def test_only_the_reserve_serves_alloc_reserved(raw: RawArena) -> None:
    p = make_pool(raw, 3)
    taken = [int(pool_alloc_reserved(raw.words, p)) for _ in range(3)]
    assert len(set(taken)) == 3
    assert pool_alloc_reserved(raw.words, p) == ENOMEM
    assert gets_and_puts(raw, p) == (3, 0, 0, 0)
    for offset in taken:
        pool_free(raw.words, p, offset)
    assert destroy_pool(raw, p) == 0


def test_elements_of_every_backing(raw: RawArena) -> None:
    c = make_cache(raw, 300)
    backings = [(BACKING_KMALLOC, 700, 700), (BACKING_CACHE, c, 300), (BACKING_PAGES, 1, 2 * PAGE)]
    backings += [(BACKING_KMALLOC, 3 * PAGE, 3 * PAGE), (BACKING_KMALLOC, 18 * PAGE, 18 * PAGE)]
    for backing, arg, nbytes in backings:
        p = int(pool_create(raw.words, 2, backing, arg, nbytes, 0, ZONE_NORMAL))
        assert pool_fill(raw.words, p) == 0
        taken = drain(raw, p, 4)
        for k, offset in enumerate(taken):
            write(raw, offset, nbytes, k)
        assert all(holds(raw, offset, nbytes, k) for k, offset in enumerate(taken))
        raw.validate()
        for offset in taken:
            assert pool_free(raw.words, p, offset) == 0
        assert destroy_pool(raw, p) == 0
        raw.validate()
    assert raw.words[H_BLOCKS] == 0
    assert raw.words[c + C_ALLOCS] == raw.words[c + C_FREES]
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_pool_of_the_locked_zone_stays_in_it() -> None:
    raw = RawArena(2 * MIB, 4, dma=100 * PAGE)
    border = zone_word(raw, ZONE_NORMAL, Z_START_PFN) * PAGE
    for backing, arg in ((BACKING_KMALLOC, 2000), (BACKING_PAGES, 0)):
        p = int(pool_create(raw.words, 3, backing, arg, 2000, 0, ZONE_DMA))
        assert pool_fill(raw.words, p) == 0
        taken = drain(raw, p, 6)
        assert all(offset < border for offset in taken)
        for offset in taken:
            pool_free(raw.words, p, offset)
        assert destroy_pool(raw, p) == 0
    assert kmalloc(raw.words, 8, GFP_DMA_BIT) < border
    raw.validate()


def test_zeroed_elements_read_as_zero(raw: RawArena) -> None:
    p = make_pool(raw, 2, 1000)
    for _ in range(4):
        offset = int(pool_alloc(raw.words, p, GFP_ZERO_BIT))
        assert is_zero(raw, offset, 1000)
        write(raw, offset, 1000, 3)
        pool_free(raw.words, p, offset)
    assert destroy_pool(raw, p) == 0


def test_a_pool_that_cannot_be_filled_says_so_and_can_be_given_back(raw: RawArena) -> None:
    p = int(pool_create(raw.words, 1000, BACKING_KMALLOC, 4096, 4096, 0, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == ENOMEM
    assert 200 < get(raw, p, P_CURR_NR) < 1000
    assert get(raw, p, P_MISSING) == 1000 - get(raw, p, P_CURR_NR)
    raw.validate()
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_pool_that_cannot_be_made_takes_nothing(raw: RawArena, spare: int) -> None:
    live = []
    while (offset := int(kmalloc(raw.words, 192, 0))) > 0:
        live.append(offset)
    if spare:  # room for the descriptor and not for the elements
        kfree(raw.words, live.pop())
    used = free_blocks(raw)
    assert pool_create(raw.words, 5000, BACKING_KMALLOC, 64, 64, 0, ZONE_NORMAL) == ENOMEM
    assert raw.words[H_POOLS] == 0
    assert free_blocks(raw) == used
    for offset in live:
        assert kfree(raw.words, offset) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("out", [0, 1, 4, 9])
@pytest.mark.parametrize(("before", "after"), [(4, 9), (9, 4), (4, 0), (0, 4), (5, 5), (1, 50)])
def test_a_resize_keeps_the_guarantee_while_elements_are_out(before: int, after: int, out: int) -> None:
    raw = RawArena(MIB, 4)
    p = make_pool(raw, before, 512)
    taken = drain(raw, p, out)
    for k, offset in enumerate(taken):
        write(raw, offset, 512, k)
    assert resize_pool(raw, p, after) == 0
    raw.validate()
    capacity = max(1, after)
    assert (get(raw, p, P_MIN_NR), get(raw, p, P_CAPACITY)) == (after, capacity)
    assert get(raw, p, P_CURR_NR) <= capacity
    assert get(raw, p, P_CURR_NR) + out + get(raw, p, P_MISSING) >= capacity
    assert pool_fill(raw.words, p) == 0
    assert get(raw, p, P_MISSING) == 0
    assert get(raw, p, P_CURR_NR) + out >= capacity
    raw.validate()
    assert all(holds(raw, offset, 512, k) for k, offset in enumerate(taken))
    for offset in taken:
        assert pool_free(raw.words, p, offset) == 0
    assert get(raw, p, P_CURR_NR) == capacity
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_resize_without_memory_changes_nothing(raw: RawArena) -> None:
    p = make_pool(raw, 3, 512)
    pages = hog(raw)
    before = metadata(raw)
    pool = raw.words[p : p + 24].copy()
    assert resize_pool(raw, p, 20_000) == ENOMEM
    assert (raw.words[p : p + 24] == pool).all()
    assert_unchanged(raw, before)
    for pfn in pages:
        free_pages(raw.words, pfn, 0)
    assert destroy_pool(raw, p) == 0


def test_a_pool_in_use_is_not_destroyed(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    offset = int(pool_alloc(raw.words, p, 0))
    before = metadata(raw)
    assert destroy_pool(raw, p) == EBUSY
    assert_unchanged(raw, before)
    assert get(raw, p, P_CURR_NR) == 1
    assert pool_free(raw.words, p, offset) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_pools_are_chained_and_leave_the_chain_from_anywhere(raw: RawArena) -> None:
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 0, 3), (2, 0, 3, 1)):
        pools = [make_pool(raw, k, 64) for k in range(4)]
        assert raw.words[H_POOLS] == pools[-1]
        for k in order:
            assert validate_pools(raw.words) == 0
            assert destroy_pool(raw, pools[k]) == 0
        assert raw.words[H_POOLS] == 0
    assert_pristine(raw)


def test_a_refused_element_is_not_counted_as_returned(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    before = gets_and_puts(raw, p)
    assert pool_free(raw.words, p, 12345) == EINVAL  # the reserve is full, so the backing allocator looks
    assert gets_and_puts(raw, p) == before
    assert destroy_pool(raw, p) == 0


def test_a_closed_arena_hands_out_no_element(raw: RawArena) -> None:
    p = make_pool(raw, 2)
    offset = int(pool_alloc(raw.words, p, 0))
    raw.words[H_CLOSED] = 1
    assert pool_alloc(raw.words, p, 0) == ENOMEM
    assert pool_alloc_reserved(raw.words, p) == ENOMEM
    assert pool_create(raw.words, 1, BACKING_KMALLOC, 64, 64, 0, ZONE_NORMAL) == ENOMEM
    assert pool_free(raw.words, p, offset) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_pool_on_a_cache_with_a_constructor_asks_for_a_slab(raw: RawArena) -> None:
    c = make_cache(raw, 500, CF_CTOR)
    p = int(pool_create(raw.words, 2, BACKING_CACHE, c, 500, 0, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == EAGAIN
    assert pool_alloc(raw.words, p, 0) == EAGAIN
    pfn = int(construct_begin(raw.words, c, GFP_ORDINARY))
    for k in range(get(raw, c, C_OBJECTS)):
        construct_put(raw.words, pfn * PAGE + k * get(raw, c, C_STRIDE_BYTES))
    assert pool_fill(raw.words, p) == 0
    assert get(raw, p, P_CURR_NR) == 2
    offset = int(pool_alloc(raw.words, p, 0))
    assert pool_free(raw.words, p, offset) == 0
    assert destroy_pool(raw, p) == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_random_life_of_three_pools() -> None:
    rng = random.Random(9)
    raw = RawArena(2 * MIB, 4)
    c = make_cache(raw, 120)
    pools = [
        (make_pool(raw, 5, 4000), 4000),
        (make_pool(raw, 3, 9000, order=1), 9000),
        (int(pool_create(raw.words, 9, BACKING_CACHE, c, 120, 0, ZONE_NORMAL)), 120),
    ]
    assert pool_fill(raw.words, pools[2][0]) == 0
    out: list[list[tuple[int, int]]] = [[], [], []]
    for step in range(8000 if JIT else 1500):
        k = rng.randrange(3)
        p, nbytes = pools[k]
        action = rng.random()
        if action < 0.5:
            offset = int(pool_alloc(raw.words, p, 0))
            if offset > 0:
                write(raw, offset, nbytes, step)
                out[k].append((offset, step))
            else:
                assert get(raw, p, P_CURR_NR) == 0
                while len(out[k]) > 2:
                    assert pool_free(raw.words, p, out[k].pop()[0]) == 0
        elif action < 0.97 and out[k]:
            offset, seed = out[k].pop(rng.randrange(len(out[k])))
            assert holds(raw, offset, nbytes, seed)
            assert pool_free(raw.words, p, offset) == 0
        elif action >= 0.97 and resize_pool(raw, p, rng.randrange(12)) == 0:
            assert pool_fill(raw.words, p) in (0, ENOMEM)
        gets_reserve, gets_alloc, puts_reserve, puts_free = gets_and_puts(raw, p)
        assert gets_reserve + gets_alloc - puts_reserve - puts_free == len(out[k])
        if step % 20 == 0:
            raw.validate()
    for (p, nbytes), live in zip(pools, out, strict=True):
        for offset, seed in live:
            assert holds(raw, offset, nbytes, seed)
            assert pool_free(raw.words, p, offset) == 0
        assert destroy_pool(raw, p) == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def set_pool(name: int, change):
    def damage(raw: RawArena, p: int) -> None:
        raw.words[p + name] = change(int(raw.words[p + name]))

    return damage


def set_element(k: int, change):
    def damage(raw: RawArena, p: int) -> None:
        at = get(raw, p, P_ELEMENTS_BYTES) // 8
        raw.words[at + k] = change(raw, at)

    return damage


def free_element(raw: RawArena, p: int) -> None:
    assert kfree(raw.words, int(raw.words[get(raw, p, P_ELEMENTS_BYTES) // 8])) == 0


DAMAGE = {
    "fewer than none in reserve": (BAD_POOL, set_pool(P_CURR_NR, lambda _: -1)),
    "more in reserve than fit": (BAD_POOL, set_pool(P_CURR_NR, lambda _: 5)),
    "a lost element": (BAD_POOL, set_pool(P_CURR_NR, lambda n: n - 1)),
    "another capacity": (BAD_POOL, set_pool(P_CAPACITY, lambda n: n + 1)),
    "another min_nr": (BAD_POOL, set_pool(P_MIN_NR, lambda n: n - 1)),
    "more puts than gets": (BAD_POOL, set_pool(P_PUTS_RESERVE, lambda n: n + 2)),
    "fewer waiters than none": (BAD_POOL, set_pool(P_WAITERS, lambda _: -1)),
    "an element that is no block": (BAD_POOL_ELEMENT, set_element(1, lambda raw, at: int(raw.words[at + 1]) + 8)),
    "the null element": (BAD_POOL_ELEMENT, set_element(0, lambda raw, at: 0)),
    "an element twice": (BAD_POOL_ELEMENT, set_element(1, lambda raw, at: int(raw.words[at]))),
    "an element that was freed": (BAD_POOL_ELEMENT, free_element),
    "elements that are too small": (BAD_POOL_ELEMENT, set_pool(P_ELEMENT_BYTES, lambda _: 100_000)),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_walker_reports(what: str) -> None:
    code, damage = DAMAGE[what]
    raw = RawArena(MIB, 4)
    other = make_pool(raw, 2, 64)
    p = make_pool(raw, 4, 500)
    taken = drain(raw, p, 1)
    assert validate_pool(raw.words, p) == 0
    damage(raw, p)
    assert validate_pool(raw.words, p) == code
    assert validate_pools(raw.words) == code
    assert validate_pool(raw.words, other) == 0
    assert taken[0] > 0


def test_the_walker_reports_an_element_of_a_cache_that_was_freed() -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, 300)
    p = int(pool_create(raw.words, 3, BACKING_CACHE, c, 300, 0, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == 0
    assert validate_pools(raw.words) == 0
    free_element(raw, p)
    assert validate_pools(raw.words) == BAD_POOL_ELEMENT
    assert get(raw, p, P_ARG) == c
