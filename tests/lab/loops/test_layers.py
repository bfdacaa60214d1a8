"""Layers: ``checked`` gives the same numbers to who did the same work, others to who cheats; ``timed`` changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from cheats import CALLS, double, failing, forgetful, honest, how
from checks import some
from numba import njit

import realalloc as ra
from realalloc.lab import recorder
from realalloc.lab.crowd import crowd
from realalloc.lab.loops import basic, layers
from realalloc.lab.loops.kinds import CONTROL, NATIVE, OURS, Functions, control_how
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED, checksum, loops, make_tally

COUNT = 400
ORDER = np.random.default_rng(1).permutation(COUNT).astype(np.int32)


def _batches(functions: Functions, inner=None, repeats: int = 3):
    tally, blocks = make_tally(), np.zeros(COUNT, np.int64)
    inner = how() if inner is None else inner
    returned = loops(functions, CHECKED).batches((inner, tally), 64, ORDER, blocks, repeats)
    return returned, tally.tolist(), checksum([tally])


HONEST = (3 * COUNT * 64, [3 * COUNT, 3 * COUNT * 64, 3 * COUNT, 3 * sum(range(COUNT))])


@pytest.mark.parametrize("functions", [honest, failing])
def test_the_same_work_has_the_same_sum(functions) -> None:
    assert _batches(functions)[:2] == HONEST


def test_ours_has_that_sum_too(arena: ra.Arena) -> None:
    assert _batches(OURS, arena.words) == _batches(NATIVE)


@pytest.mark.parametrize("functions", [double, forgetful], ids=["hands a block out twice", "loses a write"])
def test_who_cheats_has_another_sum(functions) -> None:
    returned, tally, total = _batches(functions)
    assert returned == HONEST[0]  # nothing is seen without the layer
    assert tally != HONEST[1] and total != _batches(honest)[2]


def test_objects_that_lie_over_each_other_have_another_sum() -> None:
    assert _batches(CONTROL, control_how(0, 64))[1] != HONEST[1]


def test_who_did_less_has_another_sum() -> None:
    assert len({_batches(honest, repeats=repeats)[2] for repeats in (1, 2, 3, 4)}) == 4


def test_failed_allocations_and_null_are_not_counted() -> None:
    tally, blocks = make_tally(), np.zeros(COUNT, np.int64)
    assert loops(failing, CHECKED).batches((how(10), tally), 64, ORDER, blocks, 1) == basic.FAILED
    assert tally.tolist() == [10, 640, 0, 0]
    assert loops(failing, CHECKED).drain((how(), tally), blocks) == sum(range(10))
    assert tally.tolist() == [10, 640, 10, sum(range(10))]


@pytest.mark.parametrize(("sign", "same"), [(1, True), (-1, False)])
def test_a_sum_says_what_each_number_was(sign: int, same: bool) -> None:
    tally = np.array([5, 40, 5, 7], np.int64)
    other = np.array([5, 40, 5, 7 * sign], np.int64)
    assert (checksum([tally]) == checksum([other])) == same
    for k in range(4):
        changed = tally.copy()
        changed[k] += 1
        assert checksum([changed]) != checksum([tally])
    assert checksum([]) == checksum([make_tally()]) == 0


def test_threads_add_up_in_any_order() -> None:
    parts = [np.random.default_rng(k).integers(-1000, 1 << 40, 4) for k in range(3)]
    assert checksum(parts) == checksum(parts[::-1]) == checksum([sum(parts)])


def _shared(functions, inner, threads_first: int):
    """Two threads exchange objects; whoever frees one counts what is in it."""
    tallies, number = [make_tally(), make_tally()], some(20_000, 500)
    table, dice = np.zeros(64, np.int64), np.random.default_rng(3)
    slots, sizes = dice.integers(0, 64, number).astype(np.int32), dice.integers(8, 300, number).astype(np.int32)
    made = loops(functions, CHECKED)
    hows = [(inner, tally) for tally in tallies]
    made.share(hows[0], table, slots, sizes, 0)
    jobs = [lambda k=k: made.share(hows[k], table, slots, sizes, number) for k in range(2)]
    crowd(jobs if threads_first == 0 else jobs[::-1])
    made.drain(hows[threads_first], table)
    return checksum(tallies), [int(tally[layers.FREED]) for tally in tallies]


def test_it_does_not_matter_which_thread_frees(arena: ra.Arena) -> None:
    found = [_shared(NATIVE, how(), first) for first in (0, 1, 0, 1)]
    found.append(_shared(OURS, arena.words, 0))
    assert len({total for total, _ in found}) == 1
    assert all(sum(freed) == 2 * some(20_000, 500) for _, freed in found)


@pytest.mark.parametrize("name", ["pairs", "batches", "fifo"])
def test_a_layer_changes_nothing_that_the_loop_sees(name: str) -> None:
    number = 300
    results, contents = [], []
    for layer, state in ((PLAIN, None), (CHECKED, make_tally()), (TIMED, recorder.make())):
        made, blocks = loops(failing, layer), np.zeros(COUNT, np.int64)
        inner = how()
        first = inner if state is None else (inner, state)
        given = {
            "pairs": (48, number, True),
            "batches": (48, ORDER, blocks, 2),
            "fifo": (blocks, 256, 0, number, 64),
        }[name]
        results.append((getattr(made, name)(first, *given), inner[CALLS:].tolist()))
        if name != "batches":
            contents.append((np.flatnonzero(blocks).tolist(), made.drain(first, blocks)))
            results.append(inner[CALLS:].tolist())
    assert results[: len(results) // 3] * 3 == results
    assert len({str(found) for found in contents}) <= 1


def test_timed_records_every_second_call() -> None:
    words = recorder.make()
    assert loops(honest, TIMED).pairs((how(), words), 64, 1001, True) == 1001 * 64
    counts = {found.operation: found.count for found in recorder.latencies([words])}
    assert counts.keys() == {"alloc", "free"}
    assert all(500 <= count <= 502 for count in counts.values())
    assert words[recorder.TURNS] == words[recorder.TURNS + 1] == 1001


@pytest.mark.parametrize("functions", [honest, OURS], ids=["native", "ours"])
def test_realloc_in_all_layers(functions: Functions, arena: ra.Arena) -> None:
    """A block grows and shrinks: all layers see the same, ``checked`` sums what was kept, ``timed`` times it."""
    inner = arena.words if functions is OURS else how()
    states = {CHECKED: make_tally(), TIMED: recorder.make()}
    for layer, state in states.items():
        f = {CHECKED: layers.checked, TIMED: layers.timed}[layer](functions)
        alloc, free, store, _, _, realloc = f

        @njit
        def resize(given, number, alloc=alloc, free=free, store=store, realloc=realloc):
            block = alloc(given, 64)
            store(given, block, 7)
            for k in range(number):
                block = realloc(given, block, 64 + 100 * k)
            free(given, block)
            return number

        assert resize((inner, state), 10) == 10
    asked = 64 + sum(64 + 100 * k for k in range(10))
    assert states[CHECKED].tolist() == [1, asked, 1, 11 * 7]
    counts = {found.operation: found.count for found in recorder.latencies([states[TIMED]])}
    assert counts == {"alloc": 1, "free": 1, "realloc": 5}


def test_loops_are_made_once() -> None:
    assert loops(honest, TIMED) is loops(honest, TIMED) is not loops(honest, CHECKED)
    with pytest.raises(KeyError):
        loops(honest, "no such layer")
