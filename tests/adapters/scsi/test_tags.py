"""The tag set: every tag once, buffers within their budget, commands that never move, and all of it given back."""

from __future__ import annotations

import ctypes
import pickle
import random
from collections.abc import Iterator

import numpy as np
import pytest
from checks import Worker, address

import realalloc as ra
from realalloc.adapters.scsi.cdb import MAX_SEGMENTS, Command, decode_lun
from realalloc.adapters.scsi.tags import Slot, TagSet

BYTES = 4096


@pytest.fixture
def tags(arena: ra.Arena) -> Iterator[TagSet]:
    made = TagSet(arena, 4, 6, BYTES)
    yield made
    assert (made.free_tags, made._data.free) == (4, 6)
    made.close()


def lend(tags: TagSet, slot: Slot, nbytes: int) -> None:
    slot.lend(tags.buffers(slot.nr_buffers), nbytes)


def test_tags_and_buffers_beside_a_plain_model(tags: TagSet) -> None:
    rng = random.Random(1)
    places = {slot.tag: ctypes.addressof(slot.command) for slot in tags.slots if slot.command is not None}
    held: dict[int, Slot] = {}
    for _ in range(2000):
        count, free = rng.randrange(4), 6 - sum(slot.nr_buffers for slot in held.values())
        if rng.random() < 0.6:
            if len(held) == 4 or count > free:
                with pytest.raises(TimeoutError):
                    tags.take(count, 0)
            else:
                slot = tags.take(count, 0)
                assert slot.tag not in held and slot.nr_buffers == count
                held[slot.tag] = slot
                lend(tags, slot, count * BYTES)
        elif held:
            tags.give(held.pop(rng.choice(list(held))))
        assert tags.free_tags == 4 - len(held)
        assert tags._data.free == 6 - sum(slot.nr_buffers for slot in held.values())
        assert tags.data_pool.stats().outstanding == 6 - tags._data.free
        assert tags.data_pool.stats().gets_alloc == 0  # of the reserve alone
    for slot in held.values():
        tags.give(slot)
    assert places == {slot.tag: ctypes.addressof(slot.command) for slot in tags.slots if slot.command is not None}
    assert sorted(places) == [0, 1, 2, 3]


@pytest.mark.parametrize("nbytes", [1, BYTES - 1, BYTES, BYTES + 1, 2 * BYTES, 3 * BYTES - 1, 3 * BYTES])
def test_the_command_lists_exactly_the_bytes_that_were_asked_for(tags: TagSet, nbytes: int) -> None:
    slot = tags.take(-(-nbytes // BYTES), 1)
    lend(tags, slot, nbytes)
    command = slot.command
    assert command is not None and command.data_bytes == nbytes == sum(len(view) for view in slot.views)
    listed = [(segment.address, segment.nbytes) for segment in command.segments[: command.nr_segments]]
    assert listed == [(address(view), len(view)) for view in slot.views]
    assert all(start % BYTES == 0 for start, _ in listed)
    tags.give(slot)


def test_a_description_leaves_nothing_of_the_last_one() -> None:
    slot = Slot(3, Command())
    command = slot.command
    assert command is not None
    ctypes.memset(ctypes.byref(command), 0xFF, ctypes.sizeof(command))
    command.tag = 3
    slot.describe(b"\x12\x34\x56", 300, 1)
    assert bytes(command.cdb) == b"\x12\x34\x56".ljust(16, b"\0") and command.cdb_bytes == 3
    assert decode_lun(bytes(command.lun)) == 300 and command.direction == 1 and not any(command.sense)
    said = (command.status, command.aborting, command.transferred_bytes, command.residual_bytes, command.tag)
    assert said == (0, 0, 0, 0, 3)


def test_who_finds_no_buffers_takes_no_tag(tags: TagSet) -> None:
    slot = tags.take(6, 0)
    with pytest.raises(TimeoutError, match="data buffers"):
        tags.take(1, 0.01)
    assert tags.free_tags == 3
    other = tags.take(0, 0)
    waiter = Worker(lambda: tags.take(2, 60))
    tags.give(slot)
    served = waiter.result()
    assert served.nr_buffers == 2
    for one in (other, served):
        tags.give(one)
    with pytest.raises(ValueError, match="7 of 6 data buffers can never be had"):
        tags.take(7, 0)


def test_an_export_keeps_its_buffer_and_is_told_of(tags: TagSet) -> None:
    slot = tags.take(2, 0)
    lend(tags, slot, 2 * BYTES)
    export = pickle.PickleBuffer(slot.views[0])
    with pytest.raises(BufferError):
        slot.release()
    del export
    slot.release()
    assert slot.views == [] and tags.data_pool.stats().outstanding == 0
    tags.give(slot)


def test_a_set_that_does_not_fit_keeps_nothing() -> None:
    with ra.Arena("1MiB", max_order=4) as arena:
        before = arena.stats().leases
        for numbers in ((4, 100, 65536), (1 << 16, 1, 100)):
            with pytest.raises(ra.OutOfMemory):
                TagSet(arena, *numbers)
            assert arena.stats().leases == before
        for numbers in ((0, 1, 1), (1, 0, 1), (1, 1, 0), ((1 << 16) + 1, 1, 1)):
            with pytest.raises(ValueError):
                TagSet(arena, *numbers)
            assert arena.stats().leases == before


def test_the_most_bytes_of_a_command(arena: ra.Arena) -> None:
    few, many = TagSet(arena, 1, 3, 1000), TagSet(arena, 1, MAX_SEGMENTS + 6, 1000)
    assert (few.most_bytes, many.most_bytes) == (3000, MAX_SEGMENTS * 1000)
    few.close()
    many.close()


def test_closing_tells_of_views_and_can_be_repeated(arena: ra.Arena) -> None:
    tags = TagSet(arena, 1, 1, BYTES)
    slot = tags.take(1, 0)
    lend(tags, slot, BYTES)
    kept = np.frombuffer(slot.views[0], np.uint8)
    tags.give(slot)
    with pytest.raises(BufferError):
        tags.close()
    del kept
    tags.close()
    tags.close()
