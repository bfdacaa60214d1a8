"""The loops that replay a trace: blocks live as long as they did, contents too, and a failure ends every thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import realalloc as ra
from realalloc.lab.loops.replays import wait_turn
from realalloc.lab.peers import ours
from realalloc.lab.trace.format import CALLOC, FREE, MALLOC, REALLOC


def test_a_wait_ends_when_its_number_is_reached() -> None:
    turns = np.zeros(4, np.int64)
    wait_turn(turns, 0, 0)  # compiled before the thread starts
    answers: list[int] = []
    waiter = threading.Thread(target=lambda: answers.append(wait_turn(turns, 1, 3)), daemon=True)
    waiter.start()
    for number in (1, 2):
        turns[1] = number
        waiter.join(0.02)
        assert waiter.is_alive()
    turns[2] = 3  # another slot's
    waiter.join(0.02)
    assert waiter.is_alive()
    turns[1] = 4
    waiter.join(60)
    assert answers == [0]


def test_a_wait_ends_when_another_failed() -> None:
    turns = np.array([3, 0, 1], np.int64)
    assert wait_turn(turns, 0, 3) == 0
    assert wait_turn(turns, 1, 1) < 0


def parts(*rows: tuple[str, int, int]) -> tuple[np.ndarray, ...]:
    """Make one thread's events of (operation, slot, size), that wait for nobody."""
    ops, slots, sizes = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return ops, slots, sizes, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)


ROWS = (
    (MALLOC, 0, 24),
    (MALLOC, 1, 100),
    (REALLOC, 0, 5000),
    (FREE, 1, 0),
    (CALLOC, 1, 16),
    (FREE, 0, 0),
    (FREE, 1, 0),
)


@pytest.mark.parametrize("loop", ["replay_events", "replay_whole"])
def test_a_loop_does_what_a_plain_model_does(loop: str) -> None:
    with ra.Arena("16MiB") as arena:
        peer = ours(arena.words)
        for end in range(len(ROWS) + 1):
            blocks, turns = np.zeros(2, np.int64), np.zeros(3, np.int64)
            live: dict[int, tuple[int, int]] = {}
            total = 0
            for k, (op, slot, size) in enumerate(ROWS[:end]):
                live.pop(slot, None)
                if op != FREE:
                    live[slot] = size, slot + k
                    total += size
            assert getattr(peer.loops, loop)(peer.how(), blocks, turns, *parts(*ROWS), 0, end) == total
            assert [slot for slot in (0, 1) if blocks[slot] != 0] == sorted(live)
            assert arena.stats().live_objects == len(live)
            if loop == "replay_whole":
                for slot, (size, value) in live.items():
                    first = int(blocks[slot]) // 8
                    assert set(arena.words[first : first + size // 8].tolist()) == {value}  # all of it was written
            assert peer.loops.drain(peer.how(), blocks) >= 0
            assert arena.stats().live_objects == 0


def test_numbers_are_posted_behind_their_event() -> None:
    with ra.Arena("16MiB") as arena:
        peer = ours(arena.words)
        blocks, turns = np.zeros(2, np.int64), np.zeros(3, np.int64)
        ops, slots, sizes, waits, posts = parts((MALLOC, 0, 8), (MALLOC, 1, 8), (FREE, 0, 0))
        posts[:] = 1, 0, 2
        for end, seen in ((1, [1, 0, 0]), (2, [1, 0, 0]), (3, [2, 0, 0])):
            peer.loops.replay_events(peer.how(), blocks, turns, ops, slots, sizes, waits, posts, end - 1, end)
            assert turns.tolist() == seen
        peer.loops.drain(peer.how(), blocks)
