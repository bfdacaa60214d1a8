"""A raw log becomes events: what the model says of addresses is what the events say of slots."""

from __future__ import annotations

import random

import numpy as np
import pytest
from checks import some
from traces import ADDRESS, events, live_after, log_of

from realalloc.lab.trace import resolve as module
from realalloc.lab.trace.format import OPERATIONS
from realalloc.lab.trace.raw import OP_CALLOC, OP_FREE, OP_MALLOC, OP_MOVE, OP_MOVED
from realalloc.lab.trace.resolve import resolve
from realalloc.lab.trace.walk import walk


def told(log: object) -> list[tuple[object, ...]]:
    found, _ = resolve(log)  # type: ignore[arg-type]
    return [(OPERATIONS[e["op"]], int(e["thread"]), int(e["slot"]), int(e["size"])) for e in found]


def test_allocations_frees_and_slots() -> None:
    log = log_of(
        (OP_MALLOC, 7, 0, 100), (OP_CALLOC, 9, 16, 200), (OP_FREE, 7, 0, 0), (OP_MALLOC, 7, 32, 8), (OP_FREE, 7, 16, 0)
    )
    assert told(log) == [
        ("malloc", 0, 0, 100),
        ("calloc", 1, 1, 200),
        ("free", 0, 0, 0),
        ("malloc", 0, 0, 8),
        ("free", 0, 1, 0),
    ]
    found, facts = resolve(log)
    assert (facts["slots"], facts["threads"]) == (2, 2)
    assert found["time_ns"].tolist() == [0, 64, 128, 192, 256]
    assert set(found["domain"].tolist()) == {2}


def test_a_reallocation_keeps_its_slot() -> None:
    log = log_of((OP_MALLOC, 0, 0, 10), (OP_MOVE, 0, 0, 0), (OP_MALLOC, 1, 0, 5), (OP_MOVED, 0, 64, 90), (OP_FREE, 0, 64, 0))
    assert told(log) == [("malloc", 0, 0, 10), ("malloc", 1, 1, 5), ("realloc", 0, 0, 90), ("free", 0, 0, 0)]


def test_a_reallocation_that_failed_leaves_the_block() -> None:
    log = log_of((OP_MALLOC, 0, 0, 10), (OP_MOVE, 0, 0, 0), (OP_MOVED, 0, -1, 90), (OP_FREE, 0, 0, 0))
    assert told(log) == [("malloc", 0, 0, 10), ("free", 0, 0, 0)]
    assert resolve(log)[1]["counts"]["failed_reallocations"] == 1


def test_what_was_there_before_is_counted() -> None:
    log = log_of((OP_FREE, 0, 0, 0), (OP_MOVE, 0, 16, 0), (OP_MOVED, 0, 32, 50), (OP_FREE, 0, 32, 0))
    assert told(log) == [("malloc", 0, 0, 50), ("free", 0, 0, 0)]
    counts = resolve(log)[1]["counts"]
    assert (counts["unknown_frees"], counts["adopted"], counts["moves"]) == (1, 1, 1)


def test_what_is_small_is_left_out() -> None:
    log = log_of((OP_MOVE, 0, 16, 0), (OP_MOVED, 0, 32, 50), (OP_MOVE, 0, 32, 0), (OP_MOVED, 0, 48, 500), least=100)
    assert told(log) == [("malloc", 0, 0, 500)]
    assert resolve(log)[1]["counts"]["small"] == 1


def test_an_allocation_where_a_block_is_live_is_the_same_block_again() -> None:
    log = log_of((OP_MALLOC, 0, 0, 10), (OP_MALLOC, 0, 0, 20), (OP_FREE, 0, 0, 0))
    assert told(log) == [("malloc", 0, 0, 10), ("realloc", 0, 0, 20), ("free", 0, 0, 0)]
    assert resolve(log)[1]["counts"]["overwritten"] == 1


def test_an_unfinished_reallocation_is_no_event() -> None:
    assert told(log_of((OP_MALLOC, 0, 0, 10), (OP_MOVE, 0, 0, 0))) == [("malloc", 0, 0, 10)]


def test_an_empty_log() -> None:
    found, facts = resolve(log_of())
    assert (len(found), facts["slots"], facts["threads"]) == (0, 0, 0)


def test_clocks_that_go_back_do_not() -> None:
    log = log_of(*[(OP_MALLOC, 0, 16 * k, 8) for k in range(4)])
    log.events[2, 0] -= 500
    assert resolve(log)[0]["time_ns"].tolist() == [0, 64, 64, 192]


def test_a_free_slot_goes_to_the_thread_that_freed_it_first() -> None:
    log = log_of(
        *[(OP_MALLOC, 0, 16 * k, 8) for k in range(4)],
        (OP_FREE, 1, 0, 0),
        (OP_FREE, 1, 16, 0),
        (OP_FREE, 0, 32, 0),
        (OP_MALLOC, 0, 64, 8),  # its own: slot 2
        (OP_MALLOC, 0, 80, 8),  # the other's oldest: slot 0
        (OP_MALLOC, 1, 96, 8),  # its own: slot 1
        (OP_MALLOC, 1, 112, 8),  # none is free: a new one
    )
    assert [slot for op, _, slot, _ in told(log) if op == "malloc"] == [0, 1, 2, 3, 2, 0, 1, 4]


@pytest.mark.parametrize("seed", range(3))
def test_random_logs_agree_with_a_dictionary(seed: int) -> None:
    """Addresses that collide in the table, blocks that move, threads that free each other's."""
    dice = random.Random(seed)
    live: dict[int, int] = {}
    places = []
    for _ in range(some(20_000, 1500)):
        thread, kind = dice.randrange(5), dice.random()
        if not live or kind < 0.4:
            address = 16 * dice.randrange(100_000)
            if address in live:
                continue
            live[address] = dice.randrange(1000)
            places.append((OP_MALLOC, thread, address, live[address]))
        elif kind < 0.6:
            old = dice.choice(list(live)[-50:])
            new = 16 * dice.randrange(100_000)
            if new in live:
                new = old
            del live[old]
            live[new] = dice.randrange(1000)
            places += [(OP_MOVE, thread, old, 0), (OP_MOVED, thread, new, live[new])]
        elif kind < 0.95:
            old = dice.choice(list(live)[-50:])
            del live[old]
            places.append((OP_FREE, thread, old, 0))
        else:
            places.append((OP_FREE, thread, 16 * dice.randrange(200_000, 300_000), 0))
    log = log_of(*places)
    found, facts = resolve(log)
    counts = facts["counts"]
    left_out = sum(counts[name] for name in ("unknown_frees", "moves", "failed_reallocations", "small"))
    assert len(log.events) == len(found) + left_out
    walked = walk(found, facts["slots"])
    assert walked.status is None
    assert sorted(live_after(found).values()) == sorted(live.values())
    assert (walked.left_bytes, walked.left_blocks) == (sum(live.values()), len(live))
    assert walked.peak_blocks == facts["slots"]


def test_a_table_that_grows_and_empties_finds_everything() -> None:
    """Backward shift: what was put behind a hole is still found."""
    number = some(5000, 700)
    offsets = random.Random(1).sample(range(1 << 20), number)
    log = log_of(*[(OP_MALLOC, 0, 16 * k, 1) for k in offsets], *[(OP_FREE, 0, 16 * k, 0) for k in offsets])
    found, facts = resolve(log)
    assert len(found) == 2 * number
    assert facts["counts"]["unknown_frees"] == 0
    assert not live_after(found)
    assert ADDRESS % 16 == 0 and module.FIRST_BITS == 10


def test_events_helper_makes_what_resolve_makes() -> None:
    found, _ = resolve(log_of((OP_MALLOC, 0, 0, 100), (OP_FREE, 0, 0, 0)))
    assert (found == events(("malloc", 0, 0, 100), ("free", 0, 0))).all()
    assert found.dtype == np.dtype(events().dtype)
