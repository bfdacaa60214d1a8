"""The stock: every number of full and empty sheaves of it, what it serves without the lock, and where there is none."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from kernels import (
    assert_pristine,
    field,
    make_cache,
    own,
    stock,
    stock_room,
)
from sheaf_twin import Twin
from support import JIT, PAGE, RawArena

from realalloc.mm.kmalloc import kfree
from realalloc.mm.kmem_cache import cache_destroy, validate_cache
from realalloc.mm.layout import (
    C_ALLOCS,
    C_FREES,
    C_NR_BARN_EMPTY,
    C_NR_BARN_FULL,
    C_SHEAF_CAPACITY,
    EINVAL,
    H_BAD_FREES,
    H_CLOSED,
    H_END_PFN,
    MAX_STOCK_PFN,
    MAX_STOCK_SHEAVES,
    MIN_SHEAVES_PAGES,
    SHEAF_WORDS,
    STOCK_SHIFT,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free

SMALLEST = MIN_SHEAVES_PAGES * PAGE


@pytest.mark.parametrize(("capacity", "size"), [(1, 16), (2, 16), (3, 16), (4, 16), (60, 8)])
def test_a_stock_fills_empties_and_grows_no_further_than_its_room(capacity: int, size: int) -> None:
    """Up and down by spans of every length: full and empty sheaves of the stock in every number, and the barn behind it."""
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, size)
    raw.words[c + C_SHEAF_CAPACITY] = capacity
    twin, rng = Twin(raw, c), random.Random(capacity)
    assert 1 <= twin.stock_room <= MAX_STOCK_SHEAVES
    seen = set()
    for _ in range(300 if JIT or capacity < 60 else 60):
        span = rng.randrange(1, (twin.stock_room + 6) * capacity)
        for _ in range(span):
            twin.alloc()
        for offset in rng.sample(twin.live, min(rng.randrange(2 * span), len(twin.live))):
            twin.free(offset)
        twin.check()
        assert len(twin.stock) + twin.empties <= twin.stock_room
        seen.add((len(twin.stock), twin.empties))
        if len(twin.live) > 40 * capacity:
            for offset in list(twin.live):
                twin.free(offset)
            twin.check()
            assert validate_cache(raw.words, c) == 0
    raw.validate()
    for offset in list(twin.live):
        twin.free(offset)
    while twin.stock:
        seen.add((len(twin.stock), twin.empties))
        twin.alloc()
        twin.check()
    seen.add((0, twin.empties))
    for full in range(twin.stock_room + 1):  # once grown it does not shrink: its sheaves are full or empty
        assert (full, twin.stock_room - full) in seen
    for offset in list(twin.live):
        twin.free(offset)
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


def test_a_stock_serves_and_takes_without_the_lock() -> None:
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, 16)
    raw.words[c + C_SHEAF_CAPACITY] = capacity = 4
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(capacity * (stock_room(raw, c) + 2))]
    for offset in live:
        kmem_cache_free(raw.words, c, offset)
    before = [field(raw, c, name) for name in (C_ALLOCS, C_FREES, C_NR_BARN_FULL, C_NR_BARN_EMPTY)]
    d = own(raw, c)
    assert len(stock(raw, d)) == stock_room(raw, c) > 1
    raw.words[H_CLOSED] = 1  # with the lock nothing would be served
    again = [int(kmem_cache_alloc(raw.words, c)) for _ in live]
    raw.words[H_CLOSED] = 0
    assert set(again) == set(live)
    for offset in again:
        assert kmem_cache_free(raw.words, c, offset) == 0
    assert before == [field(raw, c, name) for name in (C_ALLOCS, C_FREES, C_NR_BARN_FULL, C_NR_BARN_EMPTY)]
    assert_pristine(raw)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("do", [kmem_cache_free, lambda words, _c, offset: kfree(words, offset)], ids=["cache", "any"])
def test_a_second_free_is_refused_on_top_of_a_full_sheaf_too(do: Callable[..., int], extra: int) -> None:
    """Also where an empty main sheaf or stock is there to be exchanged for it."""
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, 16)
    raw.words[c + C_SHEAF_CAPACITY] = capacity = 4
    for _ in range(2):  # then the stock has empty sheaves
        live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(capacity * (stock_room(raw, c) + 2) + extra)]
        for offset in live:
            assert do(raw.words, c, offset) == 0
            assert do(raw.words, c, offset) == EINVAL
        raw.validate()
    assert raw.words[H_BAD_FREES] == 0
    assert_pristine(raw)


@pytest.mark.parametrize("more", [0, 1])
def test_there_is_a_stock_where_its_word_can_name_every_sheaf(more: int) -> None:
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw, 16)
    end = int(raw.words[H_END_PFN])
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(300)]
    raw.words[H_END_PFN] = MAX_STOCK_PFN + more
    for offset in live:
        assert kmem_cache_free(raw.words, c, offset) == 0
    raw.words[H_END_PFN] = end
    assert (stock(raw, own(raw, c)) == []) == (more == 1)
    last = MAX_STOCK_PFN * PAGE // 8 // SHEAF_WORDS - 1  # the last sheaf of the largest arena with stocks
    assert 0 < last << STOCK_SHIFT | last < 1 << 63
    assert_pristine(raw)
