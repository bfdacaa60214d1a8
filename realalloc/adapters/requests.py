"""Blocks of a file in buffers of a pool, and the threads that work on them.

Guarantees: a block's buffers return to the pool once; at most ``depth`` blocks are out; the first error is remembered,
after it no request beyond it starts, and no traceback keeps a buffer.
May not: know whether requests read or write.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from realalloc.adapters.bounded import Budget
from realalloc.adapters.direct import BLOCK_BYTES, MAX_SEGMENTS, rest_of
from realalloc.sizes import as_int, as_timeout

if TYPE_CHECKING:
    from realalloc.mempool import MemPool


class Block:
    """Part of a file in buffers of a pool: ``nbytes`` bytes from ``offset`` on. A context manager that releases."""

    def __init__(self, buffers: list[memoryview], offset: int, on_release: Callable[[], None]) -> None:
        """Own the buffers; ``on_release`` is called once, when they have gone."""
        self.offset = offset
        self.nbytes = 0
        self._buffers = buffers
        self._views: list[memoryview] = []  # slices are released with the block, or a loop variable would keep a buffer
        self._on_release = [on_release]
        self._kept = False

    @property
    def capacity_bytes(self) -> int:
        """What the buffers can hold."""
        return sum(map(len, self._buffers))

    def _upto(self, end: int) -> list[memoryview]:
        views = []
        for buffer in self._buffers:
            if end > 0:
                views.append(buffer if end >= len(buffer) else buffer[:end])
            end -= len(buffer)
        return views

    @property
    def views(self) -> list[memoryview]:
        """The data, cut to ``nbytes``: writable views in the file's order. ValueError if the block was released."""
        if not self._on_release:
            raise ValueError("the block was released")
        if not self._views:
            self._views = self._upto(self.nbytes)
        return list(self._views)

    def _padded(self) -> list[memoryview]:
        """Return the data as whole blocks, the rest of the last one zeroed."""
        begin, end = self.nbytes, -(-self.nbytes // BLOCK_BYTES) * BLOCK_BYTES
        views = self._upto(end)
        if end > begin:
            views[-1][len(views[-1]) - (end - begin) :] = bytes(end - begin)
        return views

    def _append(self, source: memoryview, begin: int) -> int:
        """Copy from ``source[begin:]`` what has room; return the bytes copied."""
        copied = 0
        for room in rest_of(self._buffers, self.nbytes):
            step = min(len(room), len(source) - begin - copied)
            room[:step] = source[begin + copied : begin + copied + step]
            copied += step
        self.nbytes += copied
        return copied

    def keep(self) -> Self:
        """Make the block yours: the reader no longer releases it when the next one is asked for."""
        self._kept = True
        return self

    def release(self) -> None:
        """Give the buffers back; once is enough.

        BufferError while something has the buffer of a view itself exported. A slice or a NumPy array of yours, which has
        a view of its own, is not in the way: it keeps its buffer out of the pool until it is gone, and the next request may
        take one from the arena instead.
        """
        for view in (*self._views, *self._buffers):
            view.release()
        self._finish()

    def _drop(self) -> None:
        """Release what can be; a buffer with an array over it returns when the array is gone."""
        for view in (*self._views, *self._buffers):
            with contextlib.suppress(BufferError):
                view.release()
        self._finish()

    def _hand_over(self, on_release: Callable[[], None]) -> Block:
        """Return a block with the same buffers, and be released; ``on_release`` is called too when that one is."""
        if not self._on_release:
            raise ValueError("the block was released")
        (mine,), self._on_release = self._on_release, []

        def both() -> None:
            mine()
            on_release()

        heir = Block(self._buffers, self.offset, both)
        heir.nbytes, heir._views = self.nbytes, self._views
        self._buffers, self._views = [], []
        return heir

    def _finish(self) -> None:
        try:
            on_release = self._on_release.pop()  # one thread gets it
        except IndexError:
            return
        self._buffers, self._views = [], []
        on_release()

    def __enter__(self) -> Self:
        """Return the block, kept."""
        return self.keep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release."""
        self.release()


class Requests:
    """What reader and writer share: buffers within a budget, threads, and the first error of any of them."""

    def __init__(self, pool: MemPool, depth: int | None, segments: int, timeout: float | None, name: str) -> None:
        """Check the numbers, look at one element; ValueError where the pool cannot serve."""
        self.segments = as_int(segments, "segments", 1, MAX_SEGMENTS)
        most = pool.min_nr // self.segments
        if most < 1:
            raise ValueError(f"segments must be at most min_nr={pool.min_nr} of the pool, not {segments}")
        self.depth = most if depth is None else as_int(depth, "depth", 1, most)
        if pool.element_bytes % BLOCK_BYTES:
            raise ValueError(f"elements must be multiples of {BLOCK_BYTES} bytes, not {pool.element_bytes}")
        self.request_bytes = self.segments * pool.element_bytes
        self.timeout_seconds = as_timeout(timeout)
        self._pool = pool
        with pool.alloc(timeout=self.timeout_seconds) as buffer:
            if ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % BLOCK_BYTES:
                raise ValueError("elements of the pool are not page-aligned")
        self._budget = Budget(self.depth, "requests")
        self._threads = ThreadPoolExecutor(self.depth, f"realalloc-{name}")
        self._first = threading.Lock()
        self.error: BaseException | None = None
        self._error_offset = 0

    def block(self, offset: int, timeout_seconds: float | None) -> Block:
        """Return an empty block; TimeoutError, with nothing taken, if there is none in time."""
        self._budget.take(1, timeout_seconds)
        try:
            buffers = self._pool.alloc_bulk(self.segments, timeout=timeout_seconds)
        except BaseException:
            self._budget.give(1)
            raise
        return Block(buffers, offset, lambda: self._budget.give(1))

    def fail(self, problem: BaseException, offset: int = -1) -> None:
        """Remember the first error; no request beyond ``offset`` starts from now on.

        Those before it may: a reader still delivers them, and raises where the file could not be read.
        """
        with self._first:
            if self.error is None:
                self.error, self._error_offset = problem, offset

    def start(self, work: Callable[[Block], None], block: Block) -> Future[None]:
        """Do ``work(block)`` on a thread; an error drops the block and is remembered."""

        def run() -> None:
            try:
                if not block._on_release or (self.error is not None and block.offset > self._error_offset):
                    raise CancelledError  # noqa: TRY301  # one way out for all that did not work
                work(block)
            except BaseException as problem:
                traceback.clear_frames(problem.__traceback__)  # their variables are views: they would keep buffers
                block._drop()
                if not isinstance(problem, CancelledError):
                    self.fail(problem, block.offset)
                raise

        try:
            return self._threads.submit(run)
        except BaseException:
            block._drop()  # a thread may find it in the queue all the same
            raise

    def stop(self) -> None:
        """Wait for what has started; nothing else starts."""
        self._threads.shutdown(cancel_futures=True)
