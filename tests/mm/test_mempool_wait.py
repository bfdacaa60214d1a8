"""Waiting in machine code: who sleeps is woken by a free, by memory of the arena, by the end of its time or of everything."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from checks import Worker, eventually, some
from kernels import assert_pristine, destroy_pool
from support import JIT, RawArena

from realalloc.mm.layout import (
    BACKING_KMALLOC,
    ENOMEM,
    H_CLOSED,
    OK,
    P_FAIL_BELOW,
    P_FAIL_TIMES,
    P_WAITERS,
    ZONE_NORMAL,
)
from realalloc.mm.mempool import pool_alloc, pool_free
from realalloc.mm.mempool_life import pool_create, pool_destroy, pool_fill, validate_pool
from realalloc.mm.mempool_wait import pool_alloc_wait, pool_serve, wake_pools

SECOND = 1_000_000_000


def make_pool(raw: RawArena, min_nr: int) -> int:
    """Make a pool that has its reserve and nothing else."""
    p = int(pool_create(raw.words, min_nr, BACKING_KMALLOC, 100, 100, 0, ZONE_NORMAL))
    assert pool_fill(raw.words, p) == OK
    fail(raw, p, -1)
    return p


def fail(raw: RawArena, p: int, times: int) -> None:
    raw.words[p + P_FAIL_BELOW], raw.words[p + P_FAIL_TIMES] = 1 << 24, times


def sleeper(raw: RawArena, p: int, timeout_ns: int = -1) -> Worker:
    """Start a thread that waits, and see it wait."""
    before = int(raw.words[p + P_WAITERS])
    worker = Worker(lambda: int(pool_alloc_wait(raw.words, p, timeout_ns)))
    eventually(lambda: raw.words[p + P_WAITERS] == before + 1)
    return worker


def test_a_free_wakes_the_oldest_sleeper_only(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    element = int(pool_alloc(raw.words, p, 0))
    workers = [sleeper(raw, p) for _ in range(3)]
    for left, worker in zip((2, 1, 0), workers, strict=True):
        assert pool_free(raw.words, p, element) == OK
        element = worker.result()
        assert element > 0 and raw.words[p + P_WAITERS] == left
        assert validate_pool(raw.words, p) == OK
    assert pool_free(raw.words, p, element) == OK
    assert destroy_pool(raw, p) == OK
    assert_pristine(raw)


def test_serving_the_queue_wakes_whom_the_backing_allocator_can_help(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    element = int(pool_alloc(raw.words, p, 0))
    worker = sleeper(raw, p)
    assert pool_serve(raw.words, p) == ENOMEM
    fail(raw, p, 0)
    assert pool_serve(raw.words, p) == OK
    other = worker.result()
    assert other not in (element, 0) and other > 0
    for mine in (element, other):
        assert pool_free(raw.words, p, mine) == OK
    assert destroy_pool(raw, p) == OK
    assert_pristine(raw)


def test_a_wait_that_ends_in_time_leaves_no_request(raw: RawArena) -> None:
    p = make_pool(raw, 1)
    element = int(pool_alloc(raw.words, p, 0))
    began = time.monotonic()
    assert pool_alloc_wait(raw.words, p, 20_000_000) == ENOMEM
    assert time.monotonic() - began >= 0.02
    assert pool_alloc_wait(raw.words, p, 0) == ENOMEM
    assert raw.words[p + P_WAITERS] == 0
    assert pool_free(raw.words, p, element) == OK
    assert destroy_pool(raw, p) == OK
    assert_pristine(raw)


def close(raw: RawArena, p: int) -> None:
    raw.words[H_CLOSED] = 1
    wake_pools(raw.words)


def force(raw: RawArena, p: int) -> None:
    assert pool_destroy(raw.words, p, 1, np.zeros(1, np.int64)) == OK


@pytest.mark.parametrize("way", [close, force])
def test_whoever_sleeps_when_all_goes_is_woken_at_once(raw: RawArena, way: Callable[[RawArena, int], None]) -> None:
    for _ in range(some(100, 10)):
        p = make_pool(raw, 1)
        element = int(pool_alloc(raw.words, p, 0))
        workers = [sleeper(raw, p) for _ in range(2)]
        began = time.monotonic()
        way(raw, p)
        assert [worker.result() for worker in workers] == [ENOMEM] * 2
        assert time.monotonic() - began < 4, "that was the slice of a sleeper"
        raw.words[H_CLOSED] = 0
        assert pool_free(raw.words, p, element) == OK
        if way is close:
            assert destroy_pool(raw, p) == OK
    assert_pristine(raw)


@pytest.mark.skipif(not JIT, reason="threads that hold the GIL in turn")
def test_two_threads_hand_one_element_over(raw: RawArena) -> None:
    p = make_pool(raw, 1)

    def work() -> int:
        failed = 0
        for _ in range(some(20_000, 100)):
            element = int(pool_alloc_wait(raw.words, p, 60 * SECOND))
            failed += element <= 0 or pool_free(raw.words, p, element) != OK
        return failed

    workers = [Worker(work) for _ in range(2)]
    assert [worker.result() for worker in workers] == [0, 0]
    assert validate_pool(raw.words, p) == OK
    assert destroy_pool(raw, p) == OK
    assert_pristine(raw)
