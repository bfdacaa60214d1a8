"""Threads: who gets a slot, what becomes of its record, and more threads than there are slots."""

from __future__ import annotations

import random
import threading

import pytest
from kernels import (
    Worker,
    assert_pristine,
    crowd,
    holds,
    identity,
    idle_records,
    kept_objects,
    make_cache,
    near_of,
    own_record,
    page_kind,
    records,
    slot_fields,
    slots,
    touch,
    used,
    write,
)
from support import JIT, PAGE, RawArena

from realalloc.lease.cfunctions import alloc_slow
from realalloc.lease.threadword import _load, new_word
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.kmem_cache import cache_destroy, validate_caches
from realalloc.mm.layout import (
    BAD_SHEAF,
    EINVAL,
    H_BAD_FREES,
    H_FARTHEST,
    H_NR_RECORDS,
    H_NR_SLOTS,
    H_SHEAVES,
    KIND_RECORD,
    MIN_SHEAVES_PAGES,
    NOBODY,
    NULL_RECORD,
    PAGE_WORDS,
    T_DISTANCE,
    T_INSIDE,
    T_KEPT,
    T_KEY,
    T_RECORD,
    THREAD_SLOTS,
    THREAD_WORDS,
    THREADS,
)
from realalloc.mm.objects import kmem_cache_alloc, kmem_cache_free
from realalloc.mm.pcp_walkers import validate_kept_blocks
from realalloc.mm.reclaim import drain_locked, reclaim
from realalloc.mm.thread_exit import thread_ends
from realalloc.mm.threads import come_near, keep_slots

SMALLEST = MIN_SHEAVES_PAGES * PAGE


def distance(key: int, slot: int) -> int:
    """How many places behind its near one a thread has a slot."""
    return (slot - near_of(key)) // THREAD_WORDS % THREAD_SLOTS


def assert_slots(raw: RawArena, settled: bool = True) -> None:
    """The counts are right and, once everybody has been there, nobody could be nearer."""
    having = slots(raw)
    assert raw.words[H_NR_SLOTS] == len(having)
    far = {key: distance(key, slot) for key, slot in having.items()}
    assert {key: int(raw.words[slot + T_DISTANCE]) for key, slot in having.items()} == far
    assert raw.words[H_FARTHEST] == max(far.values(), default=0)
    if settled:
        for key in having:
            places = [near_of(key) + k * THREAD_WORDS for k in range(far[key])]
            wrapped = {at if at < NULL_RECORD else at - THREAD_SLOTS * THREAD_WORDS for at in places}
            assert wrapped <= set(having.values())
    raw.validate()


@pytest.mark.parametrize(("pages", "works", "sheaves"), [
    (MIN_SHEAVES_PAGES - 1, True, 0), (MIN_SHEAVES_PAGES, True, 1), (MIN_SHEAVES_PAGES, False, 0), (1 << 14, True, 1),
])  # fmt: skip
def test_threads_have_sheaves_where_there_is_memory_and_a_barrier(pages: int, works: bool, sheaves: int, monkeypatch):
    monkeypatch.setattr("realalloc.mm.kmalloc.barriers_work", lambda: works)
    raw = RawArena(pages * PAGE, 4)
    assert raw.words[H_SHEAVES] == sheaves
    c = make_cache(raw)
    first = touch(raw, c, 5)
    assert raw.words[H_NR_RECORDS] == len(slots(raw)) == sheaves
    assert kmem_cache_free(raw.words, c, first[0]) == (0 if sheaves else EINVAL)
    assert used(raw, c) == len(kept_objects(raw, c)) - sheaves or not sheaves
    reclaim(raw.words)
    assert raw.words[H_BAD_FREES] == sheaves
    assert used(raw, c) == 0
    assert_pristine(raw)


def test_a_slot_names_its_thread_and_a_record_that_is_a_page() -> None:
    raw = RawArena(SMALLEST, 4)
    assert slots(raw) == {}
    c = make_cache(raw)
    assert slots(raw) == {}  # whoever only makes caches needs none
    touch(raw, c)
    me = int(identity())
    assert set(slots(raw)) == {me}
    assert slots(raw)[me] == near_of(me)
    record = own_record(raw)
    assert slot_fields(raw, me) == [0, record, record]
    assert record % PAGE_WORDS == 0
    assert page_kind(raw, record // PAGE_WORDS) == KIND_RECORD
    assert records(raw) == [record]
    assert raw.words[H_NR_RECORDS] == 1
    touch(raw, c, 100)
    assert records(raw) == [record]
    assert drain_locked(raw.words) > 1
    assert slot_fields(raw, me) == [0, NULL_RECORD, NULL_RECORD]
    touch(raw, c)
    assert own_record(raw) != NULL_RECORD
    assert thread_ends(raw.words, me) == 0
    assert slots(raw) == {}
    assert thread_ends(raw.words, me) == 0  # nothing is left to give up
    assert len(idle_records(raw)) == 1
    raw.validate()
    assert_pristine(raw)


def test_a_thread_that_was_drained_by_another_finds_its_door_open_again() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    with crowd(3, raw) as made:
        for _ in range(5):
            for worker in made:
                worker.do(touch, raw, c, 20)
            assert raw.words[H_NR_RECORDS] == 3
            assert validate_caches(raw.words) == 0  # locks out, and lets in again
            for worker in made:
                inside, seen, kept = slot_fields(raw, worker.identity)
                assert inside == 0
                assert seen == kept != NULL_RECORD
            made[0].do(reclaim, raw.words)
            assert raw.words[H_NR_RECORDS] == used(raw, c) == 0
            for worker in made:
                assert slot_fields(raw, worker.identity) == [0, NULL_RECORD, NULL_RECORD]
    assert_pristine(raw)


def stacks(rng: random.Random, step: int, aligned: int, count: int) -> list[int]:
    """Thread pointers as glibc has them: the main thread's anywhere, the others' at the top of stacks one below the other."""
    top = rng.randrange(0x7E00_0000_0000, 0x7FFF_0000_0000) // aligned * aligned
    main = top + rng.randrange(1, 1 << 16) * PAGE + rng.randrange(PAGE // 64) * 64
    return [main] + [top - 0x940 - k * step for k in range(1, count)]


MIB = 1 << 20
LAYOUTS = {
    "8 MiB and a guard page": (8 * MIB + PAGE, PAGE),
    "the same, each aligned to 2 MiB": (10 * MIB, 2 * MIB),
    "8 MiB, aligned to 2 MiB": (8 * MIB, 2 * MIB),
    "2 MiB, aligned": (2 * MIB, 2 * MIB),
    "4 MiB, aligned": (4 * MIB, 2 * MIB),
    "16 MiB and a guard page": (16 * MIB + PAGE, PAGE),
    "1 MiB and a guard page": (MIB + PAGE, PAGE),
    "256 KiB and a guard page": (0x41000, PAGE),
    "64 KiB and a guard page": (0x11000, PAGE),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("count", "most_hits"), [(3, 0.04), (8, 0.04), (32, 0.04)])
def test_threads_have_different_near_places(name: str, count: int, most_hits: float) -> None:
    """At random a third of 32 threads would find its near place taken; with any of the usual stacks hardly one does."""
    step, aligned = LAYOUTS[name]
    rng = random.Random(17)
    processes = 100
    hits = 0
    for _ in range(processes):
        near = [near_of(key) for key in stacks(rng, step, aligned, count)]
        assert all(THREADS <= place < NULL_RECORD and (place - THREADS) % THREAD_WORDS == 0 for place in near)
        hits += count - len(set(near))
    assert hits / (processes * count) <= most_hits


def test_more_threads_than_slots() -> None:
    """All alive at once: as many as there are slots have one, the others do without and are exact, until one is free."""
    raw = RawArena(4 * SMALLEST, 4)
    c = make_cache(raw)
    count = 2 * THREAD_SLOTS + 12
    with crowd(count, raw) as made:
        assert len({worker.identity for worker in made}) == count
        live = {}
        for k, worker in enumerate(made):
            for offset in [int(worker.do(kmem_cache_alloc, raw.words, c)) for _ in range(5)]:
                write(raw, offset, 64, k)
                live[offset] = k
        assert len(live) == 5 * count
        having = slots(raw)
        assert set(having) == {worker.identity for worker in made[:THREAD_SLOTS]}
        assert raw.words[H_NR_RECORDS] == THREAD_SLOTS
        assert_slots(raw)
        poor = made[THREAD_SLOTS:]
        rng = random.Random(2)
        for offset, k in rng.sample(sorted(live.items()), len(live)):
            assert holds(raw, offset, 64, k)
            worker = rng.choice(made)
            assert worker.do(kmem_cache_free, raw.words, c, offset) == 0
            if worker in poor:
                assert worker.do(kmem_cache_free, raw.words, c, offset) == EINVAL
        assert used(raw, c) == len(kept_objects(raw, c))
        assert_slots(raw)
        rich = rng.choice(made[:THREAD_SLOTS])
        made.remove(rich)
        rich.end(raw)
        poor[7].do(touch, raw, c)
        assert slots(raw)[poor[7].identity] == having[rich.identity]
    assert slots(raw) == {}
    assert raw.words[H_BAD_FREES] == 0
    assert cache_destroy(raw.words, c) == 0
    assert_pristine(raw)


@pytest.mark.parametrize("verb", ["object", "large block"])
def test_who_was_crowded_out_gets_a_slot_and_its_near_place_when_others_end(verb: str) -> None:
    raw = RawArena(8 * SMALLEST, 6)
    c = make_cache(raw)

    def work() -> None:
        if verb == "object":
            touch(raw, c)
        else:
            assert kfree(raw.words, int(kmalloc(raw.words, 3 * PAGE, 0))) == 0

    with crowd(200, raw) as made:
        for worker in made:
            worker.do(work)
        assert len(slots(raw)) == THREAD_SLOTS
        assert_slots(raw)
        rng = random.Random(3)
        for left in (THREAD_SLOTS, 20, 4):
            for worker in rng.sample(made, len(made) - left):
                made.remove(worker)
                worker.end(raw)
            assert_slots(raw, settled=False)
            places: dict[int, int] = {}
            while slots(raw) != places:  # who moves may make room for another one
                places = slots(raw)
                for worker in made:
                    worker.do(work)
            assert set(places) == {worker.identity for worker in made}
            assert_slots(raw)
    assert slots(raw) == {}
    assert_slots(raw)
    assert_pristine(raw)


def test_who_moves_takes_record_and_sheaves_along() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    me = int(identity())
    near = near_of(me)
    assert come_near(raw.words) == 0  # nothing to move
    raw.words[near + T_KEY] = near  # some other thread has it
    raw.words[near + T_RECORD] = raw.words[near + T_KEPT] = NULL_RECORD
    raw.words[near + T_DISTANCE] = distance(near, near)
    raw.words[H_NR_SLOTS] += 1
    touch(raw, c, 20)
    slot = slots(raw)[me]
    assert distance(me, slot) == raw.words[slot + T_DISTANCE] == raw.words[H_FARTHEST] == 1
    kept, objects = own_record(raw), kept_objects(raw, c)
    assert come_near(raw.words) == slot  # it is not free
    assert slots(raw)[me] == slot
    raw.words[near + T_KEY] = 0
    raw.words[H_NR_SLOTS] -= 1
    assert come_near(raw.words) == near
    assert slots(raw) == {me: near}
    assert slot_fields(raw, me) == [0, kept, kept]
    assert (kept_objects(raw, c), records(raw)) == (objects, [kept])
    assert come_near(raw.words) == near
    assert_slots(raw)
    assert_pristine(raw)


@pytest.mark.skipif(not JIT, reason="for machine code only")
def test_who_moves_or_ends_forgets_the_slot_that_it_kept() -> None:
    raw = RawArena(SMALLEST, 4)
    at = new_word()
    assert keep_slots(raw.words, at) == 0
    if at == 0:
        pytest.skip("no thread keeps its slot here")
    c = make_cache(raw)
    me = int(identity())
    near = near_of(me)

    def allocate() -> int:
        """Go the slow way of C functions; return what slot the thread keeps."""
        address = int(alloc_slow(raw.words, 64, 0))
        assert kfree(raw.words, address - raw.words.ctypes.data) == 0
        return NOBODY + _load(at)

    assert allocate() == near
    assert validate_kept_blocks(raw.words) == 0
    assert thread_ends(raw.words, me) == 0
    assert _load(at) == 0
    raw.words[near + T_KEY] = near  # some other thread has it
    raw.words[near + T_RECORD] = raw.words[near + T_KEPT] = NULL_RECORD
    raw.words[near + T_DISTANCE] = distance(near, near)
    raw.words[H_NR_SLOTS] += 1
    touch(raw, c, 20)
    far = slots(raw)[me]
    assert far != near
    assert allocate() == far
    raw.words[near + T_KEY] = 0
    raw.words[H_NR_SLOTS] -= 1
    assert come_near(raw.words) == near
    assert _load(at) == 0
    assert allocate() == near
    assert validate_kept_blocks(raw.words) == 0
    other = Worker()
    assert other.do(thread_ends, raw.words, me) == 0  # not by itself: nothing that it could forget of this thread's
    assert NOBODY + _load(at) == near
    assert validate_kept_blocks(raw.words) == BAD_SHEAF
    other.end(raw)


@pytest.mark.parametrize("damage", [H_NR_SLOTS, H_FARTHEST, T_DISTANCE])
def test_the_walker_finds_slots_that_do_not_add_up(damage: int) -> None:
    raw = RawArena(SMALLEST, 4)
    touch(raw, make_cache(raw))
    assert validate_kept_blocks(raw.words) == 0
    at = damage if damage != T_DISTANCE else slots(raw)[int(identity())] + T_DISTANCE
    raw.words[at] += 1
    assert validate_kept_blocks(raw.words) == BAD_SHEAF
    raw.words[at] -= 1
    assert_pristine(raw)


def test_a_drainer_waits_for_a_thread_that_is_inside() -> None:
    raw = RawArena(SMALLEST, 4)
    c = make_cache(raw)
    touch(raw, c, 10)
    at = slots(raw)[int(identity())]
    raw.words[at + T_INSIDE] = 1  # as if this thread were at its sheaves
    done: list[int] = []
    drainer = threading.Thread(target=lambda: done.append(int(reclaim(raw.words))))
    drainer.start()
    drainer.join(0.1)
    assert drainer.is_alive()
    assert raw.words[at + T_RECORD] == NULL_RECORD  # the door is shut
    assert len(kept_objects(raw, c)) > 0
    raw.words[at + T_INSIDE] = 0
    drainer.join()
    assert kept_objects(raw, c) == []
    assert len(done) == 1
    assert_pristine(raw)
