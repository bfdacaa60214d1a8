"""The loop of a schedule: nobody is served early, and who is late pays for everybody who waits behind."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest
from cheats import CALLS, OUT, failing, honest, how, loops
from support import JIT

from realalloc.lab import recorder
from realalloc.lab.clock import cycles, ns_per_tick
from realalloc.lab.loops import pages
from realalloc.lab.loops.basic import FAILED
from realalloc.lab.recorder import latencies


def _serve(made, books, due, depth=4):
    words, blocks, spent = recorder.make(), np.zeros(depth, np.int64), np.zeros(1, np.int64)
    sizes = np.full(len(due), 32, np.int32)
    made.serve(books, recorder.make(), due[:0], sizes, blocks, spent)
    total = made.serve(books, words, due, sizes, blocks, spent)
    return total, words, blocks, int(spent[0])


def _ticks(nanoseconds):
    return (np.asarray(nanoseconds) / ns_per_tick()).astype(np.int64)


def test_every_request_is_served_and_timed() -> None:
    made, books = loops(failing), how()
    total, words, blocks, spent = _serve(made, books, _ticks(np.arange(50) * 2000))
    assert total == 50 * 32 and books[CALLS] == 50 and books[OUT] == 4
    (response,) = latencies([words])
    assert (response.operation, response.count) == ("response", 50)
    summed = sum(ns * count for ns, count in response.buckets)
    assert spent * ns_per_tick() * 0.999 <= summed <= spent * ns_per_tick() * 1.01 + 50  # of buckets: their upper ends
    assert made.drain(books, blocks) == 46 + 47 + 48 + 49 and books[OUT] == 0


@numba.njit
def _now():
    return cycles()


def test_nobody_is_served_early() -> None:
    made = loops(failing)
    begun = int(_now())
    _serve(made, how(), _ticks([0, 20e6]))
    assert int(_now()) - begun >= _ticks(20e6)


SLOW_NS = 5_000_000


def test_one_slow_allocation_is_charged_to_all_behind_it() -> None:
    slow, alloc = int(_ticks(SLOW_NS)), honest.alloc

    @numba.njit(forceinline=True)
    def stumbling(books, nbytes):
        books[CALLS] += 1
        if books[CALLS] == 3:
            until = cycles() + slow
            while cycles() < until:
                pass
        return alloc(books, nbytes)

    made, gap = pages.make(honest._replace(alloc=stumbling)), 50_000 if JIT else 200_000
    due = _ticks(np.arange(20) * gap)
    words, blocks, spent = recorder.make(), np.zeros(32, np.int64), np.zeros(1, np.int64)
    sizes = np.full(len(due), 32, np.int32)
    made["serve"](how(), recorder.make(), due[:0], sizes, blocks, spent)
    made["serve"](how(), words, due, sizes, blocks, spent)
    (response,) = latencies([words])
    late = sum(count for ns, count in response.buckets if ns >= SLOW_NS - 20 * gap)
    assert late >= 18  # the third and all after it, though their own allocations were quick
    loops(failing).drain(how(), blocks)


def test_without_memory() -> None:
    books = how(6)
    made = loops(failing)
    total, words, blocks, _ = _serve(made, books, _ticks(np.zeros(20)))
    assert total == FAILED and books[OUT] == np.count_nonzero(blocks) == 3
    assert latencies([words])[0].count == 6
    made.drain(books, blocks)
    assert books[OUT] == 0


@pytest.mark.parametrize("nbytes", [8, 100, 4096, 9000])
def test_every_stride_is_written_and_nothing_beyond(nbytes: int) -> None:
    made, books = loops(honest), how()
    blocks = np.zeros(1, np.int64)
    assert made.fifo(books, blocks, nbytes, 5, 6, 64) == nbytes
    view = np.ctypeslib.as_array((ctypes.c_int64 * (nbytes // 8)).from_address(int(blocks[0])))
    assert (view[::8] == 5).all()
    made.drain(books, blocks)
