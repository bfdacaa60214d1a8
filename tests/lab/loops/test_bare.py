"""Bare stacks are an allocator all the same: what they give is memory, blocks do not overlap, and none is lost."""

from __future__ import annotations

import random

import numba
import pytest
from checks import some

from realalloc.lab.loops import bare
from realalloc.lab.loops.bare import BARE, CLASSES, LEAST_CLASS, REGION_SHIFT, TABLE, bare_how
from realalloc.lease.capi import load_at, store_at
from realalloc.memory import Memory

alloc = numba.njit(lambda how, nbytes: BARE.alloc(how, nbytes))
free = numba.njit(lambda how, block: BARE.free(how, block))
realloc = numba.njit(lambda how, block, nbytes: BARE.realloc(how, block, nbytes))


def class_of(nbytes: int) -> int:
    return max((nbytes - 1).bit_length(), LEAST_CLASS)


def stack(memory: Memory, part: int, k: int) -> list[int]:
    """Walk a stack from its top to the word of 0 that it begins with."""
    found = []
    at = (int(memory.words[part * TABLE + k]) - memory.address) // 8
    while memory.words[at] != 0:
        found.append(int(memory.words[at]))
        at -= 1
    return found


def check(memory: Memory, live: dict[int, int]) -> None:
    """Every object below the next one is on one stack, or somebody's."""
    for k in range(CLASSES):
        region = memory.address + ((k + 1) << REGION_SHIFT)
        after = int(memory.words[2 * TABLE + k])
        mine = [block for block, nbytes in live.items() if class_of(nbytes) == k]
        assert sorted(stack(memory, 0, k) + stack(memory, 1, k) + mine) == list(range(region, after, 1 << k))


@pytest.mark.parametrize("seed", range(3))
def test_random_work_against_a_set(seed: int) -> None:
    dice = random.Random(seed)
    how, memory = bare_how()
    live: dict[int, int] = {}
    for step in range(some(3000, 300)):
        if live and dice.random() < 0.45:
            block = dice.choice(list(live))
            assert load_at(block) == block ^ live.pop(block)
            free(how, block)
        else:
            nbytes = int(2 ** dice.uniform(0, 16))
            block = int(alloc(how, nbytes))
            assert block % (1 << class_of(nbytes)) == 0 and block not in live
            live[block] = nbytes
            store_at(block, block ^ nbytes)
        if step % 50 == 0:
            check(memory, live)
    for block in live:
        free(how, block)
    check(memory, {})


@pytest.mark.parametrize("nbytes", [1, 8, 9, 4096, (32 << 20) - 1, 32 << 20])
def test_sizes_up_to_the_largest(nbytes: int) -> None:
    how, memory = bare_how()
    block = int(alloc(how, nbytes))
    store_at(block + max(nbytes - 8, 0), 7)
    check(memory, {block: nbytes})


@pytest.mark.parametrize("nbytes", [(32 << 20) + 1, 1 << 40])
def test_sizes_beyond(nbytes: int) -> None:
    how, memory = bare_how()
    assert alloc(how, nbytes) == 0
    check(memory, {})


def test_a_region_has_an_end() -> None:
    how, memory = bare_how()
    live = {}
    while (block := int(alloc(how, 32 << 20))) != 0:
        live[block] = 32 << 20
    assert len(live) == 1 << REGION_SHIFT >> 25
    check(memory, live)
    last = live.popitem()[0]
    free(how, last)
    assert alloc(how, 32 << 20) == last


def test_realloc_keeps_the_contents() -> None:
    how, memory = bare_how()
    block = int(alloc(how, 40))
    store_at(block + 32, 123)
    assert realloc(how, block, 64) == block
    larger = int(realloc(how, block, 100))
    assert load_at(larger + 32) == 123
    smaller = int(realloc(how, larger, 33))
    assert load_at(smaller + 32) == 123
    check(memory, {smaller: 33})
    assert realloc(how, smaller, 1 << 40) == 0
    check(memory, {smaller: 33})


def test_a_pair_alternates_between_the_stacks() -> None:
    how, memory = bare_how()
    seen = []
    for _ in range(2 * bare._TAKEN):
        seen.append(int(alloc(how, 64)))
        free(how, seen[-1])
    assert len(set(seen[: bare._TAKEN])) == bare._TAKEN  # through one object it would wait for its own stores
    assert set(seen) == set(seen[: bare._TAKEN])
    check(memory, {})
