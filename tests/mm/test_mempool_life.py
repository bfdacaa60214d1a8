"""Life of a pool: made, resized and destroyed whole or not at all; and the walker, which tells when it is not whole."""

from __future__ import annotations

import pytest
from kernels import (
    assert_pristine,
    assert_unchanged,
    destroy_pool,
    free_blocks,
    holds,
    metadata,
    resize_pool,
    write,
)
from pools import drain, get, hog, make_cache, make_pool
from support import MIB, PAGE, RawArena

from realalloc.mm.kmalloc import kfree, kmalloc, ksize
from realalloc.mm.layout import (
    BACKING_CACHE,
    BACKING_KMALLOC,
    BAD_POOL,
    BAD_POOL_ELEMENT,
    EBUSY,
    ENOMEM,
    H_POOLS,
    P_ARG,
    P_CAPACITY,
    P_CURR_NR,
    P_ELEMENT_BYTES,
    P_ELEMENTS_BYTES,
    P_LOW,
    P_MIN_NR,
    P_MISSING,
    P_PUTS_RESERVE,
    P_WAITERS,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc, pool_free
from realalloc.mm.mempool_life import pool_create, pool_fill, validate_pool, validate_pools
from realalloc.mm.page_alloc import free_pages


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
