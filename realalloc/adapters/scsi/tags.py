"""The tag set: a fixed number of commands that lie in elements of a pool, made once, as in blk-mq.

A tag has two holders: the submitter, from submission until it releases, and the target, while it executes. It is free
again, and its data buffers are, when both have let go. The queue's lock guards slots; waiting for tags and for buffers is
without it. Guarantees: after construction no element of the command pool moves; data buffers come from the reserve of the
data pool only, since their number is bounded by a budget before the pool is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from realalloc.adapters.bounded import Budget, time_left
from realalloc.adapters.scsi.cdb import MAX_CDB_BYTES, MAX_DATA_BYTES, MAX_SEGMENTS, Command, encode_lun
from realalloc.sizes import as_int

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.mempool import MemPool


class Slot:
    """One tag: its command, and while it is in use its data buffers and holders. ``request`` is the submitter's hold."""

    def __init__(self, tag: int, command: Command) -> None:
        """Be free."""
        command.tag = tag
        self.tag = tag
        self.command: Command | None = command
        self.views: list[memoryview] = []  # what the command may use of its buffers
        self.request: Any = None
        self.with_target = False
        self.deadline: float | None = None
        self.nr_buffers = 0
        self._buffers: list[memoryview] = []

    def lend(self, buffers: list[memoryview], nbytes: int) -> None:
        """Own buffers for ``nbytes`` bytes, and list them in the command."""
        assert self.command is not None
        self._buffers, self.nr_buffers = buffers, len(buffers)
        self.command.data_bytes, self.command.nr_segments = nbytes, len(buffers)
        for segment, buffer in zip(self.command.segments, buffers, strict=False):
            view = buffer if nbytes >= len(buffer) else buffer[:nbytes]
            self.views.append(view)
            nbytes -= len(view)
            segment.address, segment.nbytes = ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view)

    def describe(self, raw: bytes, lun: int, direction: int) -> None:
        """Write a new command over the last one."""
        assert self.command is not None
        command = self.command
        ctypes.memmove(command.cdb, raw.ljust(MAX_CDB_BYTES, b"\0"), MAX_CDB_BYTES)
        ctypes.memmove(command.lun, encode_lun(lun), 8)
        ctypes.memset(command.sense, 0, ctypes.sizeof(command.sense))
        command.cdb_bytes, command.direction = len(raw), direction
        command.status = command.aborting = 0
        command.transferred_bytes = command.residual_bytes = 0

    def release(self) -> None:
        """Give the buffers back; BufferError, and some are still held, while something has one of them exported."""
        for views in (self.views, self._buffers):
            while views:
                views[-1].release()
                views.pop()

    def drop(self) -> None:
        """Give back what can be, forget the rest: it returns when its exports are gone."""
        for view in (*self.views, *self._buffers):
            with contextlib.suppress(BufferError):
                view.release()
        self.views, self._buffers = [], []


class TagSet:
    """``depth`` slots, and ``nr_buffers`` data buffers of ``buffer_bytes`` for them."""

    def __init__(self, arena: Arena, depth: int, nr_buffers: int, buffer_bytes: int) -> None:
        """Fill both pools and make the commands; OutOfMemory, with nothing kept, if the arena has no room."""
        self.depth = as_int(depth, "depth", 1, 1 << 16)
        self._tags = Budget(self.depth, "tags")
        self._data = Budget(as_int(nr_buffers, "nr_buffers", 1), "data buffers")
        self.buffer_bytes = as_int(buffer_bytes, "buffer_bytes", 1)
        self.most_bytes = min(min(MAX_SEGMENTS, self._data.total) * self.buffer_bytes, MAX_DATA_BYTES)
        self.command_pool: MemPool = arena.mempool(self.depth, size=ctypes.sizeof(Command))
        try:
            self.data_pool: MemPool = arena.mempool(nr_buffers, size=buffer_bytes)
        except BaseException:
            self.command_pool.destroy()
            raise
        self._elements = self.command_pool.alloc_bulk(self.depth)
        self.slots = [Slot(tag, Command.from_buffer(view)) for tag, view in enumerate(self._elements)]
        self._free = deque(self.slots)
        self._pools = [self.command_pool, self.data_pool]

    @property
    def free_tags(self) -> int:
        """Tags that could be had now."""
        return self._tags.free

    def take(self, nr_buffers: int, seconds: float | None) -> Slot:
        """Return a free slot and the right to ``nr_buffers`` buffers; TimeoutError, with nothing taken, after ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self._tags.take(1, seconds)
        try:
            self._data.take(nr_buffers, time_left(deadline))
        except BaseException:
            self._tags.give(1)
            raise
        slot = self._free.popleft()
        slot.nr_buffers = nr_buffers
        return slot

    def buffers(self, count: int) -> list[memoryview]:
        """Return as many buffers as :meth:`take` granted. Never waits: TimeoutError if somebody else emptied the pool."""
        return self.data_pool.alloc_bulk(count, timeout=0) if count else []

    def give(self, slot: Slot) -> None:
        """Take a slot back that nobody holds."""
        assert slot.request is None
        assert not slot.with_target
        slot.drop()
        slot.deadline = None
        self._free.append(slot)
        self._data.give(slot.nr_buffers)
        self._tags.give(1)

    def close(self) -> None:
        """Give both pools back; BufferError while views of data are alive, and it can be called again. Twice is fine."""
        for slot in self.slots:
            slot.command = None
        for view in self._elements:
            view.release()
        self._elements = []
        while self._pools:
            self._pools[-1].destroy()
            self._pools.pop()
