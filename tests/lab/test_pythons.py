"""Buffers and pools as Python sees them: every source's texts work here, or the reason is told; all read the same sums."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest
from checks import quiet_child

import realalloc as ra
from realalloc.lab import pythons
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.peers import HARNESS, OURS
from realalloc.lab.pythons import (
    BLOCKS,
    NOBODY,
    POOLS,
    CannotTakePart,
    PythonPeer,
    Source,
    clock_ns,
    compile_loop,
    find,
)

FOUND, MISSING = find((*BLOCKS, *POOLS))
HERE = [
    pytest.param(kind, source, id=f"{kind} {source.name}")
    for kind, group in (("block", BLOCKS), ("pool", POOLS))
    for source in group
    if source in FOUND
]


def test_everybody_is_found_or_missed_with_a_reason() -> None:
    assert len(FOUND) + len(MISSING) == len(BLOCKS) + len(POOLS)
    always = {OURS, "bytearray", "memoryview(bytearray)", "np.empty", "mmap", "deque", "SimpleQueue", "queue.Queue"}
    assert always <= {source.name for source in FOUND}
    assert all(": " in line and line.partition(": ")[2] for line in MISSING)
    for group in (BLOCKS, POOLS):
        assert len({source.name for source in group}) == len(group)


@pytest.mark.parametrize(("kind", "source"), HERE)
def test_the_texts_give_a_writable_buffer_of_the_size(kind: str, source: Source) -> None:
    nbytes = 12_288
    given, close = source.open(nbytes, 3)
    namespace = {"size": nbytes, **given}
    for round_ in range(5):
        exec(f"x = {source.take}\nb = {source.view}", namespace)
        view = namespace["b"]
        assert len(view) >= nbytes if source.name == "multiprocessing.heap" else len(view) == nbytes
        view[0] = view[nbytes - 1] = round_
        assert (view[0], view[nbytes - 1]) == (round_, round_)
        del view
        exec(f"b = None\n{source.give or 'x = None'}", namespace)
    namespace.clear()
    close()


@pytest.mark.parametrize(("kind", "source"), HERE)
@pytest.mark.parametrize("layer", [PLAIN, CHECKED, TIMED])
def test_loops_take_and_give_back(kind: str, source: Source, layer: str) -> None:
    peer = PythonPeer(source).layered(layer)
    assert (peer.name, peer.layer) == (source.name, layer)
    names, close = peer.opened(4096, 4)
    loop = peer.loop({"size": 4096, **names})
    for _ in range(2):  # a pool must be full again
        assert loop(30) == 0
    del loop, names
    close()
    gc.collect()
    assert peer.checksum() == (2 * sum(k + 4096 for k in range(30)) if layer == CHECKED else 0)
    counts = {found.operation: found.count for found in peer.latencies()}
    assert counts == ({"alloc": 60, "free": 60} if layer == TIMED else {})


def test_latencies_say_what_reading_the_clock_costs() -> None:
    peer = PythonPeer(NOBODY, TIMED)
    peer.loop({"size": 1})(100)
    for found in peer.latencies():
        assert found.overhead_ns == clock_ns() and found.in_every == 1
        assert found.at(50) < 1e7


def test_a_slow_call_is_in_the_right_column() -> None:
    slow = Source("slow", "nap()", lambda _size, _live: ({}, lambda: None), "rest()")
    peer = PythonPeer(slow, TIMED)
    peer.loop({"nap": lambda: time.sleep(0.002), "rest": lambda: time.sleep(0.02)})(3)
    alloc, free = peer.latencies()
    assert (alloc.operation, free.operation) == ("alloc", "free")
    assert alloc.at(0) >= 1_900_000 and free.at(0) >= 19_900_000


def test_more_operations_than_the_time_before() -> None:
    peer = PythonPeer(NOBODY, TIMED)
    loop = peer.loop({})
    for number in (3, 10, 1):
        loop(number)
    assert [found.count for found in peer.latencies()] == [14, 14]


def test_nothing_but_the_call_is_in_a_plain_loop() -> None:
    calls: list[int] = []
    assert (
        compile_loop(pythons._LOOPS[PLAIN], Source("a", "take()", NOBODY.open), {"take": lambda: calls.append(1)})(7)
        == 0
    )
    assert len(calls) == 7
    both = Source("b", "take()", NOBODY.open, "give(x)")
    given: list[int] = []
    loop = compile_loop(pythons._LOOPS[PLAIN], both, {"take": lambda: len(given), "give": given.append})
    loop(5)
    assert given == [0, 1, 2, 3, 4]
    loop(0)


def test_nobody_is_a_source() -> None:
    assert NOBODY.name == HARNESS
    for layer in (PLAIN, TIMED):
        assert PythonPeer(NOBODY, layer).loop({})(10) == 0


def test_the_clock() -> None:
    assert 0 < clock_ns() < 1e6 and clock_ns() == clock_ns()


def test_only_those_that_are_named() -> None:
    assert [source.name for source in find(BLOCKS, ("mmap", OURS))[0]] == [OURS, "mmap"]
    assert find(BLOCKS, ("nobody of that name",)) == ([], [])


@pytest.mark.parametrize("error", [ImportError, OSError, MemoryError, NotImplementedError])
@pytest.mark.parametrize("where", ["open", "take"])
def test_who_does_not_work_is_closed_and_named(error: type[Exception], where: str) -> None:
    closed: list[int] = []

    def fail() -> None:
        raise error("not on this machine")

    def opened(_size: int, _live: int):
        if where == "open":
            fail()
        return {"fail": fail}, lambda: closed.append(1)

    assert find([Source("broken", "fail()", opened)]) == ([], ["broken: not on this machine"])
    assert len(closed) == (where == "take")


def test_pyarrow_that_is_not_there() -> None:
    quiet_child(
        "import sys; sys.modules['pyarrow'] = None\n"
        "from realalloc.lab.pythons import BLOCKS, find\n"
        "found, missing = find(BLOCKS)\n"
        "assert not [source for source in found if 'pyarrow' in source.name]\n"
        "print(*[line.partition(':')[0] for line in missing if 'pyarrow' in line], sep=', ')",
        expect=", ".join(source.name for source in BLOCKS if "pyarrow" in source.name),
        fresh=True,
    )


def test_shared_memory_is_not_promised_where_it_would_be_sigbus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared,) = find(BLOCKS, ("SharedMemory",))[0] or pytest.skip("no shared memory")
    told = os.statvfs(pythons.SHM)
    room = told.f_bavail * told.f_frsize
    with pytest.raises(CannotTakePart, match=r"SharedMemory: \d+ MiB wanted, and /dev/shm has \d+ left") as info:
        PythonPeer(shared).opened(room // 4, 8)
    assert info.value.peer == "SharedMemory"
    monkeypatch.setattr(pythons, "SHM", tmp_path / "nothing")
    PythonPeer(shared).opened(room, 8)


def test_who_has_no_memory_cannot_take_part() -> None:
    def opened(_size: int, _live: int):
        raise ra.OutOfMemory("none left")

    with pytest.raises(CannotTakePart, match="greedy: none left"):
        PythonPeer(Source("greedy", "x", opened)).opened(1, 1)


def test_no_thread_and_no_arena_is_left() -> None:
    before = threading.active_count()
    find((*BLOCKS, *POOLS))
    assert threading.active_count() == before
