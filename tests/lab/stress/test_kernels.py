"""The loop without the GIL: what it counts, and that it notices every kind of damage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from checks import some

import realalloc as ra
from realalloc import jit
from realalloc.lab.stress import kernels as k
from realalloc.lab.stress.draws import STYLE_CODES
from realalloc.lab.stress.worker import describe

TURNS = some(20_000, 60)


class Bench:
    """An arena with what a loop needs."""

    def __init__(
        self, arena: ra.Arena, kinds: tuple[int, ...] = (0, 1, 2, 3), slots: int = 32, shared: int = 16
    ) -> None:
        rng = np.random.default_rng(3)
        self.words: Any = arena.words
        self.caches = [arena.kmem_cache(f"c{size}", size) for size in (24, 200)]
        named = [number for cache in self.caches for number in (cache.at, cache.size)]
        self.cache_table = np.array([*named, 10], np.int64)
        self.sizes = rng.integers(1, 3000, k.STREAM)
        self.kinds = rng.choice(np.array(kinds, np.int64), k.STREAM)
        self.table = np.zeros(slots * k.RECORD, np.int64)
        self.shared = np.zeros(shared * k.RECORD, np.int64)
        self.state = np.array([99, 0, 0, 0], np.int64)
        self.stop = np.zeros(1, np.int64)
        self.counts = np.zeros(k.COUNTS, np.int64)
        self.failure = np.zeros(k.FAILURE_WORDS, np.int64)

    def work(self, turns: int) -> int:
        return int(
            k.work(
                self.words, self.table, self.shared, self.sizes, self.kinds, self.cache_table, self.state, self.stop,
                self.counts, self.failure, turns,
            )
        )  # fmt: skip

    def clear(self) -> None:
        for table in (self.table, self.shared):
            k.clear(self.words, table, self.counts, self.failure)

    def live(self) -> list[int]:
        """Return the records of live blocks of its own."""
        return [at for at in range(0, len(self.table), k.RECORD) if self.table[at + k.OFFSET]]

    @property
    def bad(self) -> list[int]:
        return [int(self.counts[which]) for which in (k.WRONG, k.NEIGHBOUR, k.REFUSED, k.SHORT)]


@pytest.fixture
def bench(arena: ra.Arena) -> Iterator[Bench]:
    made = Bench(arena)
    yield made
    made.clear()
    for cache in made.caches:
        cache.destroy()


@pytest.mark.parametrize("style", list(STYLE_CODES))
def test_what_was_taken_is_live_or_was_read_and_freed(bench: Bench, arena: ra.Arena, style: str) -> None:
    bench.state[k.STYLE] = STYLE_CODES[style]
    assert bench.work(TURNS) == TURNS
    taken, freed = bench.counts[: k.FREED], bench.counts[k.FREED : k.FULL]
    every = [*bench.table[k.OFFSET :: k.RECORD], *bench.shared[k.OFFSET :: k.RECORD]]
    assert (taken - freed).sum() == np.count_nonzero(every) > 0
    assert (taken[:4] > 0).all()
    arena.validate()
    bench.clear()
    assert (bench.counts[: k.FREED] == bench.counts[k.FREED : k.FULL]).all()
    assert bench.bad == [0, 0, 0, 0] and not bench.failure.any()
    assert bench.counts[k.READ_WORDS] > bench.counts[k.FREED : k.FULL].sum()
    assert bench.counts[k.REALLOCS] > 0 or TURNS < 1000


def test_the_same_dice_do_the_same(bench: Bench) -> None:
    bench.work(50)
    first = bench.table[k.BYTES :: k.RECORD].copy()
    bench.clear()
    bench.counts[:] = bench.table[:] = bench.shared[:] = 0
    bench.state[:] = [99, 0, 0, 0]
    bench.work(50)
    assert (bench.table[k.BYTES :: k.RECORD] == first).all()


def test_a_stopped_loop_ends_at_once(bench: Bench) -> None:
    bench.stop[0] = 1
    assert bench.work(100) == 0


def test_a_wrong_word_is_found_and_described(bench: Bench, arena: ra.Arena) -> None:
    bench.work(100)
    at = bench.live()[0]
    offset, nbytes = int(bench.table[at + k.OFFSET]), int(bench.table[at + k.BYTES])
    word = k.words_of(nbytes) // 2
    arena.words[(offset >> 3) + word] ^= 1 << 40
    k.give(bench.words, bench.table, at, bench.counts, bench.failure)
    assert bench.bad == [1, 0, 0, 0]
    text = describe(bench.failure)
    assert f"at offset {offset:#x}: word {word} is " in text and "not 0x" in text


def test_a_damaged_neighbour_is_found(bench: Bench, arena: ra.Arena) -> None:
    bench.work(100)
    at = bench.live()[0]
    offset, words = int(bench.table[at + k.OFFSET]), k.words_of(int(bench.table[at + k.BYTES]))
    arena.words[(offset >> 3) + words - 1] ^= 1
    for place in (offset - 8, offset + 8):  # as if a block just below or above had been freed
        k.read_neighbours(bench.words, bench.table, place, bench.counts, bench.failure)
    assert bench.counts[k.NEIGHBOUR] >= 1
    assert "after another block was freed or filled" in describe(bench.failure)
    arena.words[(offset >> 3) + words - 1] ^= 1
    bench.counts[k.NEIGHBOUR] = 0


def test_a_block_of_which_nobody_knows_is_refused(bench: Bench, arena: ra.Arena) -> None:
    bench.work(100)
    at = next(at for at in bench.live() if bench.table[at + k.KIND] == k.PAGES)
    offset, nbytes = int(bench.table[at + k.OFFSET]), int(bench.table[at + k.BYTES])
    assert jit.free_pages(arena.words, offset >> 12, -1) == 0  # behind its back
    k.give(bench.words, bench.table, at, bench.counts, bench.failure)
    assert bench.counts[k.SHORT] == 1  # ksize knows it no more
    assert "usable bytes, not" in describe(bench.failure) and nbytes


def test_a_taken_slot_of_the_shared_table_is_passed_over(bench: Bench) -> None:
    bench.shared[k.LOCK :: k.RECORD] = 1
    bench.work(some(500, 60))
    assert bench.counts[k.PASSED] > 0 and not bench.shared[k.OFFSET :: k.RECORD].any()
    bench.shared[k.LOCK :: k.RECORD] = 0


def test_no_memory_is_counted(arena: ra.Arena) -> None:
    with ra.Arena("1MiB") as small:
        bench = Bench(small, kinds=(k.KMALLOC,), slots=400)
        bench.sizes[:] = 8000
        bench.work(some(2000, 400))
        assert bench.counts[k.FULL + k.KMALLOC] > 0
        bench.clear()
        assert bench.bad == [0, 0, 0, 0]
