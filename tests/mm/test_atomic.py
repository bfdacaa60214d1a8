"""Atomic words and the lock: exact under contention of real threads, whoever waits."""

from __future__ import annotations

import sys
import threading

import numba
import numpy as np
import pytest
from kernels import assert_pristine
from support import JIT, MIB, RawArena

from realalloc.jit import kmalloc as inlined_kmalloc
from realalloc.mm.atomic import (
    address_of,
    atomic_add,
    atomic_load,
    atomic_store,
    bias,
    compare_and_swap,
    lock,
    lock_contended,
    prefetch_for_write,
    thread_identity,
    unlock,
)
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.kmem_cache import validate_caches
from realalloc.mm.layout import H_INSIDE, H_LOCK, KMALLOC_SIZES, LOCK_FREE, LOCK_HELD, LOCK_REVOKING, LOCK_WAITED
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.thread_exit import freeze, thaw

THREADS = 4
COUNTER, PARTNER, BACKWARDS = 100, 101, 102


@numba.njit(nogil=True)
def count_locked(words, rounds):
    for _ in range(rounds):
        lock(words)
        words[COUNTER] += 1
        words[PARTNER] = words[COUNTER] * 3
        if words[H_LOCK] != LOCK_HELD and words[H_LOCK] != LOCK_WAITED:
            words[BACKWARDS] += 1
        unlock(words)
    return 0


@numba.njit(nogil=True)
def count_atomic(words, rounds):
    last = 0
    for _ in range(rounds):
        now = atomic_add(words, COUNTER, 1)
        if now <= last:
            words[BACKWARDS] += 1
        last = now
    return last


@numba.njit(nogil=True)
def count_swapped(words, rounds):
    for _ in range(rounds):
        seen = atomic_load(words, COUNTER)
        while compare_and_swap(words, COUNTER, seen, seen + 1) == 0:
            seen = atomic_load(words, COUNTER)
    return 0


@numba.njit
def one_of_each(words, what, value, other):
    if what == 0:
        return atomic_load(words, 5)
    if what == 1:
        return atomic_store(words, 5, value)
    if what == 2:
        return atomic_add(words, 5, value)
    if what == 3:
        return compare_and_swap(words, 5, value, other)
    return address_of(words)


def in_threads(work, count: int = THREADS) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(k: int) -> None:
        try:
            barrier.wait()
            work(k)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


@pytest.mark.parametrize("count", [count_locked, count_atomic, count_swapped])
def test_no_count_is_lost_between_threads(count) -> None:
    words = np.zeros(256, np.int64)
    rounds = 100_000 if JIT else 500
    count(words, 1)  # compiled before the threads begin
    in_threads(lambda _: count(words, rounds))
    assert words[COUNTER] == THREADS * rounds + 1
    assert words[PARTNER] in (0, 3 * words[COUNTER])
    assert words[BACKWARDS] == words[H_LOCK] == 0


@pytest.mark.skipif(not JIT, reason="plain Python has no bias")
def test_no_count_is_lost_while_a_bias_is_revoked() -> None:
    count_locked(np.zeros(256, np.int64), 1)
    for _ in range(60):
        words = np.zeros(256, np.int64)
        biased = threading.Event()

        def work(k: int, words=words, biased=biased) -> None:
            if k == 0:
                assert bias(words) == 1
                biased.set()
            else:
                biased.wait()
            count_biased(words, 4000)

        in_threads(work, 3)
        assert words[COUNTER] == 3 * 4000
        assert (words[H_LOCK], words[H_INSIDE]) == (LOCK_FREE, 0)


@numba.njit(nogil=True)
def count_biased(words, rounds):
    for _ in range(rounds):
        lock(words)
        words[COUNTER] += 1
        unlock(words)
    return 0


@pytest.mark.skipif(not JIT, reason="plain Python has no bias")
def test_a_biased_lock_serves_its_thread_and_is_anybodys_after_the_first_other(raw: RawArena) -> None:
    assert bias(raw.words) == 1
    me = int(raw.words[H_LOCK])
    assert me > LOCK_REVOKING
    assert bias(raw.words) == 0  # it is not free any more
    assert freeze(raw.words) == 0
    assert (raw.words[H_LOCK], raw.words[H_INSIDE]) == (me, 1)
    assert thaw(raw.words) == 0
    assert (raw.words[H_LOCK], raw.words[H_INSIDE]) == (me, 0)
    other = threading.Thread(target=freeze, args=(raw.words,))
    other.start()
    other.join()
    assert (raw.words[H_LOCK], raw.words[H_INSIDE]) == (LOCK_HELD, 0)
    assert thaw(raw.words) == 0
    assert raw.words[H_LOCK] == LOCK_FREE


def test_threads_have_identities_of_their_own() -> None:
    @numba.njit(nogil=True)
    def identity():
        return thread_identity()

    mine, others = int(identity()), []
    assert identity() == mine
    in_threads(lambda _: others.append(int(identity())), 3)
    assert mine > LOCK_REVOKING
    assert mine not in others


@pytest.mark.parametrize("value", [0, 1, -1, 1 << 62, -(1 << 63), 12345678901])
def test_atomic_words_agree_with_their_twins(value: int) -> None:
    words, twins = np.zeros(16, np.int64), np.zeros(16, np.int64)
    steps = [
        (1, value, 0),
        (0, 0, 0),
        (3, value, 7),
        (3, value + 1, 9),
        (0, 0, 0),
        (2, -3, 0),
        (2, 5, 0),
        (3, 9, value),
    ]
    plain = [
        lambda value, other: atomic_load(twins, 5),
        lambda value, other: atomic_store(twins, 5, value),
        lambda value, other: atomic_add(twins, 5, value),
        lambda value, other: compare_and_swap(twins, 5, value, other),
    ]
    for what, first, second in steps:
        assert one_of_each(words, what, first, second) == plain[what](first, second)
        assert (words == twins).all()


def test_the_address_is_that_of_word_zero() -> None:
    words = np.zeros(16, np.int64)
    assert one_of_each(words, 4, 0, 0) == address_of(words) == words.ctypes.data


def test_the_lock_is_a_word_that_is_1_while_held(raw: RawArena) -> None:
    assert raw.words[H_LOCK] == 0
    assert freeze(raw.words) == 0
    assert raw.words[H_LOCK] == 1
    assert thaw(raw.words) == 0
    assert raw.words[H_LOCK] == 0
    assert lock_contended(raw.words) == 0  # takes it when it is free, too
    assert raw.words[H_LOCK] == 1
    atomic_store(raw.words, H_LOCK, LOCK_FREE)


def test_whoever_finds_the_lock_held_waits_until_it_is_let_go(raw: RawArena) -> None:
    done: list[int] = []
    pfn = int(alloc_pages(raw.words, 0, 0))
    assert free_pages(raw.words, pfn, 0) == 0  # compiled before the lock is held
    assert freeze(raw.words) == 0
    waiter = threading.Thread(target=lambda: done.append(int(alloc_pages(raw.words, 0, 0))))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    assert done == []
    assert raw.words[H_LOCK] in (LOCK_HELD, LOCK_WAITED)
    assert thaw(raw.words) == 0  # wakes who sleeps, as a plain store would not
    waiter.join()
    assert done == [pfn]
    assert raw.words[H_LOCK] == 0
    assert free_pages(raw.words, pfn, 0) == 0


@numba.njit(nogil=True)
def churn(words, seed, rounds, sizes, mine):
    """Allocate, mark, check and free; return how many blocks had another's mark, or could not be freed."""
    bad = 0
    state = seed
    for k in range(rounds):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        slot = (state >> 8) % len(mine)
        if mine[slot] != 0:
            if words[mine[slot] // 8] != seed * 1_000_000_007 + slot:
                bad += 1
            if kfree(words, mine[slot]) != 0:
                bad += 1
            mine[slot] = 0
        else:
            offset = kmalloc(words, sizes[(state >> 16) % len(sizes)], 0)
            if offset > 0:
                words[offset // 8] = seed * 1_000_000_007 + slot
                mine[slot] = offset
    for slot in range(len(mine)):
        if mine[slot] != 0:
            if words[mine[slot] // 8] != seed * 1_000_000_007 + slot:
                bad += 1
            kfree(words, mine[slot])
            mine[slot] = 0
    return bad


def test_threads_in_kernels_never_share_a_block() -> None:
    raw = RawArena(4 * MIB, 6)
    sizes = np.array([*KMALLOC_SIZES, 9000, 20_000], np.int64)
    held = [np.zeros(60, np.int64) for _ in range(THREADS)]
    rounds = 30_000 if JIT else 400
    bad = [churn(raw.words, 1, 1, sizes, held[0])] * THREADS

    def work(k: int) -> None:
        bad[k] = churn(raw.words, k + 1, rounds, sizes, held[k])

    in_threads(work)
    assert bad == [0] * THREADS
    assert_pristine(raw)


def test_a_walker_and_workers_do_not_disturb_each_other() -> None:
    raw = RawArena(4 * MIB, 6)
    sizes = np.array([8, 64, 200, 3000], np.int64)
    held = [np.zeros(40, np.int64) for _ in range(THREADS)]
    churn(raw.words, 1, 1, sizes, held[0])
    found: list[int] = []

    def work(k: int) -> None:
        if k == 0:
            found.extend(int(validate_caches(raw.words)) for _ in range(200 if JIT else 20))
        else:
            found.append(int(churn(raw.words, k, 20_000 if JIT else 300, sizes, held[k])))

    in_threads(work)
    assert set(found) == {0}
    raw.validate()


@numba.njit
def prefetched(words, offset):
    return prefetch_for_write(words, offset)


@numba.njit
def taken(words):
    return inlined_kmalloc(words, 64)


def test_a_prefetch_changes_nothing_wherever_it_points() -> None:
    words = np.arange(64, dtype=np.int64)
    for offset in [0, 8, 511, 512, -8, 1 << 20, 1 << 46, 1 << 62, -(1 << 63), (1 << 63) - 1]:
        assert prefetched(words, offset) == 0 == prefetch_for_write(words, offset)
    assert np.array_equal(words, np.arange(64))


@pytest.mark.skipif(not JIT, reason="machine code")
def test_an_inlined_allocation_has_one_prefetch() -> None:
    raw = RawArena(4 * MIB, 4)
    assert taken(raw.words) > 0
    (code,) = taken.inspect_asm().values()
    assert code.count("prefetch") + code.count("prfm") == 1  # x86-64 or ARM
