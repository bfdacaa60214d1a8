"""Typed and tracked elements: instances over pool memory that go back with their last reference, and who has them."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import numpy as np
import pytest
from checks import Worker, refuses

import realalloc as ra
from realalloc.elements import Struct


class Command(ctypes.Structure):
    """A request as drivers have them."""

    _fields_ = (("tag", ctypes.c_uint32), ("cdb", ctypes.c_uint8 * 16), ("sense", ctypes.c_uint8 * 96))


POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("name", "S8")])


@pytest.mark.parametrize("struct", [Command, POINT, "<i4", ctypes.c_uint16 * 7])
def test_instances_live_in_the_pool_and_go_back_with_their_last_reference(arena: ra.Arena, struct: Any) -> None:
    pool = arena.mempool(3, struct=struct)
    kind = Struct(struct)
    assert pool.element_bytes == kind.nbytes
    held = [pool.alloc() for _ in range(3)]
    for element in held:
        view = memoryview(element).cast("B") if memoryview(element).nbytes else memoryview(b"")
        address = np.frombuffer(view, np.uint8).ctypes.data
        assert arena.address <= address < arena.address + arena.size
        assert view.nbytes == kind.nbytes
        del view
    assert (pool.curr_nr, pool.stats().outstanding) == (0, 3)
    del element
    held.pop()
    assert pool.curr_nr == 1
    second = memoryview(held[0])
    held.clear()
    assert pool.curr_nr == 2
    del second
    assert pool.curr_nr == 3
    pool.validate()
    pool.destroy()


def test_fields_are_what_was_written(arena: ra.Arena) -> None:
    pool = arena.mempool(2, struct=Command)
    first, second = pool.alloc(), pool.alloc()
    first.tag, second.tag = 1, 2
    first.cdb[:] = range(16)
    assert (first.tag, second.tag, bytes(first.cdb)) == (1, 2, bytes(range(16)))
    points = arena.mempool(1, struct=POINT)
    point = points.alloc()
    point["x"], point["name"] = 2.5, b"origin"
    assert point.shape == () and point["x"] == 2.5 and point["name"] == b"origin"
    del first, second, point
    pool.destroy()
    points.destroy()


def test_a_constructor_runs_once_for_an_element_and_its_work_stays(arena: ra.Arena) -> None:
    made = []

    def ctor(command: Command) -> None:
        made.append(1)
        command.tag = 100 + len(made)
        command.sense[:] = bytes([7]) * 96

    pool = arena.mempool(4, struct=Command, ctor=ctor)
    count = len(made)
    assert count >= 4
    tags = set()
    for _ in range(20):
        command = pool.alloc()
        assert bytes(command.sense) == bytes([7]) * 96
        tags.add(command.tag)
        del command
    assert len(made) == count and tags <= set(range(101, 101 + count))
    pool.destroy()
    assert "mempool-Command" not in arena.slabinfo()


def test_an_instance_is_freed_once(arena: ra.Arena) -> None:
    pool, other = arena.mempool(2, struct=Command), arena.mempool(1, struct=Command)
    command, foreign = pool.alloc(), other.alloc()
    for wrong in (foreign, Command(), 5, b"", np.zeros(3)):
        with pytest.raises(ra.InvalidFree):
            pool.free(wrong)
    pool.free(None)
    pool.free(command)
    with pytest.raises(ra.InvalidFree):
        pool.free(command)
    command.tag = 3  # still its own until the last reference is gone
    assert (pool.curr_nr, arena.stats().lingering) == (1, 1)
    del command
    assert (pool.curr_nr, arena.stats().lingering) == (2, 0)
    pair = pool.alloc_bulk(2)
    with pytest.raises(ra.InvalidFree, match="twice"):
        pool.free_bulk([pair[0], pair[0]])
    pool.free_bulk(pair)
    pair.clear()
    assert pool.curr_nr == 2
    with pool.lease() as command:
        command.tag = 1
    del command, foreign
    pool.destroy()
    other.destroy()


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"struct": int}, None, ""),
    ({"struct": "no such type"}, TypeError, "ctypes.Structure or a NumPy dtype"),
    ({"struct": object}, TypeError, "Python objects"),
    ({"struct": "V0"}, ValueError, "size is 0"),
    ({"struct": Command, "size": 8}, ValueError, "exactly one"),
    ({"size": 8, "ctor": print}, ValueError, "ctor needs struct"),
    ({"struct": Command, "ctor": print, "zero": "on_alloc"}, ValueError, "constructed state"),
    ({"size": 8, "zero": "always"}, ValueError, "zero must be one of"),
    ({"size": 8, "zero": "on_free", "poison": "on_free"}, ValueError, "both"),
    ({"size": 8, "low": 3}, ValueError, "low <= high <= min_nr"),
    ({"size": 8, "low": 2, "high": 1}, ValueError, "low <= high <= min_nr"),
    ({"size": 8, "locked": True}, ValueError, "locked zone"),
    ({"alloc_fn": print, "free_fn": print, "locked": True}, ValueError, "for memory"),
])  # fmt: skip
def test_options_that_make_no_sense(arena: ra.Arena, options: Any, error: Any, words: str) -> None:
    if error is None:
        arena.mempool(2, **options).destroy()
    else:
        refuses(arena, error, words, lambda: arena.mempool(2, **options))


def test_a_tracked_pool_says_who_has_its_elements(arena: ra.Arena) -> None:
    pool = arena.mempool(3, size=100, track=True)
    first = pool.alloc()
    here = pool.holders()[0]
    assert here.where.endswith(f"test_elements.py:{first_line()}") and here.thread == threading.current_thread().name
    others = pool.alloc_bulk(2)
    assert [holder.where.rpartition(":")[0] for holder in pool.holders()] == [__file__] * 3
    assert pool.holders()[0].seconds >= pool.holders()[1].seconds
    with pytest.raises(ra.OutOfMemory, match=r"3 held: .*2 by .*test_elements.py:\d+ for up to"):
        pool.alloc_preallocated()
    arena_full = arena.mempool(1, size=64, track=True)
    arena_full.fail_alloc()
    one = arena_full.alloc()
    with pytest.raises(TimeoutError, match="1 held: 1 by"):
        arena_full.alloc(timeout=0.001)
    del one
    first.release()
    others.pop().release()
    assert len(pool.holders()) == 1
    others.clear()
    assert pool.holders() == []
    pool.destroy()
    arena_full.destroy()


def first_line() -> int:
    """Return the line where the test above takes its first element."""
    code = test_a_tracked_pool_says_who_has_its_elements.__code__
    return code.co_firstlineno + 2


def test_without_tracking_the_pool_says_how_to_find_out(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=100)
    pool.fail_alloc()
    held = pool.alloc()
    with pytest.raises(ValueError, match="track=True"):
        pool.holders()
    with pytest.raises(TimeoutError, match="1 are out; track=True would tell"):
        pool.alloc(timeout=0)
    del held
    pool.destroy()


def test_tracked_objects_of_a_custom_pool(arena: ra.Arena) -> None:
    pool = arena.mempool(2, alloc_fn=lambda _data, _gfp: bytearray(8), free_fn=lambda _element: None, track=True)
    worker = Worker(pool.alloc)
    element = worker.result()
    assert [holder.thread for holder in pool.holders()] == [worker.name]
    pool.free(element)
    assert pool.holders() == []
    pool.destroy()


def test_secrets_do_not_stay(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=64, zero="on_free")
    with pool.alloc() as buf:
        buf[:] = b"s" * 64
        address = np.frombuffer(buf, np.uint8).ctypes.data
    gc.collect()
    assert ctypes.string_at(address, 64) == bytes(64)
    poisoned = arena.mempool(1, size=64, poison="on_free")
    with poisoned.alloc() as buf:
        address = np.frombuffer(buf, np.uint8).ctypes.data
    poisoned.validate()
    ctypes.c_uint8.from_address(address + 9).value = 1
    with pytest.raises(ra.CorruptionError, match="poison"):
        poisoned.validate()
    ctypes.c_uint8.from_address(address + 9).value = 0x6B
    poisoned.validate()
    pool.destroy()
    poisoned.destroy()


def test_locked_elements_never_fault() -> None:
    with ra.Arena("4MiB", lock="64KiB") as arena:
        pool = arena.mempool(4, size=4096, locked=True)
        with pool.alloc() as buf:
            buf[:] = bytes(4096)
        assert arena.stats().allocated > 0
        pool.destroy()
