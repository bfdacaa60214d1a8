"""The reserve's policies: elements that are wiped, poison that is looked at, a backing allocator that is made to fail."""

from __future__ import annotations

import pytest
from kernels import assert_pristine, destroy_pool
from support import RawArena

from realalloc.mm.layout import (
    BACKING_KMALLOC,
    BAD_POOL_POISON,
    ENOMEM,
    P_CURR_NR,
    P_DAMAGED,
    P_FAIL_BELOW,
    P_FAIL_INTERVAL,
    P_FAIL_STATE,
    P_FAIL_TIMES,
    P_FAILED,
    P_REFILL_HIGH,
    P_REFILL_LOW,
    P_WIPE,
    POISON_FREE,
    POISON_INUSE,
    WIPE_POISON_ON_ALLOC,
    WIPE_POISON_ON_FREE,
    WIPE_ZERO_ON_ALLOC,
    WIPE_ZERO_ON_FREE,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc, pool_free
from realalloc.mm.mempool_life import pool_create, pool_fill, pool_refill, validate_pool

SIZES = [1, 8, 100, 4096]


def make_pool(raw: RawArena, min_nr: int, nbytes: int, wipe: int = 0) -> int:
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, nbytes, nbytes, 0, ZONE_NORMAL))
    raw.words[p + P_WIPE] = wipe
    assert pool_fill(raw.words, p) == 0
    return p


def contents(raw: RawArena, offset: int, nbytes: int) -> set[int]:
    first = offset // 8
    return {int(word) for word in raw.words[first : first + (nbytes + 7) // 8]}


def scribble(raw: RawArena, offset: int, nbytes: int) -> None:
    raw.words[offset // 8 : offset // 8 + (nbytes + 7) // 8] = 77


def fail(raw: RawArena, p: int, below: int, interval: int = 1, times: int = -1, seed: int = 0) -> None:
    for name, value in (
        (P_FAIL_BELOW, below), (P_FAIL_INTERVAL, interval), (P_FAIL_STATE, seed), (P_FAIL_TIMES, times)
    ):  # fmt: skip
        raw.words[p + name] = value


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize(("wipe", "taken", "freed"), [
    (0, 77, 77), (WIPE_ZERO_ON_ALLOC, 0, 77), (WIPE_ZERO_ON_FREE, 0, 0), (WIPE_POISON_ON_FREE, POISON_FREE, POISON_FREE),
    (WIPE_POISON_ON_ALLOC, POISON_INUSE, 77), (WIPE_POISON_ON_FREE | WIPE_ZERO_ON_ALLOC, 0, POISON_FREE),
])  # fmt: skip
def test_elements_are_wiped_as_the_policy_says(raw: RawArena, nbytes: int, wipe: int, taken: int, freed: int) -> None:
    p = make_pool(raw, 1, nbytes, wipe)
    for _ in range(3):
        offset = int(pool_alloc(raw.words, p, 0))
        scribble(raw, offset, nbytes)
        assert pool_free(raw.words, p, offset) == 0
        assert contents(raw, offset, nbytes) == {freed}
        assert pool_alloc(raw.words, p, 0) == offset
        assert contents(raw, offset, nbytes) == {taken}
        fallback = int(pool_alloc(raw.words, p, 0))
        scribble(raw, fallback, nbytes)
        pool_free(raw.words, p, offset)
        assert pool_free(raw.words, p, fallback) == 0  # to the backing allocator: wiped all the same
        assert contents(raw, fallback, nbytes) <= {freed} or wipe not in (WIPE_ZERO_ON_FREE, WIPE_POISON_ON_FREE)
    assert validate_pool(raw.words, p) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_who_writes_into_a_free_element_is_found_out(raw: RawArena) -> None:
    p = make_pool(raw, 1, 64, WIPE_POISON_ON_FREE)
    offset = int(pool_alloc(raw.words, p, 0))
    pool_free(raw.words, p, offset)
    assert validate_pool(raw.words, p) == 0
    raw.words[offset // 8 + 7] ^= 1
    assert validate_pool(raw.words, p) == BAD_POOL_POISON
    assert pool_alloc(raw.words, p, 0) == offset  # progress comes first
    assert raw.words[p + P_DAMAGED] == 1
    assert validate_pool(raw.words, p) == BAD_POOL_POISON  # and it stays known
    raw.words[p + P_DAMAGED] = 0
    pool_free(raw.words, p, offset)
    assert validate_pool(raw.words, p) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_failures_are_injected_by_interval_times_and_a_seed_that_repeats(raw: RawArena) -> None:
    p = make_pool(raw, 1, 64)
    held = [int(pool_alloc(raw.words, p, 0))]

    def run(count: int) -> list[bool]:
        served = []
        for _ in range(count):
            offset = int(pool_alloc(raw.words, p, 0))
            served.append(offset > 0)
            if offset > 0:
                held.append(offset)
            else:
                assert offset == ENOMEM
        return served

    fail(raw, p, 1 << 24, interval=3, times=2)
    assert run(12) == [True, True, False, True, True, False, *[True] * 6]
    assert raw.words[p + P_FAILED] == 2
    fail(raw, p, 1 << 23, seed=5)
    first = run(200)
    fail(raw, p, 1 << 23, seed=5)
    assert run(200) == first
    assert 60 < sum(first) < 140
    fail(raw, p, 1 << 23, seed=6)
    assert run(200) != first
    fail(raw, p, 0, times=0)
    assert all(run(5))
    for offset in held:
        assert pool_free(raw.words, p, offset) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)


def test_a_low_reserve_is_topped_up_by_a_free(raw: RawArena) -> None:
    p = make_pool(raw, 20, 64)
    raw.words[p + P_REFILL_LOW], raw.words[p + P_REFILL_HIGH] = 5, 12
    held = [int(pool_alloc(raw.words, p, 0)) for _ in range(20)]
    assert raw.words[p + P_CURR_NR] == 0
    pool_free(raw.words, p, held.pop())
    assert raw.words[p + P_CURR_NR] == 9  # by a batch at most
    pool_free(raw.words, p, held.pop())
    assert raw.words[p + P_CURR_NR] == 10
    assert pool_refill(raw.words, p, 20) == 0
    assert raw.words[p + P_CURR_NR] == 20
    for offset in held:
        pool_free(raw.words, p, offset)
    assert raw.words[p + P_CURR_NR] == 20
    assert validate_pool(raw.words, p) == 0
    assert destroy_pool(raw, p) == 0
    assert_pristine(raw)
