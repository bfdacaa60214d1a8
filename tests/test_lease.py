"""The memoryview is the lease: a block returns once, when the last view of it is gone, and not before."""

from __future__ import annotations

import array
import ctypes
import gc
import hashlib
import io
import os
import pickle
import queue
import re
import socket
import struct
import sys
import threading
import unittest
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import Worker, address, eat_everything, refuses, some, unchanged
from support import MIB

import realalloc as ra
from realalloc.lease import exporter_of

VIEWS: dict[str, Callable[[memoryview], Any]] = {
    "slice": lambda v: v[8:24],
    "whole slice": lambda v: v[:],
    "strided": lambda v: v[::2],
    "reversed": lambda v: v[::-1],
    "empty slice": lambda v: v[4:4],
    "memoryview": memoryview,
    "cast": lambda v: v.cast("q"),
    "2-D cast": lambda v: v.cast("B", (8, 8)),
    "read-only": lambda v: v.toreadonly(),
    "slice of slice": lambda v: v[8:][8:][::3],
    "frombuffer": lambda v: np.frombuffer(v, np.uint8),
    "frombuffer of slice": lambda v: np.frombuffer(v[16:], np.uint32),
    "view of array": lambda v: np.frombuffer(v, np.uint8)[3:].reshape(-1, 1).T,
    "asarray": np.asarray,
    "ndarray": lambda v: np.ndarray((4,), np.uint64, v),
    "ctypes": (ctypes.c_char * 64).from_buffer,
    "iterator": iter,
}
RAW_EXPORTS: dict[str, Callable[[memoryview], Any]] = {
    "PickleBuffer": pickle.PickleBuffer,
    "memoryview of PickleBuffer": lambda v: memoryview(pickle.PickleBuffer(v)),
}
SOURCES: dict[str, Callable[[ra.Arena], memoryview]] = {
    "kmalloc": lambda a: a.kmalloc(64),
    "kzalloc": lambda a: a.kzalloc(64),
    "large kmalloc": lambda a: a.kmalloc(70_000),
    "vmalloc": lambda a: a.vmalloc(10_000),
    "kmalloc by vmalloc": lambda a: a.kmalloc((4 << 20) + 5),
    "pages": lambda a: a.alloc_pages(1).view,
    "exact pages": lambda a: a.alloc_pages_exact(12_000).view,
    "empty": lambda a: a.kmalloc(0),
}


def leases(arena: ra.Arena) -> int:
    return arena.stats().leases


# -- the shape of a buffer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 8, 9, 96, 1500, 4096, 8192, 8193, 65_537, 1 << 20, (4 << 20) + 1])
def test_a_buffer_is_a_plain_writable_memoryview_of_exactly_the_size_asked(arena: ra.Arena, size: int) -> None:
    buf = arena.kmalloc(size)
    assert type(buf) is memoryview
    assert (len(buf), buf.nbytes, buf.itemsize, buf.ndim, buf.format) == (size, size, 1, 1, "B")
    assert (buf.shape, buf.strides, buf.suboffsets) == ((size,), (1,), ())
    assert not buf.readonly and buf.contiguous and buf.c_contiguous
    buf[0] = buf[-1] = 201
    assert buf[size - 1] == 201
    with pytest.raises(IndexError):
        buf[size]


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_block_counts_as_one_lease_until_it_is_dropped(arena: ra.Arena, source: str) -> None:
    buf = SOURCES[source](arena)
    assert leases(arena) == 1
    buf.release()
    assert leases(arena) == 0
    buf = SOURCES[source](arena)
    del buf
    assert leases(arena) == 0


@pytest.mark.parametrize("source", SOURCES)
def test_with_frees_and_the_dead_handle_refuses_access(arena: ra.Arena, source: str) -> None:
    with SOURCES[source](arena) as buf:
        assert leases(arena) == 1
    assert leases(arena) == 0
    with pytest.raises(ValueError, match="released"):
        buf.tobytes()


def test_a_buffer_that_is_never_bound_is_free_again_at_once(arena: ra.Arena) -> None:
    for _ in range(some(10_000, 300)):
        arena.kmalloc(1000)
    assert leases(arena) == 0
    assert arena.stats().allocated <= 16 * 4096


def test_an_exception_that_leaves_the_scope_frees(arena: ra.Arena) -> None:
    def fail() -> None:
        buf = arena.kmalloc(10)
        buf[10] = 1

    with pytest.raises(IndexError):
        fail()
    assert leases(arena) == 0


def test_release_twice_frees_once(arena: ra.Arena) -> None:
    buf = arena.kmalloc(100)
    buf.release()
    with unchanged(arena):
        buf.release()


def test_the_exporter_cannot_be_made_or_filled_in_by_hand(arena: ra.Arena) -> None:
    exporter = arena.kmalloc(8).obj
    assert exporter.length == 8
    with pytest.raises((AttributeError, TypeError)):
        exporter.offset = 0
    if some(1, 0):
        with pytest.raises(TypeError):
            type(exporter)()
    del exporter
    assert leases(arena) == 0


def test_the_exporter_alone_keeps_the_block(arena: ra.Arena) -> None:
    buf = arena.kmalloc(8)
    buf[:] = b"exporter"
    exporter = buf.obj
    del buf
    assert leases(arena) == 1
    assert bytes(memoryview(exporter)) == b"exporter"
    del exporter
    assert leases(arena) == 0


# -- the last view ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VIEWS)
@pytest.mark.parametrize("how", ["del", "release"])
def test_any_view_keeps_the_block_after_its_buffer_is_gone(arena: ra.Arena, kind: str, how: str) -> None:
    buf = arena.kmalloc(64)
    buf[:] = bytes(range(64))
    view = VIEWS[kind](buf)
    if how == "release" and kind == "iterator":
        del buf  # an iterator needs its view whole
    elif how == "release":
        buf.release()
    else:
        del buf
    assert leases(arena) == 1
    got = bytes(view) if not isinstance(view, np.ndarray) else view.tobytes()
    assert got == _expected(kind)
    del view
    assert leases(arena) == 0


def _expected(kind: str) -> bytes:
    plain = bytearray(range(64))
    made = VIEWS[kind](memoryview(plain))
    return bytes(made) if not isinstance(made, np.ndarray) else made.tobytes()


@pytest.mark.parametrize("kind", [kind for kind in VIEWS if kind != "iterator"])
def test_kfree_with_a_view_alive_lingers_until_the_view_dies(arena: ra.Arena, kind: str) -> None:
    buf = arena.kmalloc(64)
    buf[:] = bytes(range(64))
    view = VIEWS[kind](buf)
    arena.kfree(buf)
    with pytest.raises(ValueError, match="released"):
        len(buf)
    assert (arena.stats().leases, arena.stats().lingering) == (1, 1)
    assert (view.tobytes() if isinstance(view, np.ndarray) else bytes(view)) == _expected(kind)
    arena.validate()
    del view
    assert (arena.stats().leases, arena.stats().lingering) == (0, 0)


def test_kfree_without_views_does_not_linger(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    arena.kfree(buf)
    assert (arena.stats().leases, arena.stats().lingering) == (0, 0)


@pytest.mark.parametrize("size", [64, 3000, 8192, 20_000])
@pytest.mark.parametrize("kind", ["slice", "frombuffer"])
def test_a_freed_block_is_not_reused_while_a_view_lives_even_if_all_memory_is_wanted(
    small: ra.Arena, size: int, kind: str
) -> None:
    pattern = np.random.default_rng(size).bytes(size)
    buf = small.kmalloc(size)
    buf[:] = pattern
    view = buf[:] if kind == "slice" else np.frombuffer(buf, np.uint8)
    low = address(memoryview(view))
    small.kfree(buf)
    held = eat_everything(small)
    spans = []
    for item in held:
        other = item.view if isinstance(item, ra.Pages) else item
        other[:] = b"\xff" * len(other)
        spans.append((address(other), len(other)))
    assert bytes(view) == pattern
    assert not [at for at, n in spans if at < low + size and low < at + n]
    del view
    again = small.kmalloc(size)
    assert address(again) == low, "it was the only free block"
    small.kfree(again)


def test_each_of_many_views_in_any_order_is_the_last_one_sometime(arena: ra.Arena) -> None:
    rng = np.random.default_rng(5)
    for _ in range(some(300, 30)):
        buf = arena.kmalloc(256)
        buf[:] = bytes(range(256))
        views: list[Any] = [buf]
        for _ in range(6):
            parent = views[int(rng.integers(len(views)))]
            views.append(np.frombuffer(parent, np.uint8) if rng.integers(3) == 0 else memoryview(parent)[1:])
        del buf, parent
        while views:
            assert leases(arena) == 1
            del views[int(rng.integers(len(views)))]
            gc.collect(0)
        assert leases(arena) == 0


def test_writing_through_any_view_is_seen_by_all(arena: ra.Arena) -> None:
    buf = arena.kzalloc(64)
    part = np.frombuffer(buf, np.uint32)[4:]
    part[0] = 0x01020304
    assert bytes(buf[16:20]) == b"\x04\x03\x02\x01"
    buf.cast("q")[0] = -1
    assert bytes(buf[:8]) == b"\xff" * 8


# -- exports of the very view ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAW_EXPORTS)
@pytest.mark.parametrize("verb", ["kfree", "krealloc in place", "krealloc moving", "kfree_sensitive", "free_pages"])
def test_a_raw_export_of_the_handle_makes_every_free_a_buffer_error_that_changes_nothing(
    arena: ra.Arena, kind: str, verb: str
) -> None:
    pages = arena.alloc_pages(0) if verb == "free_pages" else None
    buf = arena.kmalloc(100) if pages is None else pages.view
    buf[:] = bytes(100) if pages is None else bytes(4096)
    export = RAW_EXPORTS[kind](buf)
    calls: dict[str, Callable[[], Any]] = {
        "kfree": lambda: arena.kfree(buf),
        "krealloc in place": lambda: arena.krealloc(buf, 120),
        "krealloc moving": lambda: arena.krealloc(buf, 5000),
        "kfree_sensitive": lambda: arena.kfree_sensitive(buf),
        "free_pages": lambda: arena.free_pages(pages),  # type: ignore[arg-type]
    }
    refuses(arena, BufferError, "export", calls[verb])
    size = len(buf)
    assert bytes(buf) == bytes(size)
    buf[size - 1] = 9
    assert memoryview(export)[size - 1] == 9
    del export
    if pages is None:
        arena.kfree(buf)
    else:
        arena.free_pages(pages)
    assert leases(arena) == 0


@pytest.mark.parametrize("verb", ["pool", "cache"])
def test_a_raw_export_stops_pool_and_cache_frees_too(arena: ra.Arena, verb: str) -> None:
    owner: Any = arena.mempool(1, size=64) if verb == "pool" else arena.kmem_cache("raw", 64)
    buf = owner.alloc()
    export = pickle.PickleBuffer(buf)
    refuses(arena, BufferError, "export", owner.free, buf)
    export.release()
    owner.free(buf)
    owner.destroy()


def test_a_match_object_holds_no_export_but_keeps_the_bytes_safe(arena: ra.Arena) -> None:
    buf = arena.kmalloc(16)
    buf[:] = b"needle in a hay!"
    match = re.compile(b"in").search(buf)
    assert match is not None
    arena.kfree(buf)
    with pytest.raises((TypeError, ValueError)):
        match.group()
    del match
    assert leases(arena) == 0


# -- who may be freed ------------------------------------------------------------------------------------------------


def test_kfree_twice_is_invalid(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    arena.kfree(buf)
    refuses(arena, ra.InvalidFree, "freed already", arena.kfree, buf)


def test_kfree_after_release_is_invalid(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    buf.release()
    refuses(arena, ra.InvalidFree, "freed already", arena.kfree, buf)


@pytest.mark.parametrize("kind", ["slice", "strided", "reversed", "empty slice", "cast", "2-D cast", "slice of slice"])
def test_kfree_of_a_part_or_another_shape_is_invalid(arena: ra.Arena, kind: str) -> None:
    buf = arena.kmalloc(64)
    part = VIEWS[kind](buf)
    refuses(arena, ra.InvalidFree, "slice", arena.kfree, part)
    assert part.nbytes >= 0, "the part is not released"
    arena.kfree(buf)


def test_kfree_of_a_second_whole_view_after_the_handle_was_freed_is_invalid(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    other = memoryview(buf)
    arena.kfree(buf)
    refuses(arena, ra.InvalidFree, "freed block", arena.kfree, other)
    other.release()


def test_a_whole_view_is_as_good_a_handle_as_the_first(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    other = memoryview(buf)
    del buf
    arena.kfree(other)
    assert leases(arena) == 0


@pytest.mark.parametrize("foreign", [bytearray(64), b"x" * 64, array.array("B", bytes(64)), np.zeros(64, np.uint8)])
def test_kfree_of_a_foreign_memoryview_is_invalid(arena: ra.Arena, foreign: Any) -> None:
    refuses(arena, ra.InvalidFree, "foreign", arena.kfree, memoryview(foreign))


def test_kfree_of_a_view_of_an_array_over_our_block_is_invalid(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    refuses(arena, ra.InvalidFree, "foreign", arena.kfree, memoryview(np.frombuffer(buf, np.uint8)))
    arena.kfree(buf)


def test_kfree_of_another_arenas_buffer_is_invalid_and_changes_neither(arena: ra.Arena) -> None:
    with ra.Arena(MIB) as other:
        buf = other.kmalloc(64)
        with unchanged(other):
            refuses(arena, ra.InvalidFree, "foreign", arena.kfree, buf)
            refuses(arena, ra.InvalidFree, "foreign", arena.krealloc, buf, 128)
            refuses(arena, ra.InvalidFree, "foreign", arena.ksize, buf)
        other.kfree(buf)


@pytest.mark.parametrize("thing", [bytearray(8), b"bytes", 4096, "text", np.zeros(8, np.uint8), object(), True])
@pytest.mark.parametrize("verb", ["kfree", "vfree", "kvfree", "kfree_sensitive", "ksize", "free_pages"])
def test_only_memoryviews_can_be_freed(arena: ra.Arena, verb: str, thing: Any) -> None:
    refuses(arena, TypeError, f"not {type(thing).__name__}", getattr(arena, verb), thing)


def test_kfree_of_none_is_nothing(arena: ra.Arena) -> None:
    with unchanged(arena):
        arena.kfree(None)
        arena.vfree(None)
        arena.kvfree(None)
        arena.kfree_sensitive(None)


def test_each_free_takes_only_what_its_alloc_made(arena: ra.Arena) -> None:
    cache, other = arena.kmem_cache("one", 64), arena.kmem_cache("two", 64)
    pool, second = arena.mempool(1, size=64), arena.mempool(1, size=64)
    made = {
        "kmalloc": arena.kmalloc(64),
        "vmalloc": arena.vmalloc(64),
        "pages": arena.alloc_pages(0).view,
        "cache": cache.alloc(),
        "pool": pool.alloc(),
    }
    takes = {
        "vfree": (arena.vfree, {"vmalloc"}),
        "kfree": (arena.kfree, {"kmalloc", "vmalloc", "cache"}),
        "other.free": (other.free, set()),
        "second.free": (second.free, set()),
        "cache.free": (cache.free, {"cache"}),
        "pool.free": (pool.free, {"pool"}),
    }
    for free, allowed in takes.values():
        for kind, buf in made.items():
            if kind not in allowed:
                refuses(arena, ra.InvalidFree, "another|vfree|kfree", free, buf)
    arena.kfree(made["kmalloc"])
    arena.vfree(made["vmalloc"])
    made["pages"].release()
    cache.free(made["cache"])
    pool.free(made["pool"])
    for owner in (pool, second, cache, other):
        owner.destroy()


def test_exporter_of_knows_ours_only(arena: ra.Arena) -> None:
    buf = arena.kmalloc(8)
    assert exporter_of(buf) is buf.obj
    assert exporter_of(memoryview(b"foreign")) is None
    buf.release()
    assert exporter_of(buf) is None


# -- where a lease may die -------------------------------------------------------------------------------------------


class Node:
    """Something that can be in a cycle."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.me = self


def test_a_lease_in_a_reference_cycle_is_freed_by_the_collector(arena: ra.Arena) -> None:
    nodes = [Node(arena.kmalloc(100)) for _ in range(50)]
    nodes += [Node(np.frombuffer(arena.kmalloc(100), np.uint8)) for _ in range(50)]
    del nodes
    gc.collect()
    assert leases(arena) == 0


def test_a_lease_in_a_list_that_contains_itself_is_freed_by_the_collector(arena: ra.Arena) -> None:
    ring: list[Any] = [arena.kmalloc(100)]
    ring.append(ring)
    ring.append(ring[0][5:])
    del ring
    gc.collect()
    assert leases(arena) == 0


def test_allocating_and_freeing_inside_collections_works(arena: ra.Arena) -> None:
    kept: list[memoryview] = []
    phases: list[str] = []

    def callback(phase: str, _info: dict[str, int]) -> None:
        phases.append(phase)
        if kept:
            arena.kfree(kept.pop())
        else:
            kept.append(arena.kmalloc(333))

    gc.callbacks.append(callback)
    try:
        for _ in range(some(200, 20)):
            Node(arena.kmalloc(64))
            gc.collect(0)
    finally:
        gc.callbacks.remove(callback)
    assert len(phases) >= 40
    kept.clear()
    gc.collect()
    assert leases(arena) == 0


def test_allocation_heavy_code_with_an_eager_collector_stays_whole(arena: ra.Arena) -> None:
    before = gc.get_threshold()
    gc.set_threshold(3, 2, 2)
    try:
        for k in range(some(3000, 150)):
            Node([arena.kmalloc(1 + k % 9000), Node(arena.kmalloc(50))])
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert leases(arena) == 0


def test_freeing_in_a_finalizer_works(arena: ra.Arena) -> None:
    freed: list[int] = []

    class Owner:
        def __init__(self) -> None:
            self.buf = arena.kmalloc(64)
            self.cycle = self

        def __del__(self) -> None:
            arena.kfree(self.buf)
            with arena.kmalloc(64):
                freed.append(leases(arena))

    for _ in range(20):
        Owner()
    gc.collect()
    assert len(freed) == 20
    assert leases(arena) == 0


def test_freeing_in_a_weakref_callback_works(arena: ra.Arena) -> None:
    class Plain:
        pass

    buf = arena.kmalloc(64)
    target = Plain()
    reference = weakref.ref(target, lambda _ref: arena.kfree(buf))
    del target
    assert reference() is None
    assert leases(arena) == 0
    weakref.finalize(thing := Plain(), arena.kfree, arena.kmalloc(10))
    assert leases(arena) == 1
    del thing
    assert leases(arena) == 0


def test_memoryviews_of_blocks_can_be_weakly_referenced(arena: ra.Arena) -> None:
    buf = arena.kmalloc(64)
    dead: list[Any] = []
    reference = weakref.ref(buf, dead.append)
    del buf
    assert dead == [reference]
    assert leases(arena) == 0


def test_leases_may_die_on_other_threads(arena: ra.Arena) -> None:
    line: queue.Queue[Any] = queue.Queue()
    count = some(2000, 100)

    def consume() -> int:
        seen = 0
        while (item := line.get()) is not None:
            seen += int(item[0])
            del item
        return seen

    consumers = [Worker(consume) for _ in range(3)]
    for k in range(count):
        buf = arena.kmalloc(100)
        buf[0] = 1
        line.put(buf if k % 2 else np.frombuffer(buf, np.uint8))
    del buf
    for _ in consumers:
        line.put(None)
    assert sum(int(worker.result()) for worker in consumers) == count
    gc.collect()
    assert leases(arena) == 0


def test_a_view_held_in_a_threads_frame_is_freed_when_the_thread_ends(arena: ra.Arena) -> None:
    has, go = threading.Event(), threading.Event()

    def hold() -> None:
        buf = arena.kmalloc(77)
        has.set()
        go.wait()
        assert len(buf) == 77

    worker = Worker(hold)
    assert has.wait(60)
    assert leases(arena) == 1
    go.set()
    worker.result()
    assert leases(arena) == 0


def test_threads_that_allocate_write_check_and_free_never_see_each_others_bytes(arena: ra.Arena) -> None:
    barrier = threading.Barrier(4)

    def work(me: int) -> int:
        rng = np.random.default_rng(me)
        held: list[tuple[memoryview, int]] = []
        barrier.wait()
        for k in range(some(1500, 60)):
            size = int(rng.integers(1, 3000))
            buf = arena.kmalloc(size)
            mark = (me * 64 + k) % 256
            buf[:] = bytes([mark]) * size
            held.append((buf, mark))
            if len(held) > 20:
                buf, mark = held.pop(int(rng.integers(len(held))))
                assert bytes(buf) == bytes([mark]) * len(buf)
                if k % 2:
                    arena.kfree(buf)
        assert all(bytes(buf) == bytes([mark]) * len(buf) for buf, mark in held)
        return me

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert sorted(w.result() for w in [Worker(lambda me=me: work(me)) for me in range(4)]) == [0, 1, 2, 3]
    finally:
        sys.setswitchinterval(interval)


# -- close with leases out -------------------------------------------------------------------------------------------


def test_views_outlive_a_closed_arena_with_their_bytes() -> None:
    arena = ra.Arena(MIB)
    buf = arena.kmalloc(64)
    buf[:] = bytes(range(64))
    part, numbers = buf[8:16], np.frombuffer(buf, np.uint8)
    with pytest.warns(ResourceWarning, match=r"1 live leases: kmalloc-64: 1"):
        arena.close()
    del buf
    part[0] = 99
    assert numbers[8] == 99
    assert numbers[:8].tobytes() == bytes(range(8))
    del part
    assert numbers.sum() == sum(range(64)) - 8 + 99


def test_the_mapping_goes_when_the_last_lease_of_a_closed_arena_dies() -> None:
    arena = ra.Arena("64MiB")
    base = arena.address
    bufs = [arena.kmalloc(size) for size in (8, 100_000, 5_000_000)]
    with pytest.warns(ResourceWarning, match="3 live leases"):
        arena.close()
    while bufs:
        assert mapped(base)
        bufs.pop()
    assert not mapped(base)


def mapped(at: int) -> bool:
    """Tell whether an address is in some mapping of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= at < high:
            return True
    return False


def test_closing_without_leases_unmaps_at_once() -> None:
    arena = ra.Arena("64MiB")
    base = arena.address
    assert mapped(base)
    arena.close()
    assert not mapped(base)


# -- what others do with buffers -------------------------------------------------------------------------------------


def test_struct_packs_into_and_unpacks_from_a_buffer(arena: ra.Arena) -> None:
    with arena.kmalloc(64) as buf:
        struct.pack_into("<QIf", buf, 3, 2**63, 7, 0.5)
        assert struct.unpack_from("<QIf", buf, 3) == (2**63, 7, 0.5)
        with pytest.raises(struct.error):
            struct.pack_into("<Q", buf, 60, 1)


def test_sockets_send_from_and_receive_into_buffers(arena: ra.Arena) -> None:
    left, right = socket.socketpair()
    with left, right, arena.kmalloc(5000) as out, arena.kmalloc(5000) as into:
        out[:] = (b"0123456789" * 500)[:5000]
        left.sendall(out)
        got = 0
        while got < 5000:
            got += right.recv_into(into[got:])
        assert into == out
        left.sendmsg([out[:10], out[10:20]])
        assert right.recvmsg_into([into[:4], into[4:]])[0] >= 1
    assert leases(arena) == 0


def test_files_read_into_and_write_from_buffers(arena: ra.Arena, tmp_path: Any) -> None:
    path = tmp_path / "data"
    with arena.kmalloc(10_000) as buf:
        buf[:] = os.urandom(10_000)
        path.write_bytes(buf)
        with arena.kzalloc(10_000) as back, open(path, "rb", buffering=0) as file:
            assert file.readinto(back) == 10_000
            assert back == buf
            file.seek(0)
            assert os.preadv(file.fileno(), [back[:5], back[5:]], 1) == 9999
            assert back[:9999] == buf[1:]
        with io.BytesIO() as memory:
            memory.write(buf)
            assert memory.getvalue() == bytes(buf)
    assert leases(arena) == 0


def test_zlib_and_hashlib_read_buffers_larger_than_their_gil_threshold(arena: ra.Arena) -> None:
    with arena.kmalloc(100_000) as buf:
        buf[:] = bytes(range(250)) * 400
        assert zlib.decompress(zlib.compress(buf)) == bytes(buf)
        assert zlib.crc32(buf) == zlib.crc32(bytes(buf))
        assert hashlib.sha256(buf).digest() == hashlib.sha256(bytes(buf)).digest()


def test_numpy_arrays_over_a_buffer_are_writable_views_not_copies(arena: ra.Arena) -> None:
    buf = arena.kmalloc(800)
    numbers = np.frombuffer(buf, np.float64)
    assert numbers.flags.writeable and not numbers.flags.owndata
    numbers[:] = np.arange(100)
    assert buf.cast("d")[99] == 99.0
    del buf
    assert numbers.sum() == 4950.0
    del numbers
    assert leases(arena) == 0


def test_pickle_sends_a_buffer_out_of_band_without_copying(arena: ra.Arena) -> None:
    buf = arena.kmalloc(32)
    buf[:] = b"p" * 32
    bands: list[pickle.PickleBuffer] = []
    text = pickle.dumps(pickle.PickleBuffer(buf), protocol=5, buffer_callback=bands.append)
    back = pickle.loads(text, buffers=bands)
    with memoryview(back) as view:
        view[0] = 33
    assert buf[0] == 33
    with pytest.raises(TypeError):
        pickle.dumps(buf)
    del back, bands, view
    arena.kfree(buf)


def test_bytes_methods_compare_join_and_hash_like_any_memoryview(arena: ra.Arena) -> None:
    buf = arena.kmalloc(4)
    buf[:] = b"abcd"
    assert buf == b"abcd" and b"".join([buf, buf[1:]]) == b"abcdbcd"
    assert bytearray(buf) == b"abcd" and int.from_bytes(buf, "big") == 0x61626364
    assert hash(buf.toreadonly()) == hash(b"abcd")
    with pytest.raises(ValueError):
        hash(buf)


def _cpython_memory_tests() -> Any:
    try:
        from test import test_memoryview  # CPython's own, where the distribution has it
    except ImportError:
        return None
    return test_memoryview


@pytest.mark.skipif(_cpython_memory_tests() is None, reason="this Python came without its test package")
def test_cpythons_own_memoryview_tests_pass_on_arena_buffers(arena: ra.Arena) -> None:
    theirs = _cpython_memory_tests()

    class ArenaTests(unittest.TestCase, theirs.BaseMemoryviewTests, theirs.BaseBytesMemoryTests):  # type: ignore[misc]
        ro_type = None
        rw_type = staticmethod(lambda data: _filled(arena, data))
        check_contents = _check_contents = lambda self, _tp, obj, contents: self.assertEqual(bytes(obj), contents)

    names = [name for name in unittest.TestLoader().getTestCaseNames(ArenaTests) if "refs" not in name]
    result = unittest.TestResult()
    unittest.TestSuite(ArenaTests(name) for name in names).run(result)
    assert result.testsRun == len(names) >= 10
    assert not result.errors and not result.failures, [text for _, text in result.errors + result.failures]


def _filled(arena: ra.Arena, data: bytes) -> memoryview:
    buf = arena.kmalloc(len(data))
    buf[:] = data
    return buf
