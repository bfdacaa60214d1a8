"""Readers, writers and copies: every length, order and depth; errors, closing and waiting lose no buffer."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import Worker, eventually
from transfers import TRANSFERS, Gate, fail_at, refuse_direct, shorten

import realalloc as ra
from realalloc.adapters.block import Block, BlockReader, BlockWriter, DirectIOWarning, copy_file
from realalloc.rss import RssSampler

PAGE = 4096
MIB = 1 << 20
LENGTHS = [0, 1, 511, 4095, 4096, 4097, 8191, 8192, 8193, 12288, 20000, 65536, 65537, 100_001]
SHAPES = [(None, 1), (1, 1), (2, 1), (3, 2), (1, 3), (2, 3), (None, 6)]


def data(nbytes: int) -> bytes:
    return np.random.default_rng(nbytes).bytes(nbytes)


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[Any]:
    """Six buffers of a page; all are back at the end, and none ever came from elsewhere."""
    made = arena.mempool(6, order=0)
    yield made
    stats = made.stats()
    assert (stats.outstanding, stats.gets_alloc, stats.curr_nr) == (0, 0, 6)
    made.destroy()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten pages and a tail."""
    made = tmp_path / "source"
    made.write_bytes(data(10 * PAGE + 100))
    return made


def contents(reader: BlockReader) -> bytes:
    """Read on to the end, checking offsets."""
    parts = []
    offset = 0
    for block in reader:
        assert block.offset == offset
        assert sum(map(len, block.views)) == block.nbytes
        offset += block.nbytes
        parts += [bytes(view) for view in block.views]
    return b"".join(parts)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("depth", "segments"), SHAPES)
def test_every_length_is_read_written_and_copied(
    pool: Any, tmp_path: Path, length: int, depth: Any, segments: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data(length))
    target.write_bytes(b"old" * 50_000)
    with BlockReader(source, pool, depth=depth, segments=segments) as reader:
        assert (reader.size_bytes, reader.request_bytes) == (length, segments * PAGE)
        assert contents(reader) == data(length)
    assert copy_file(source, target, pool, depth=depth, segments=segments) == length
    assert target.read_bytes() == data(length)
    for step in (1000, PAGE, 50_000):
        with BlockWriter(target, pool, depth=depth, segments=segments) as writer:
            for begin in range(0, length, step):
                assert writer.write(data(length)[begin : begin + step]) == min(step, length - begin)
        assert writer.size_bytes == length
        assert target.read_bytes() == data(length)


@pytest.mark.parametrize("short", [PAGE, PAGE + 512, 2 * PAGE])
def test_short_transfers_change_nothing(pool: Any, tmp_path: Path, monkeypatch: Any, source: Path, short: int) -> None:
    for name in TRANSFERS:
        shorten(monkeypatch, name, short)
    copy_file(source, tmp_path / "target", pool, segments=3)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_without_o_direct_it_is_the_page_cache_and_a_warning_each(
    pool: Any, tmp_path: Path, monkeypatch: Any, source: Path
) -> None:
    refuse_direct(monkeypatch)
    with pytest.warns(DirectIOWarning) as seen:
        copy_file(source, tmp_path / "target", pool)
    assert len(seen) == 2
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_any_bytes_like_object_can_be_written(pool: Any, tmp_path: Path) -> None:
    array = np.arange(3000, dtype=np.int32).reshape(30, 100)
    with BlockWriter(tmp_path / "target", pool) as writer:
        assert writer.write(array) == 12000
        assert writer.write(bytearray(b"x")) == 1
        assert writer.write(b"") == 0
        for wrong in ("text", 7, None, array[:, ::2]):
            with pytest.raises(TypeError):
                writer.write(wrong)
    assert (tmp_path / "target").read_bytes() == array.tobytes() + b"x"


def test_requests_are_in_flight_together_and_blocks_come_in_order(pool: Any, monkeypatch: Any, source: Path) -> None:
    gate = Gate(monkeypatch, "preadv", lambda at: at < 4 * PAGE)
    with BlockReader(source, pool, depth=4) as reader:
        first = Worker(lambda: contents(reader))
        for _ in range(4):
            assert gate.reached.acquire(timeout=30)
        assert pool.stats().outstanding == 4
        gate.opened.set()
        assert first.result() == source.read_bytes()


def test_the_last_request_may_finish_first(pool: Any, monkeypatch: Any, source: Path) -> None:
    gate = Gate(monkeypatch, "preadv", lambda at: at == 0)
    with BlockReader(source, pool, depth=6) as reader:
        worker = Worker(lambda: contents(reader))
        assert gate.reached.acquire(timeout=30)
        eventually(lambda: sum(future.done() for future, _ in reader._ahead) == 5)
        gate.opened.set()
        assert worker.result() == source.read_bytes()


@pytest.mark.parametrize("offset", [0, 3 * PAGE, 10 * PAGE])
@pytest.mark.parametrize("depth", [1, 6])
def test_a_read_error_ends_the_reading_and_loses_nothing(
    pool: Any, monkeypatch: Any, source: Path, offset: int, depth: int
) -> None:
    asked = fail_at(monkeypatch, "preadv", offset)
    reader = BlockReader(source, pool, depth=depth)
    offsets = []
    with pytest.raises(OSError, match="Input/output error") as info:
        for block in reader:
            offsets.append(block.offset)
    assert offsets == list(range(0, offset, PAGE))
    assert pool.stats().outstanding == 0  # while the traceback still lives
    assert max(asked) <= offset + depth * PAGE
    with pytest.raises(ValueError, match="the reader is closed"):
        next(reader)
    reader.close()
    del info


@pytest.mark.parametrize("second", [None, PAGE])
def test_what_lies_before_an_error_is_delivered_although_it_comes_later(
    pool: Any, monkeypatch: Any, source: Path, second: int | None
) -> None:
    """The error is raised where it is in the file, and if an earlier request fails after it, then there."""
    if second is not None:
        fail_at(monkeypatch, "preadv", second, errno.ENXIO)
    gate = Gate(monkeypatch, "preadv", lambda at: at < 3 * PAGE)
    fail_at(monkeypatch, "preadv", 3 * PAGE)
    reader = BlockReader(source, pool, depth=6)
    offsets: list[int] = []
    worker = Worker(lambda: offsets.extend(block.offset for block in iter(lambda: next(reader), None)))
    eventually(lambda: reader._requests.error is not None)
    gate.opened.set()
    with pytest.raises(OSError) as info:
        worker.result()
    assert info.value.errno == (errno.EIO if second is None else errno.ENXIO)
    assert offsets == ([0, PAGE, 2 * PAGE] if second is None else [0])
    assert pool.stats().outstanding == 0
    del info


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("segments", [1, 2])
def test_an_error_ends_a_copy_and_loses_nothing(
    pool: Any, tmp_path: Path, monkeypatch: Any, source: Path, name: str, segments: int
) -> None:
    fail_at(monkeypatch, name, 4 * PAGE, errno.ENOSPC)
    with pytest.raises(OSError) as info:
        copy_file(source, tmp_path / "target", pool, segments=segments)
    assert info.value.errno == errno.ENOSPC
    assert pool.stats().outstanding == 0
    del info


@pytest.mark.parametrize("how", ["write", "flush", "close"])
def test_an_error_of_a_write_is_raised_by_what_comes_next(
    pool: Any, tmp_path: Path, monkeypatch: Any, how: str
) -> None:
    fail_at(monkeypatch, "pwritev", 0)
    writer = BlockWriter(tmp_path / "target", pool)
    writer.write(bytes(PAGE))
    eventually(lambda: writer._requests.error is not None)
    with pytest.raises(OSError):
        if how == "write":
            writer.write(b"x")
        elif how == "flush":
            writer.flush()
        else:
            writer.close()
    writer.abort()
    writer.close()
    assert pool.stats().outstanding == 0
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"x")


def test_an_error_of_the_tail_is_raised_by_close(pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    fail_at(monkeypatch, "pwritev", PAGE)
    with pytest.raises(OSError), BlockWriter(tmp_path / "target", pool) as writer:
        writer.write(bytes(PAGE + 1))
    assert pool.stats().outstanding == 0


def test_a_file_that_shrinks_while_it_is_read_is_an_error(pool: Any, source: Path) -> None:
    with BlockReader(source, pool, depth=1) as reader:
        next(reader)
        os.truncate(source, 2 * PAGE + 7)
        next(reader)
        with pytest.raises(EOFError, match=f"ends at byte {2 * PAGE + 7}; it had {10 * PAGE + 100}"):
            next(reader)


def test_a_file_that_grows_is_read_to_its_former_end(pool: Any, source: Path) -> None:
    before = source.read_bytes()
    with BlockReader(source, pool) as reader:
        with source.open("ab") as file:
            file.write(b"more")
        assert contents(reader) == before


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_a_reader_in_flight_gives_everything_back(
    pool: Any, monkeypatch: Any, source: Path, taken: int
) -> None:
    with BlockReader(source, pool) as reader:
        for _ in range(taken):
            next(reader)
        gate = Gate(monkeypatch, "preadv")
        reader._read_ahead()
        gate.opened.set()
    assert pool.stats().outstanding == 0
    reader.close()


def test_leaving_a_writer_with_an_error_writes_no_more(pool: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyError), BlockWriter(tmp_path / "target", pool) as writer:
        writer.write(bytes(PAGE + 1))
        raise KeyError
    assert (tmp_path / "target").stat().st_size in (0, PAGE)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_an_empty_array_is_no_bytes(pool: Any, tmp_path: Path, shape: Any) -> None:
    with BlockWriter(tmp_path / "target", pool) as writer:
        assert writer.write(np.empty(shape, np.int32)) == 0
    assert (tmp_path / "target").read_bytes() == b""


def test_a_reader_that_nobody_closed_loses_no_descriptor(pool: Any, source: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = BlockReader(source, pool, depth=2)
    next(reader)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del reader
        eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
    eventually(lambda: pool.stats().outstanding == 0)


def refuse_threads(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the system give ``after`` threads and no more."""
    real = threading.Thread.start
    left = [after]

    def start(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_request_without_a_thread_is_no_hole_in_the_file(
    pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes on after the error is told again: bytes that were accepted are not in the file."""
    gate = Gate(monkeypatch, "pwritev")
    writer = BlockWriter(tmp_path / "target", pool, depth=3)
    refuse_threads(monkeypatch, 1)
    writer.write(data(PAGE))
    with pytest.raises(RuntimeError, match="start new thread"):
        writer.write(data(PAGE))
    gate.opened.set()
    with pytest.raises(RuntimeError, match="start new thread"):
        writer.close()
    assert pool.stats().outstanding == 0


# -- blocks ----------------------------------------------------------------------------------------------------------


def test_a_block_is_lent_until_the_next_and_kept_on_demand(pool: Any, source: Path) -> None:
    with BlockReader(source, pool, depth=2) as reader:
        lent = next(reader)
        view = lent.views[0]
        with next(reader) as kept:
            with pytest.raises(ValueError, match="released"):
                view[0]
            with pytest.raises(ValueError, match="the block was released"):
                _ = lent.views
            third = next(reader)
            assert bytes(kept.views[0]) == source.read_bytes()[PAGE : 2 * PAGE]
            assert third.offset == 2 * PAGE
        kept.release()


def test_a_kept_block_outlives_its_reader(pool: Any, source: Path) -> None:
    with BlockReader(source, pool) as reader:
        block = next(reader).keep()
    assert bytes(block.views[0]) == source.read_bytes()[:PAGE]
    assert pool.stats().outstanding == 1
    block.release()


def test_who_keeps_all_waits_and_may_ask_again(pool: Any, source: Path) -> None:
    with BlockReader(source, pool, depth=2, timeout_seconds=0.02) as reader:
        blocks = [next(reader).keep(), next(reader).keep()]
        with pytest.raises(TimeoutError, match="0 of 2 requests free"):
            next(reader)
        blocks.pop().release()
        assert next(reader).offset == 2 * PAGE
        blocks.pop().release()


def test_a_buffer_export_of_a_block_is_told_of(pool: Any, source: Path) -> None:
    with BlockReader(source, pool) as reader:
        export = pickle.PickleBuffer(next(reader).views[0])
        with pytest.raises(BufferError):
            next(reader)
        assert bytes(export) == source.read_bytes()[:PAGE]
    assert pool.stats().outstanding == 1  # close let go, the export did not
    export.release()
    del export
    assert pool.stats().outstanding == 0


def test_an_array_over_a_block_keeps_its_buffer_and_its_bytes(arena: ra.Arena, source: Path) -> None:
    pool = arena.mempool(2, order=0)
    with BlockReader(source, pool) as reader:
        array = np.frombuffer(next(reader).views[0], np.uint8)
        for _ in reader:
            pass
    assert array.tobytes() == source.read_bytes()[:PAGE]
    stats = pool.stats()
    assert (stats.outstanding, stats.gets_alloc + stats.refills) == (1, 2 + 1)  # in its place the arena gave one
    del array
    assert pool.stats().outstanding == 0
    pool.destroy()


def test_a_tail_in_a_loop_variable_keeps_no_buffer(pool: Any, source: Path) -> None:
    with BlockReader(source, pool) as reader:
        for block in reader:
            views = block.views
    assert pool.stats().outstanding == 0
    with pytest.raises(ValueError):
        len(views[0])


def test_a_block_that_is_written_is_the_writers(pool: Any, tmp_path: Path, source: Path) -> None:
    with BlockReader(source, pool, depth=3) as reader, BlockWriter(tmp_path / "target", pool, depth=3) as writer:
        block = next(reader)
        block.views[0][:3] = b"new"
        writer.write_block(block)
        block.release()  # no longer ours: nothing
        with pytest.raises(ValueError, match="the block was released"):
            writer.write_block(block)
        with pytest.raises(ValueError, match="write on a writer that was used with write_block"):
            writer.write(b"x")
        writer.flush(sync=True)
        odd = Block([], 5, lambda: None)
        with pytest.raises(ValueError, match="multiple of 4096"):
            writer.write_block(odd)
    assert (tmp_path / "target").read_bytes() == b"new" + source.read_bytes()[3:PAGE]


def test_writes_that_do_not_end_are_waited_for_and_the_block_stays_ours(
    pool: Any, tmp_path: Path, monkeypatch: Any, source: Path
) -> None:
    gate = Gate(monkeypatch, "pwritev")
    with BlockReader(source, pool, depth=3) as reader:
        with BlockWriter(tmp_path / "target", pool, depth=1, timeout_seconds=0.02) as writer:
            writer.write_block(next(reader))
            block = next(reader).keep()
            with pytest.raises(TimeoutError):
                writer.write_block(block)
            assert bytes(block.views[0]) == source.read_bytes()[PAGE : 2 * PAGE]
            gate.opened.set()
            writer.flush()
            writer.write_block(block)
    assert (tmp_path / "target").read_bytes() == source.read_bytes()[: 2 * PAGE]


def test_a_write_that_times_out_says_how_far_it_came(pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    gate = Gate(monkeypatch, "pwritev")
    with BlockWriter(tmp_path / "target", pool, depth=2, timeout_seconds=0.02) as writer:
        with pytest.raises(TimeoutError):
            writer.write(data(5 * PAGE))
        assert writer.size_bytes == 2 * PAGE
        gate.opened.set()
        writer.flush()
        writer._requests.timeout_seconds = None
        writer.write(data(5 * PAGE)[writer.size_bytes :])
    assert (tmp_path / "target").read_bytes() == data(5 * PAGE)


def test_a_block_that_is_released_while_it_waits_to_be_written_costs_the_writer_nothing(
    pool: Any, tmp_path: Path, monkeypatch: Any, source: Path
) -> None:
    gate = Gate(monkeypatch, "pwritev")
    with BlockReader(source, pool, depth=3) as reader:
        with BlockWriter(tmp_path / "target", pool, depth=1) as writer:
            writer.write_block(next(reader))
            block = next(reader).keep()
            worker = Worker(lambda: writer.write_block(block))
            assert gate.reached.acquire(timeout=30)
            time.sleep(0.02)  # the worker waits for its turn
            block.release()
            gate.opened.set()
            with pytest.raises(ValueError, match="the block was released"):
                worker.result()
            assert writer._requests._budget.free == 1
            assert writer.size_bytes == PAGE


def test_what_is_wrong_with_a_block_is_said(pool: Any, tmp_path: Path) -> None:
    with BlockWriter(tmp_path / "target", pool) as writer:
        block = Block([], 5, lambda: None)
        with pytest.raises(ValueError, match="^the block begins at 5, which is no multiple of 4096$"):
            writer.write_block(block)
        block.release()
        with pytest.raises(ValueError, match="^the block was released$"):
            writer.write_block(block)


def test_an_endless_timeout_is_one(pool: Any, source: Path) -> None:
    with BlockReader(source, pool, depth=1, timeout_seconds=float("inf")) as reader:
        block = next(reader).keep()
        worker = Worker(lambda: next(reader).offset)
        time.sleep(0.02)
        block.release()
        assert worker.result() == PAGE


# -- refusals --------------------------------------------------------------------------------------------------------


def test_pools_and_numbers_that_cannot_be_used_are_refused(
    arena: ra.Arena, pool: Any, tmp_path: Path, source: Path
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    odd = arena.mempool(2, size=5000)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (odd, {}, "multiples of 4096"),
        (pool, {"segments": 7}, "at most min_nr=6"),
        (pool, {"segments": 0}, "segments"),
        (pool, {"segments": 2, "depth": 4}, "depth must be at most 3"),
        (pool, {"depth": 0}, "depth"),
        (pool, {"timeout_seconds": -1}, "timeout"),
    ]
    for which, options, match in cases:
        for make in (
            lambda: BlockReader(source, which, **options),
            lambda: BlockWriter(tmp_path / "t", which, **options),
        ):
            with pytest.raises(ValueError, match=match):
                make()
    assert not (tmp_path / "t").exists()
    for path in (tmp_path / "none" / "x", tmp_path):
        with pytest.raises(OSError):
            BlockWriter(path, pool)
    odd.destroy()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_file_is_not_copied_onto_itself(pool: Any, tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link"):
        with pytest.raises(shutil.SameFileError):
            copy_file(source, target, pool)
    assert source.stat().st_size == 10 * PAGE + 100


def test_unaligned_elements_are_refused(arena: ra.Arena, source: Path) -> None:
    class Shifted:
        min_nr, element_bytes = 1, PAGE

        def alloc(self, timeout: float | None = None) -> memoryview:
            return arena.kmalloc(2 * PAGE)[64 : 64 + PAGE]

    with pytest.raises(ValueError, match="not page-aligned"):
        BlockReader(source, Shifted())  # type: ignore[arg-type]


# -- large -----------------------------------------------------------------------------------------------------------


def test_a_large_file_is_copied_in_bounded_memory(arena: ra.Arena, tmp_path: Path) -> None:
    """64 MiB and a tail through 8 buffers of 256 KiB."""
    pool = arena.mempool(8, order=6)
    source, target = tmp_path / "source", tmp_path / "target"
    chunk = data(MIB)
    with BlockWriter(source, pool) as writer:
        for number in range(64):
            writer.write(number.to_bytes(8, "little") + chunk[8:])
        writer.write(b"tail")
    committed = arena.stats().committed
    with RssSampler() as sampler:
        assert copy_file(source, target, pool) == 64 * MIB + 4
    assert sampler.growth < 16 * MIB
    assert arena.stats().committed == committed
    assert pool.stats().gets_alloc == 0
    digests = []
    for path in (source, target):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    assert digests[0] == digests[1]
    pool.destroy()
