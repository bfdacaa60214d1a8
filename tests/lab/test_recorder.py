"""Times of single operations: which are taken, that none is lost at the ends of the buffer, and what threads add up to."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from realalloc.lab import histogram, recorder
from realalloc.lab.clock import ns_per_tick, reading_ns
from realalloc.lab.recorder import (
    ALLOC,
    COUNT,
    EVERY,
    FREE,
    HEADER,
    HISTOGRAMS,
    KIND_NAMES,
    KINDS,
    RESPONSE,
    ROOM,
    SIDE,
    TURNS,
    begin,
    end,
    latencies,
    note,
    settle,
)


@numba.njit
def _operations(words, kind, number, timed):
    for k in range(number):
        begun = begin(words, kind)
        timed[k] = begun != 0
        end(words, kind, begun)


def _buckets(words, kind):
    return words[HISTOGRAMS + kind * histogram.BUCKETS :][: histogram.BUCKETS]


def _counts(words):
    return {found.operation: found.count for found in latencies([words])}


def test_the_parts_tile_a_recorder() -> None:
    kinds = range(len(KIND_NAMES))
    words = recorder.make()
    marks = [COUNT, SIDE, *(TURNS + kind for kind in kinds)]
    assert len(set(marks)) == len(marks) and max(marks) < HEADER
    for kind in kinds:
        _buckets(words, kind)[:] += kind + 1
    words[HEADER:HISTOGRAMS] += 9
    words[:HEADER] += 9
    sizes = {kind + 1: histogram.BUCKETS for kind in kinds} | {9: HEADER + ROOM}
    assert dict(zip(*np.unique(words, return_counts=True), strict=True)) == sizes
    assert len(KIND_NAMES) <= KINDS


@pytest.mark.parametrize("number", [ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 5 * ROOM + 3])
def test_none_is_lost_at_the_end_of_the_buffer(number: int) -> None:
    words = recorder.make()
    for k in range(number):
        note(words, RESPONSE, k)
        assert 0 <= words[COUNT] < ROOM
    assert words[COUNT] == number % ROOM
    assert _buckets(words, RESPONSE).sum() == number // ROOM * ROOM
    assert _counts(words) == {"response": number}
    assert (_buckets(words, RESPONSE) == histogram.counted(np.arange(number))).all()
    assert _counts(words) == {"response": number}  # asking again counts nothing again


@pytest.mark.parametrize("number", [1, 2, 3, 2 * ROOM - 2, 2 * ROOM - 1, 2 * ROOM, 2 * ROOM + 1, 9 * ROOM])
def test_every_second_operation_is_timed(number: int) -> None:
    words, timed = recorder.make(), np.zeros(number, np.int64)
    _operations(words, ALLOC, number, timed)
    assert words[TURNS + ALLOC] == number and words[TURNS + FREE] == 0
    assert _counts(words)["alloc"] == timed.sum()
    assert abs(int(timed.sum()) - number / EVERY) <= 1 + number // (2 * ROOM)
    assert (timed[: 2 * ROOM - 1] == (np.arange(number) % 2 == 0)[: 2 * ROOM - 1]).all()


def test_sides_change_when_the_buffer_is_emptied() -> None:
    words, timed = recorder.make(), np.zeros(6 * ROOM, np.int64)
    _operations(words, FREE, len(timed), timed)
    odd = np.flatnonzero(timed) % 2
    (changes,) = np.nonzero(np.diff(odd))
    assert odd[0] == 0
    assert (changes + 1).tolist() == [ROOM, 2 * ROOM, 3 * ROOM]


def test_kinds_share_the_buffer_and_nothing_else() -> None:
    words = recorder.make()
    for k in range(len(KIND_NAMES) * ROOM):
        note(words, k % len(KIND_NAMES), 10 * (k % len(KIND_NAMES)))
    assert _counts(words) == dict.fromkeys(KIND_NAMES, ROOM)
    for kind in range(len(KIND_NAMES)):
        assert _buckets(words, kind)[histogram.bucket_of(10 * kind)] == ROOM


def test_what_is_not_timed_is_not_recorded() -> None:
    words = recorder.make()
    end(words, ALLOC, 0)
    assert words[COUNT] == 0 and latencies([words]) == () == latencies([])


def test_intervals_of_all_sizes_keep_their_kind() -> None:
    words = recorder.make()
    large = (1 << histogram.MAX_BITS) - 1
    for ticks in (-5, 0, 1, large, 1 << 60):  # the counter of another processor may be a little behind
        for kind in range(len(KIND_NAMES)):
            note(words, kind, ticks)
    settle(words)
    for kind in range(len(KIND_NAMES)):
        assert (_buckets(words, kind) == histogram.counted(np.array([-5, 0, 1, large, 1 << 60]))).all()


def test_recorders_of_several_threads_add_up() -> None:
    parts = [recorder.make() for _ in range(3)]
    for number, words in enumerate(parts):
        for _ in range(ROOM + number):
            note(words, ALLOC, 100)
    note(parts[2], RESPONSE, 7)
    alloc, response = latencies(parts)
    top = float(histogram.highest(histogram.bucket_of(100)))
    assert alloc.buckets == ((pytest.approx(top * ns_per_tick()), 3 * ROOM + 3),)
    assert (alloc.operation, alloc.overhead_ns, alloc.in_every) == ("alloc", reading_ns(), EVERY)
    assert (response.operation, response.count, response.in_every) == ("response", 1, 1)
