"""The queue: tags, back-pressure, completion out of order, timeouts, aborts, closing; nothing is allocated for a command."""

from __future__ import annotations

import ctypes
import gc
import pickle
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import Worker, address, eventually, some

import realalloc as ra
from realalloc.adapters import scsi
from realalloc.adapters.scsi import (
    CommandAborted,
    CommandQueue,
    CommandTimedOut,
    FileTarget,
    Outcome,
    Status,
    TargetFailure,
)
from realalloc.adapters.scsi.cdb import Command
from realalloc.adapters.scsi.tags import TagSet

BLOCKS = 64
CONTENT = bytes(k * 31 % 253 for k in range(BLOCKS * 512))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileTarget]:
    (tmp_path / "disk").write_bytes(CONTENT)
    with FileTarget({0: tmp_path / "disk"}) as made:
        yield made


class Slow:
    """A target that holds commands until they are let go, by tag; it can be told to listen to aborts, and to raise."""

    def __init__(self) -> None:
        self.holds: dict[int, threading.Event] = {}
        self.seen: list[int] = []
        self.listens = False
        self.problem: BaseException | None = None
        self.fill = 0

    def execute(self, command: Command, data: Sequence[memoryview]) -> None:
        event = self.holds.setdefault(command.tag, threading.Event())
        self.seen.append(command.tag)
        while not event.wait(0.002):
            if self.listens and command.aborting:
                command.finish(status=Status.TASK_ABORTED)
                return
        if self.problem is not None:
            raise self.problem
        for view in data:
            view[:] = bytes([self.fill]) * len(view)
        command.transferred_bytes = command.data_bytes
        command.finish()

    def holding(self, count: int) -> None:
        eventually(lambda: len(self.seen) >= count)

    def let_go(self, *tags: int) -> None:
        for tag in tags:
            self.holds.setdefault(tag, threading.Event()).set()

    def let_all_go(self, depth: int = 8) -> None:
        self.let_go(*range(depth))


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.let_all_go(64)


def ready(queue: CommandQueue, **options: Any) -> scsi.Request:
    return queue.submit(scsi.test_unit_ready(), **options)


# -- commands --------------------------------------------------------------------------------------------------------


def test_commands_go_to_the_target_and_back(arena: ra.Arena, disk: FileTarget) -> None:
    with CommandQueue(arena, disk, depth=4, nr_buffers=8, buffer_bytes=1024) as queue:
        with queue.submit(scsi.inquiry(), receive_bytes=36) as request:
            assert request.wait() is Status.GOOD
            assert (len(request.data[0]), request.transferred_bytes, request.residual_bytes) == (36, 36, 0)
        with queue.submit(scsi.write_10(3, 5), data=b"w" * 2560) as request:
            assert request.wait(30) == Status.GOOD
            assert (request.done, request.outcome) == (True, Outcome.COMPLETED)
        with queue.submit(scsi.read_10(2, 7), receive_bytes=7 * 512) as request:
            assert request.wait() == Status.GOOD
            assert [len(view) for view in request.data] == [1024, 1024, 1024, 512]
            assert b"".join(request.data) == CONTENT[1024:1536] + b"w" * 2560 + CONTENT[8 * 512 : 9 * 512]
        with queue.submit(scsi.read_10(BLOCKS, 1), receive_bytes=512) as request:
            assert request.wait() is Status.CHECK_CONDITION
            assert request.data == []
        assert request.sense.hex() == "70000500000000" + "0a00000000" + "2100" + "00000000"
        with queue.submit(scsi.test_unit_ready(), lun=9) as request:
            assert (request.wait(), request.sense[12]) == (Status.CHECK_CONDITION, 0x25)
        assert (queue.free_tags, queue.data_pool.stats().outstanding) == (4, 0)


def test_a_request_that_was_released_tells_its_status_and_no_data(arena: ra.Arena, disk: FileTarget) -> None:
    with CommandQueue(arena, disk) as queue:
        request = queue.submit(scsi.inquiry(), receive_bytes=36)
        assert request.wait() == Status.GOOD
        view = request.data[0]
        request.release()
        request.release()
        assert (request.wait(), request.transferred_bytes, request.abort()) == (Status.GOOD, 36, False)
        for use in (lambda: request.data, lambda: view[0]):
            with pytest.raises(ValueError):
                use()


def test_the_structure_says_what_was_submitted(arena: ra.Arena) -> None:
    seen: list[Any] = []

    class Looks:
        def execute(self, command: Command, data: Sequence[memoryview]) -> None:
            segments = [(command.segments[k].address, command.segments[k].nbytes) for k in range(command.nr_segments)]
            seen.append(
                (bytes(command.cdb), command.cdb_bytes, bytes(command.lun), command.direction, command.data_bytes)
            )
            seen.append(
                (segments == [(address(view), len(view)) for view in data], bytes(command.sense), command.status)
            )
            command.finish(scsi.cdb.NO_SENSE)

    with CommandQueue(arena, Looks(), depth=1, nr_buffers=4, buffer_bytes=600) as queue:
        for raw, options, direction, nbytes in (
            (b"\x28" + b"abcdefghi", {"receive_bytes": 1500}, 1, 1500),
            (b"\x00" * 6, {"lun": 300}, 0, 0),
            (bytes(range(16)), {"data": np.arange(100, dtype=np.int64)}, 2, 800),
        ):
            with queue.submit(raw, **options) as request:
                assert request.wait() == Status.CHECK_CONDITION
            lun = bytes.fromhex("412c") if "lun" in options else bytes(2)
            assert seen == [
                (raw.ljust(16, b"\0"), len(raw), lun.ljust(8, b"\0"), direction, nbytes),
                (True, bytes(18), 0),
            ]
            seen.clear()


def test_steady_state_takes_nothing_from_the_arena(arena: ra.Arena, disk: FileTarget) -> None:
    """Every get is served by the reserve, elements of commands stay where they are, and the arena's books stand still."""
    with CommandQueue(arena, disk, depth=8, nr_buffers=16, buffer_bytes=1024) as queue:
        books: list[Any] = []
        addresses = [ctypes.addressof(slot.command) for slot in queue._set.slots if slot.command is not None]
        rounds = some(300, 30)
        for _ in range(rounds):
            requests = [queue.submit(scsi.read_10(lba, 4), receive_bytes=2048) for lba in range(8)]
            for lba, request in enumerate(requests):
                assert request.wait() == Status.GOOD
                assert b"".join(request.data) == CONTENT[lba * 512 : lba * 512 + 2048]
                request.release()
            stats = arena.stats()
            books.append(
                (
                    stats.committed,
                    stats.allocated,
                    stats.live_objects,
                    stats.live_blocks,
                    stats.live_areas,
                    stats.page_allocs,
                )
            )
        assert len(set(books)) == 1
        assert addresses == [ctypes.addressof(slot.command) for slot in queue._set.slots if slot.command is not None]
        data, commands = queue.data_pool.stats(), queue.command_pool.stats()
        assert (data.gets_alloc, data.puts_free, data.failures, data.outstanding) == (0, 0, 0, 0)
        assert data.gets_reserve == data.puts_reserve == rounds * 16
        assert (commands.gets_alloc, commands.gets_reserve, commands.puts_reserve) == (0, 8, 0)


def test_many_threads_see_their_own_data(arena: ra.Arena, disk: FileTarget) -> None:
    """Each thread owns some blocks; depth and buffers are too few for all of them."""
    with CommandQueue(arena, disk, depth=3, nr_buffers=4, buffer_bytes=512, workers=3) as queue:

        def client(number: int) -> None:
            chance = random.Random(number)
            for turn in range(some(60, 10)):
                blocks = chance.randint(1, 4)
                new = bytes([number * 16 + turn % 16]) * (blocks * 512)
                with queue.submit(scsi.write_10(number * 8, blocks), data=new) as request:
                    assert request.wait() == Status.GOOD
                with queue.submit(scsi.read_10(number * 8, blocks), receive_bytes=len(new)) as request:
                    assert request.wait() == Status.GOOD
                    assert b"".join(request.data) == new

        for worker in [Worker(lambda number=number: client(number)) for number in range(6)]:
            worker.result()
        assert (queue.data_pool.stats().gets_alloc, queue.free_tags) == (0, 3)


# -- completion, back-pressure ---------------------------------------------------------------------------------------


def test_commands_complete_in_any_order(arena: ra.Arena, slow: Slow) -> None:
    with CommandQueue(arena, slow, depth=4, workers=4) as queue:
        requests = [ready(queue) for _ in range(4)]
        slow.holding(4)
        order = [2, 0, 3, 1]
        for number in order:
            assert not requests[number].done
            slow.let_go(requests[number].tag)
            assert queue.reap(30) is requests[number]
        with pytest.raises(TimeoutError, match="nothing was completed"):
            queue.reap(0)
        for request in requests:
            request.release()


def test_a_wait_may_run_out_and_be_repeated(arena: ra.Arena, slow: Slow) -> None:
    with CommandQueue(arena, slow, depth=1) as queue, ready(queue) as request:
        for seconds in (0, 0.01):
            with pytest.raises(TimeoutError, match="is pending after") as info:
                request.wait(seconds)
            assert info.type is TimeoutError
        with pytest.raises(ValueError, match="did not complete"):
            _ = request.data
        slow.let_go(0)
        assert request.wait() == Status.GOOD


@pytest.mark.parametrize("short_of", ["tags", "data buffers"])
def test_submission_waits_for_tags_and_buffers(arena: ra.Arena, slow: Slow, short_of: str) -> None:
    depth, room = (2, 0) if short_of == "tags" else (8, 2 * 512)
    with CommandQueue(arena, slow, depth=depth, nr_buffers=4, buffer_bytes=512) as queue:
        held = [ready(queue, receive_bytes=room) for _ in range(2)]
        for seconds in (0, 0.01):
            with pytest.raises(TimeoutError, match=f"{short_of} free after"):
                ready(queue, receive_bytes=room, wait_seconds=seconds)
        assert queue.free_tags == depth - 2
        waiting = Worker(lambda: ready(queue, receive_bytes=room, wait_seconds=30))
        slow.let_all_go()
        assert held[0].wait() == Status.GOOD
        assert waiting.is_alive()  # completed is not released
        held[0].release()
        last = waiting.result()
        assert last.wait() == Status.GOOD
        last.release()
        held[1].release()
        assert queue.data_pool.stats().gets_alloc == 0


# -- timeouts and aborts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [False, True])
def test_a_tag_that_timed_out_is_free_when_the_target_lets_go(arena: ra.Arena, slow: Slow, listens: bool) -> None:
    slow.listens = listens
    with CommandQueue(arena, slow, depth=2, nr_buffers=2, buffer_bytes=512, workers=2) as queue:
        request = ready(queue, receive_bytes=512, timeout_seconds=0.02)
        slow.holding(1)
        with pytest.raises(CommandTimedOut, match="command 00h, tag 0, was not completed in time"):
            request.wait()
        assert request.outcome is Outcome.TIMED_OUT
        with pytest.raises(ValueError):
            _ = request.data
        request.release()
        if not listens:
            time.sleep(0.02)
            assert (queue.free_tags, queue.data_pool.stats().outstanding) == (1, 1)
            with ready(queue) as other:
                assert other.tag != request.tag
                slow.let_go(other.tag)
                assert other.wait() == Status.GOOD
            slow.let_go(request.tag)
        eventually(lambda: (queue.free_tags, queue.data_pool.stats().outstanding) == (2, 0))


def test_the_targets_late_answer_reaches_nobody(arena: ra.Arena, slow: Slow) -> None:
    slow.fill = 0xAA
    with CommandQueue(arena, slow, depth=1, nr_buffers=1, buffer_bytes=512) as queue:
        late = ready(queue, receive_bytes=512)
        slow.holding(1)
        assert late.abort()
        assert not late.abort()
        slow.let_go(0)
        eventually(lambda: not queue._set.slots[0].with_target)
        with pytest.raises(CommandAborted):
            late.wait()
        assert (late.status, late.sense, late.transferred_bytes, queue.free_tags) == (None, b"", 0, 0)
        late.release()
        assert queue.free_tags == 1


def test_a_command_that_the_target_never_saw_is_aborted_at_once(arena: ra.Arena, slow: Slow) -> None:
    with CommandQueue(arena, slow, depth=3, workers=1) as queue:
        first, second, third = ready(queue), ready(queue), ready(queue, timeout_seconds=0.02)
        slow.holding(1)
        assert second.abort()
        for request, error in ((second, CommandAborted), (third, CommandTimedOut)):
            with pytest.raises(error):
                request.wait(30)
            request.release()
        assert queue.free_tags == 2
        slow.let_all_go()
        assert first.wait() == Status.GOOD
        assert slow.seen == [first.tag]
        first.release()


def test_release_of_a_pending_command_aborts_it(arena: ra.Arena, slow: Slow) -> None:
    with CommandQueue(arena, slow, depth=1) as queue:
        with ready(queue) as request:
            slow.holding(1)
        assert (request.outcome, queue.free_tags) == (Outcome.ABORTED, 0)
        slow.let_all_go()
        eventually(lambda: queue.free_tags == 1)


def test_timeouts_end_in_the_order_of_their_deadlines(arena: ra.Arena, slow: Slow) -> None:
    with CommandQueue(arena, slow, depth=4, workers=1, timeout_seconds=None) as queue:
        seconds = [0.3, 0.02, 0.15]
        requests = [ready(queue, timeout_seconds=each) for each in seconds]
        forever = ready(queue)
        assert [queue.reap(30) for _ in seconds] == [requests[1], requests[2], requests[0]]
        assert not forever.done
        slow.let_all_go()
        assert forever.wait() == Status.GOOD
        for request in (*requests, forever):
            request.release()


def test_a_target_that_raises_fails_one_command(arena: ra.Arena, slow: Slow) -> None:
    slow.let_all_go()
    with CommandQueue(arena, slow, depth=2, nr_buffers=2, workers=1) as queue:
        slow.problem = KeyError("broken")
        with ready(queue, receive_bytes=100) as request:
            with pytest.raises(TargetFailure, match="the target raised") as info:
                request.wait()
            assert info.value.__cause__ is slow.problem
        assert (request.outcome, queue.data_pool.stats().outstanding) == (Outcome.FAILED, 0)
        slow.problem = None
        with ready(queue) as request:
            assert request.wait() == Status.GOOD


@pytest.mark.parametrize("problem", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_a_target_that_wants_to_end_everything_ends_one_command(
    arena: ra.Arena, slow: Slow, problem: BaseException
) -> None:
    slow.let_all_go()
    with CommandQueue(arena, slow, depth=1, nr_buffers=1, workers=1) as queue:
        slow.problem = problem
        with ready(queue, receive_bytes=100) as request, pytest.raises(TargetFailure) as info:
            request.wait(30)
        assert info.value.__cause__ is problem
        slow.problem = None
        with ready(queue, wait_seconds=30) as request:
            assert request.wait(30) == Status.GOOD


def test_a_status_that_has_no_name_is_a_number(arena: ra.Arena) -> None:
    class Busy:
        def execute(self, command: Command, data: Sequence[memoryview]) -> None:
            command.finish(status=0x08)

    with CommandQueue(arena, Busy()) as queue, ready(queue) as request:
        assert request.wait() == 0x08


@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_at_the_lock_of_submit_loses_no_tag(arena: ra.Arena, slow: Slow, before: bool) -> None:
    """Ctrl-C comes while the submitter, who has a tag and buffers, waits for the lock, or lets it go."""

    class Interrupts:
        def __enter__(self) -> None:
            queue._lock = lock
            if before:
                raise KeyboardInterrupt
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            raise KeyboardInterrupt

    slow.let_all_go()
    with CommandQueue(arena, slow, depth=1, nr_buffers=1, buffer_bytes=512) as queue:
        lock = queue._lock
        queue._lock = Interrupts()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            ready(queue, receive_bytes=512)
        with ready(queue, receive_bytes=512, wait_seconds=30) as request:
            assert request.wait() == Status.GOOD


@pytest.mark.parametrize("after", [0, 2])
def test_a_queue_whose_threads_cannot_start_keeps_nothing(
    arena: ra.Arena, slow: Slow, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if len(started) == after:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    before = arena.stats().live_objects
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="start new thread"):
        CommandQueue(arena, slow, depth=2, nr_buffers=2, workers=3)
    assert not any(thread.is_alive() for thread in started)
    assert arena.stats().live_objects == before


def test_an_endless_wait_is_one(arena: ra.Arena, slow: Slow) -> None:
    forever = float("inf")
    queue = CommandQueue(arena, slow, depth=1, timeout_seconds=forever)
    request = ready(queue, wait_seconds=forever, timeout_seconds=forever)
    waiters = [Worker(lambda: request.wait(forever)), Worker(lambda: queue.reap(forever))]
    time.sleep(0.02)
    slow.let_all_go()
    assert [waiter.result() for waiter in waiters] == [Status.GOOD, request]
    queue.close(forever)


def test_empty_data_of_any_shape_is_none(arena: ra.Arena, disk: FileTarget) -> None:
    with CommandQueue(arena, disk) as queue, queue.submit(scsi.write_10(0, 0), data=np.empty((0, 4))) as request:
        assert (request.wait(), request.transferred_bytes) == (Status.GOOD, 0)


def test_no_stale_bytes_of_a_buffer_are_written(arena: ra.Arena, disk: FileTarget, tmp_path: Path) -> None:
    """A WRITE that has room to receive, and nothing to send, has no data to write."""
    with CommandQueue(arena, disk, depth=1, nr_buffers=1, buffer_bytes=512) as queue:
        with queue.submit(scsi.write_10(0, 1), receive_bytes=512) as request:
            assert request.wait() == Status.CHECK_CONDITION
        assert (request.sense[2], request.sense[12]) == (0x0B, 0x4B)
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_data_are_no_longer_than_a_residual_can_say(arena: ra.Arena) -> None:
    """Byte counts of a command are 32-bit words, the residual with a sign."""

    class Vast:
        def mempool(self, nr: int, *, size: int) -> Any:
            return arena.mempool(nr, size=min(size, 4096))

    tags = TagSet(Vast(), 1, 4, 1 << 30)  # type: ignore[arg-type]
    assert tags.most_bytes == (1 << 31) - 1
    tags.close()


# -- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [False, True])
def test_closing_in_flight_aborts_all_and_gives_all_back(arena: ra.Arena, slow: Slow, listens: bool) -> None:
    slow.listens = listens
    queue = CommandQueue(arena, slow, depth=4, nr_buffers=4, buffer_bytes=512, workers=2)
    requests = [ready(queue, receive_bytes=512) for _ in range(4)]
    waiters = [Worker(requests[0].wait), Worker(lambda: ready(queue)), Worker(lambda: ready(queue, receive_bytes=512))]
    slow.holding(2)
    if not listens:
        with pytest.raises(TimeoutError, match="still holds 2 commands"):
            queue.close(0.02)
        slow.let_all_go()
    queue.close(30)
    queue.close()
    with pytest.raises(CommandAborted):
        waiters[0].result()
    for waiter in waiters[1:]:
        with pytest.raises(ValueError, match="the queue is closed"):
            waiter.result()
    for request in requests:
        with pytest.raises(CommandAborted):
            request.wait()
        request.release()
        with pytest.raises(ValueError):
            _ = request.data
    with pytest.raises(ValueError, match="the queue is closed"):
        ready(queue)
    assert not any(thread.is_alive() for thread in queue._threads)


def test_exports_of_data_are_told_of(arena: ra.Arena, disk: FileTarget) -> None:
    queue = CommandQueue(arena, disk, depth=1, nr_buffers=1)
    request = queue.submit(scsi.inquiry(), receive_bytes=4096)
    request.wait()
    export = pickle.PickleBuffer(queue._set.slots[0].views[0])
    with pytest.raises(BufferError):
        request.release()
    assert queue.free_tags == 0
    with pytest.raises(BufferError):
        queue.close()
    export.release()
    del export
    gc.collect()
    queue.close()


def test_an_array_over_data_keeps_its_buffer(arena: ra.Arena, disk: FileTarget) -> None:
    queue = CommandQueue(arena, disk, depth=1, nr_buffers=1)
    with queue.submit(scsi.inquiry(), receive_bytes=36) as request:
        request.wait()
        array = np.frombuffer(request.data[0], np.uint8)
    with pytest.raises(BufferError):
        queue.close()
    assert array[4] == 31
    del array
    queue.close()


@pytest.mark.parametrize(
    ("raw", "options", "match"),
    [
        (b"", {}, "1 to 16 bytes"),
        (bytes(17), {}, "1 to 16 bytes"),
        (bytes(6), {"lun": 16384}, "lun"),
        (bytes(6), {"receive_bytes": 1025}, "1025 bytes of data; a command can have 1024"),
        (bytes(6), {"data": bytes(1025)}, "1025 bytes of data"),
        (bytes(6), {"data": b"x", "receive_bytes": 1}, "not both"),
        (bytes(6), {"receive_bytes": -1}, "receive_bytes"),
        (bytes(6), {"timeout_seconds": -1}, "timeout"),
        (bytes(6), {"wait_seconds": -1}, "timeout"),
    ],
)
def test_what_cannot_be_submitted(arena: ra.Arena, slow: Slow, raw: bytes, options: Any, match: str) -> None:
    with CommandQueue(arena, slow, depth=2, nr_buffers=2, buffer_bytes=512) as queue:
        with pytest.raises(ValueError, match=match):
            queue.submit(raw, **options)
        with pytest.raises(TypeError):
            queue.submit(bytes(6), data="text")
        assert (queue.free_tags, slow.seen) == (2, [])


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"nr_buffers": 0}, {"buffer_bytes": 0}, {"workers": 0}, {"timeout_seconds": -1}]
)
def test_queues_that_cannot_be(arena: ra.Arena, slow: Slow, options: Any) -> None:
    with pytest.raises(ValueError):
        CommandQueue(arena, slow, **options)


@pytest.mark.parametrize("options", [{"depth": 1 << 16}, {"nr_buffers": 1 << 14}])
def test_a_queue_that_does_not_fit_keeps_nothing(arena: ra.Arena, slow: Slow, options: Any) -> None:
    with pytest.raises(ra.OutOfMemory):
        CommandQueue(arena, slow, **options)


def test_soak_with_timeouts_and_aborts(arena: ra.Arena) -> None:
    """Commands that take random times, given up at random: every tag and every buffer is back at the end."""

    class Moody:
        def execute(self, command: Command, data: Sequence[memoryview]) -> None:
            time.sleep(random.random() * 0.003)
            for view in data:
                view[:1] = bytes([command.tag])
            command.transferred_bytes = command.data_bytes
            command.finish()

    with CommandQueue(arena, Moody(), depth=6, nr_buffers=8, buffer_bytes=256, workers=4) as queue:

        def client(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(some(100, 20)):
                with ready(
                    queue, receive_bytes=chance.choice([0, 100, 700]), timeout_seconds=chance.random() * 0.01 + 1e-4
                ) as request:
                    if chance.random() < 0.2:
                        request.abort()
                    try:
                        request.wait()
                    except (CommandTimedOut, CommandAborted):
                        continue
                    assert all(view[0] == request.tag for view in request.data)

        for worker in [Worker(lambda seed=seed: client(seed)) for seed in range(6)]:
            worker.result()
        eventually(lambda: queue.free_tags == 6)
        data = queue.data_pool.stats()
        assert (data.outstanding, data.gets_alloc, data.curr_nr) == (0, 0, 8)
