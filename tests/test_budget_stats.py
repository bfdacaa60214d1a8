"""What budgets say of themselves: paths, sums of trees beside a plain model, and whom a refusal names."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support import JIT

import realalloc as ra
from realalloc import budget_stats
from realalloc.budget_stats import NAMED_HOLDERS, BudgetStats, largest_holders, read_budget
from realalloc.mm.layout import BUDGET_WORDS
from realalloc.sizes import format_bytes

KIB = 1 << 10


@pytest.fixture
def arena() -> Iterator[ra.Arena]:
    with ra.Arena("32MiB", decay=None, huge_pages=False) as made:
        yield made
        made.validate()


def read(arena: ra.Arena, budget: ra.Budget) -> BudgetStats:
    return read_budget(arena.words, budget._at)


def trees(nodes: int) -> Iterator[tuple[int, ...]]:
    """All trees in which each node's parent was made before it: node 0 is the root."""
    yield from itertools.product(*(range(k) for k in range(1, nodes)))


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_every_small_tree_adds_up_and_is_listed_in_the_order_of_making(nodes: int, arena: ra.Arena) -> None:
    for number, parents in enumerate(trees(nodes)):
        made = [arena.budget(f"root-{number}", limit="8MiB")]
        for k, above in enumerate(parents, 1):
            made.append(arena.budget(f"node-{k}", parent=made[above]))
        held: list[Any] = []
        for k, budget in enumerate(made):
            with budget:
                held.append(arena.kmalloc((k + 1) * 4 * KIB))
        below = {k: [j for j, above in enumerate(parents, 1) if above == k] for k in range(nodes)}

        def used(k: int, below: dict[int, list[int]] = below) -> int:
            return held_bytes[k] + sum(used(child, below) for child in below[k])

        def path(k: int, parents: tuple[int, ...] = parents, number: int = number) -> str:
            return f"root-{number}" if k == 0 else f"{path(parents[k - 1], parents, number)}/node-{k}"

        held_bytes = [arena.ksize(buf) for buf in held]
        for k, budget in enumerate(made):
            said = read(arena, budget)
            assert said.used == used(k) == said.peak and said.path == path(k)
            assert (said.buffers, said.buffer_bytes) == (1, held_bytes[k])
            assert [child.path for child in said.children] == [path(j) for j in below[k]]
            assert said.children == tuple(read(arena, made[j]) for j in below[k])
            assert (said.limit, said.high, said.closed) == (8 << 20 if k == 0 else None, None, False)
        held.clear()
        assert all(read(arena, budget).used == 0 for budget in made)
        for budget in reversed(made):
            budget.close()


def test_a_name_of_any_length_and_any_letters_is_read_back(arena: ra.Arena) -> None:
    for name in ("x", "seven77", "eight888", "nine99999", "Grüße-π", "a" * 64):
        made = arena.budget(name)
        assert (read(arena, made).name, read(arena, made).path) == (name, name)
        made.close()
    top = arena.budget("nur")
    assert read(arena, arena.budget("für", parent=top)).path == "nur/für"


def test_each_kind_is_counted_by_itself(arena: ra.Arena) -> None:
    budget = arena.budget("all", limit="16MiB", high="12MiB")
    with budget:
        buffers = [arena.kmalloc(4096), arena.vmalloc(10_000), arena.alloc_pages(1).view]
        cache, pool = arena.kmem_cache("objects", 512, budget=budget), arena.mempool(3, size=4096, budget=budget)
        array = arena.empty(100_000, np.uint8) if JIT else bytes(0)  # NumPy's handler is machine code
    objects = cache.alloc_bulk(20)
    said = read(arena, budget)
    assert (said.buffers, said.elements, said.arrays) == (3, 3, int(JIT)) and said.slabs == cache.stats().slabs > 0
    assert said.buffer_bytes == 4096 + 3 * 4096 + 8192 and said.element_bytes == 3 * 4096
    assert said.array_bytes >= len(array) and said.slab_bytes == cache.stats().slabs * (4096 << cache.stats().order)
    assert said.used == said.buffer_bytes + said.slab_bytes + said.element_bytes + said.array_bytes
    assert (said.limit, said.high, said.failures) == (16 << 20, 12 << 20, 0)
    del array, objects
    buffers.clear()
    pool.destroy()
    cache.destroy()
    after = read(arena, budget)
    assert (after.used, after.buffers, after.slabs, after.elements, after.arrays, after.peak) == (
        0,
        0,
        0,
        0,
        0,
        said.used,
    )


def test_the_largest_holders_are_named_the_largest_first(arena: ra.Arena) -> None:
    rng, budget = random.Random(5), arena.budget("top")
    assert largest_holders(arena.words, budget._at) == "nobody"
    below = [arena.budget(f"b{k}", parent=budget) for k in range(3)]
    cache, pool = arena.kmem_cache("objects", 8192, budget=budget), arena.mempool(2, size=64 * KIB, budget=budget)
    for _ in range(20):
        held: dict[str, list[Any]] = {f"budget 'top/b{k}'": [] for k in range(3)} | {
            "cache 'objects'": [],
            "buffers": [],
        }
        for k, child in enumerate(below):
            with child:
                held[f"budget 'top/b{k}'"] = [arena.alloc_pages(0).view for _ in range(rng.randrange(0, 90, 7))]
        held["cache 'objects'"] = cache.alloc_bulk(rng.randrange(0, 40)) if rng.random() < 0.8 else []
        with budget:
            held["buffers"] = [arena.alloc_pages(0).view for _ in range(rng.randrange(0, 90, 13))]
        said = read(arena, budget)
        sizes = {child.path: child.used for child in said.children}
        model = [(sizes[f"top/b{k}"], f"budget 'top/b{k}'") for k in range(3)]
        model += [(said.slab_bytes, "cache 'objects'"), (said.buffer_bytes, f"{said.buffers} buffers")]
        model += [(said.element_bytes, "2 elements of pools")]
        expected = sorted((pair for pair in model if pair[0]), reverse=True)[:NAMED_HOLDERS]
        text = largest_holders(arena.words, budget._at)
        assert [part.rpartition(": ")[0] for part in text.split(", ")] == [what for _, what in expected]
        assert text.split(", ")[0].endswith(format_bytes(expected[0][0]))
        held.clear()
        cache.shrink()
    pool.destroy()
    cache.destroy()


def test_a_refusal_says_who_holds_it_and_is_counted_where_it_was(arena: ra.Arena) -> None:
    top = arena.budget("top", limit="64KiB")
    child = arena.budget("child", parent=top)
    with child:
        held = arena.kmalloc(40 * KIB)
        with pytest.raises(ra.OutOfMemory) as info:
            arena.kmalloc(40 * KIB)
    assert f"largest holders: {largest_holders(arena.words, top._at)}; free some" in str(info.value)
    assert "budget 'top/child': 64 KiB" in str(info.value) or "budget 'top/child': 40 KiB" in str(info.value)
    assert read(arena, top).failures >= 1 and read(arena, child).failures == 0
    del info
    held.release()


def test_a_closed_budget_says_so(arena: ra.Arena) -> None:
    budget = arena.budget("b")
    with budget:
        held = arena.kmalloc(100)
    at = budget._at
    assert not read(arena, budget).closed
    budget.close()
    said = read_budget(arena.words, at)
    assert said.closed and said.used == 128
    held.release()


@pytest.mark.skipif(not JIT, reason="NumPy's handler is machine code")
def test_scratch_words_are_zero_and_not_the_arenas(arena: ra.Arena) -> None:
    with arena.numpy():
        made = budget_stats.scratch(BUDGET_WORDS)
        assert not arena.owns(made)
    assert made.shape == (BUDGET_WORDS,) and made.dtype == np.int64 and not made.any() and made.flags.writeable
