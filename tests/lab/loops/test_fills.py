"""Loops that write and read whole objects: the sums that they find, and what a failing allocation leaves."""

from __future__ import annotations

import numpy as np
import pytest
from cheats import CALLS, OUT, failing, how, loops

SIZES = np.array([8, 64, 504, 24, 40], np.int32)
SLOTS = np.array([0, 1, 0, 2, 1], np.int32)


@pytest.fixture(scope="module")
def made():
    return loops(failing)


def _books(most: int = 1 << 60):
    return how(most), np.zeros(3, np.int64), np.zeros(3, np.int32)


def test_toggle_reads_what_was_written(made) -> None:
    books, blocks, held = _books()
    # 8 bytes of 1s are read by entry 2, 64 bytes of 2s by entry 4; the object of entry 3 stays
    assert made.toggle(books, blocks, held, SLOTS, SIZES, 0, 5) == 1 * 1 + 2 * 8
    assert (books[CALLS], books[OUT]) == (3, 1)
    assert blocks[2] != 0 and held[2] == 24 and not blocks[:2].any()
    made.drain(books, blocks)
    assert books[OUT] == 0


def test_zero_leaves_its_number_at_both_ends(made) -> None:
    books, blocks, held = _books()
    assert made.zero(books, blocks, held, SLOTS, SIZES, 0, 5) == 2 * 0 + 2 * 1 + SIZES.sum()
    assert books[OUT] == 3 and held.tolist() == [504, 40, 24]
    assert made.drain(books, blocks) == 2 + 4 + 3


def test_replay_full(made) -> None:
    books, blocks, _ = _books()
    sizes = np.array([8, 64, -1, 24, -1], np.int32)
    assert made.replay_full(books, blocks, SLOTS, sizes, 0, 5) == 0
    assert books[OUT] == 1
    assert made.drain(books, blocks) == 3


def test_scratch_counts_its_writes(made) -> None:
    books, blocks, _ = _books()
    made.replace(books, blocks, SLOTS, SIZES, 0, 1)
    assert made.scratch(books, blocks[0], 3, 50) == 150
    assert (books[CALLS], books[OUT]) == (4, 0)
    assert made.scratch(books, 0, 0, 50) == 0
    assert made.scratch(how(2), 0, 3, 50) == -1


@pytest.mark.parametrize("most", range(5))
@pytest.mark.parametrize("name", ["toggle", "zero", "replay_full"])
def test_without_memory_nothing_is_freed_twice(name: str, most: int, made) -> None:
    books, blocks, held = _books(most)
    sizes = np.array([8, 64, -1 if name == "replay_full" else 504, 24, 40], np.int32)
    given = (blocks,) if name == "replay_full" else (blocks, held)
    needs = {"toggle": 3, "zero": 5, "replay_full": 4}[name]
    result = getattr(made, name)(books, *given, SLOTS, sizes, 0, 5)
    assert (result == -1) == (most < needs)
    if name != "replay_full":
        assert books[OUT] == np.count_nonzero(blocks)
    made.drain(books, blocks)
    assert books[OUT] == (1 if name == "replay_full" and most == 4 else 0)  # slot 1 was filled over
