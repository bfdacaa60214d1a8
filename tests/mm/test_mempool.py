"""Mempools: the reserve and its guarantee, both orders, exhaustion, resize while elements are out, a walker that can fail."""

from __future__ import annotations

import random

import pytest
from kernels import (
    assert_pristine,
    destroy_pool,
    holds,
    is_zero,
    resize_pool,
    write,
    zone_word,
)
from pools import drain, get, gets_and_puts, hog, make_cache, make_pool
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.kmem_cache import cache_destroy, construct_begin, construct_put
from realalloc.mm.layout import (
    BACKING_CACHE,
    BACKING_KMALLOC,
    BACKING_PAGES,
    C_ALLOCS,
    C_FREES,
    C_OBJECTS,
    C_STRIDE_BYTES,
    CF_CTOR,
    EAGAIN,
    EINVAL,
    ENOMEM,
    GFP_DMA_BIT,
    GFP_ORDINARY,
    GFP_ZERO_BIT,
    H_BLOCKS,
    H_CLOSED,
    P_CURR_NR,
    P_ELEMENTS_BYTES,
    P_FAILS,
    P_GETS_RESERVE,
    P_LOW,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc, pool_alloc_reserved, pool_free
from realalloc.mm.mempool_life import pool_create, pool_fill, validate_pool
from realalloc.mm.page_alloc import free_pages


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
