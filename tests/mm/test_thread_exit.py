"""Threads that are no more: they leave their slot and their record, and nobody waits for them."""

from __future__ import annotations

import threading

import pytest
from kernels import (
    Worker,
    assert_pristine,
    crowd,
    identity,
    idle_records,
    kept_objects,
    main_sheaf,
    make_cache,
    own_record,
    records,
    slot_fields,
    slots,
    spare_sheaf,
    touch,
    used,
)
from support import JIT, PAGE, RawArena

from realalloc.lease import forks
from realalloc.mm.kmalloc import kmalloc
from realalloc.mm.layout import (
    C_SHEAF,
    EINVAL,
    ENOMEM,
    H_CLOSED,
    H_IDLE_RECORDS,
    H_NR_RECORDS,
    H_SHEAVES,
    MIN_SHEAVES_PAGES,
    NULL_RECORD,
    T_INSIDE,
    T_KEPT,
    T_RECORD,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.reclaim import drain_locked
from realalloc.mm.thread_exit import forget_other_threads, retire_threads

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def test_the_record_of_a_thread_that_ends_is_the_next_ones_with_what_is_in_it() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    first = Worker()
    first.do(touch, raw, c, 50)
    record = int(raw.words[slots(raw)[first.identity] + T_KEPT])
    d = record + int(raw.words[c + C_SHEAF])
    kept = main_sheaf(raw, d), spare_sheaf(raw, d)
    first.end(raw)
    assert idle_records(raw) == [record]
    assert (main_sheaf(raw, d), spare_sheaf(raw, d)) == kept
    raw.validate()
    second = Worker()
    served = int(second.do(kmem_cache_alloc, raw.words, c))
    assert served == kept[0][-1]
    assert int(raw.words[slots(raw)[second.identity] + T_KEPT]) == record
    assert idle_records(raw) == []
    assert raw.words[H_NR_RECORDS] == 1
    assert second.do(kmem_cache_free, raw.words, c, served) == 0
    second.end(raw)
    assert used(raw, c) == len(kept_objects(raw, c))
    assert drain_locked(raw.words) > 1  # idle records are drained too
    assert (used(raw, c), raw.words[H_NR_RECORDS], raw.words[H_IDLE_RECORDS]) == (0, 0, 0)
    assert_pristine(raw)


def test_the_child_of_a_fork_forgets_the_other_threads() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    touch(raw, c)
    with crowd(3, raw) as made:
        for worker in made:
            worker.do(touch, raw, c, 9)
        raw.words[slots(raw)[made[0].identity] + T_INSIDE] = 1  # it was at its sheaves when the process forked
        mine = own_record(raw)
        before = set(records(raw))
        assert forget_other_threads(raw.words) == 0
        assert set(slots(raw)) == {int(identity())}
        assert own_record(raw) == mine
        assert set(idle_records(raw)) == before - {mine}
        raw.validate()
        assert drain_locked(raw.words) > 4  # nobody is waited for
        assert used(raw, c) == 0
    assert_pristine(raw)


def test_an_arena_that_closes_sends_every_thread_the_slow_way_for_ever() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    live = [int(kmem_cache_alloc(raw.words, c)) for _ in range(3)]
    touch(raw, c, 30)
    with crowd(2, raw) as made:
        for worker in made:
            worker.do(touch, raw, c, 30)
        raw.words[H_CLOSED] = 1
        assert retire_threads(raw.words) == 0
        assert raw.words[H_SHEAVES] == 0
        for key in slots(raw):
            assert slot_fields(raw, key) == [0, NULL_RECORD, NULL_RECORD]
        before = used(raw, c)
        for do in (lambda *work: int(work[0](*work[1:])), *(worker.do for worker in made)):
            assert do(kmem_cache_alloc, raw.words, c) == ENOMEM
            assert do(kmalloc, raw.words, 64, 0) == ENOMEM
            offset = live.pop()
            assert do(kmem_cache_free, raw.words, c, offset) == 0
            assert do(kmem_cache_free, raw.words, c, offset) == EINVAL  # exact, as without sheaves
        assert used(raw, c) == before - 3
        assert all(raw.words[at + T_RECORD] == NULL_RECORD for at in slots(raw).values())


@pytest.mark.skipif(not JIT, reason="the C library tells machine code only")
def test_the_c_library_says_when_a_thread_ends() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    forks.watch(raw.memory.address)
    try:
        for _ in range(5):
            thread = threading.Thread(target=touch, args=(raw, c, 20))
            thread.start()
            thread.join()
            while slots(raw):  # the destructor runs after Python has let go of the thread
                pass
            assert raw.words[H_NR_RECORDS] == 1
    finally:
        forks.ignore(raw.memory.address)
    assert_pristine(raw)
