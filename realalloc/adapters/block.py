"""Block I/O through the buffers of a pool: some requests in flight on threads, each of several page-aligned buffers.

``BlockReader`` iterates over a file in its order, reading ahead; ``BlockWriter`` writes behind; ``copy_file`` joins them
without copying a byte in Python. A request is at most ``segments * pool.element_bytes`` bytes, one ``preadv`` or ``pwritev``.
Guarantees: at most ``depth * segments`` elements of the pool are out, all from its reserve; after an error nothing beyond
it is started, and every buffer is back in the pool when the reader raises it, or when the writer is closed.
May not: be shared by threads, save for ``Block.release``; know about files what ``direct.py`` knows.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from realalloc.adapters.direct import BLOCK_BYTES, DirectFile, DirectIOWarning, StrPath
from realalloc.adapters.octets import as_octets
from realalloc.adapters.requests import Block, Requests
from realalloc.closing import Closing

if TYPE_CHECKING:
    from realalloc.mempool import MemPool

__all__ = ["BlockReader", "BlockWriter", "Block", "DirectIOWarning", "copy_file"]


class _Face(Closing):
    """The file, and how reader and writer end."""

    _requests: Requests
    _file: DirectFile

    @property
    def direct(self) -> bool:
        """Whether transfers go past the page cache."""
        return self._file.direct

    @property
    def request_bytes(self) -> int:
        """Largest request."""
        return self._requests.request_bytes


class BlockReader(_Face):
    """Iterates over a file as :class:`Block` s in its order. A block is lent until the next is asked for; ``keep()`` keeps it.

    ``pool`` must have elements of whole pages. ``depth`` requests of ``segments`` buffers are in flight, read, lent or kept,
    all together; by default as many as the pool's reserve can serve. Who keeps all ``depth`` and asks for one more waits
    ``timeout_seconds`` for a release by another thread, then TimeoutError; asking again is fine.
    """

    def __init__(
        self,
        path: StrPath,
        pool: MemPool,
        *,
        depth: int | None = None,
        segments: int = 1,
        timeout_seconds: float | None = None,
    ) -> None:
        """Open; OSError, or ValueError for a pool or file that cannot be used. The length is that of now."""
        self._file = DirectFile(path, os.O_RDONLY)
        try:
            self._requests = Requests(pool, depth, segments, timeout_seconds, "read")
            self.size_bytes = self._file.size_bytes
        except BaseException:
            self._file.close()
            raise
        self._next = 0  # offset of the next request
        self._ahead: deque[tuple[Future[None], Block]] = deque()
        self._lent: Block | None = None
        self._closed = False

    def _read(self, block: Block) -> None:
        wanted = min(block.capacity_bytes, self.size_bytes - block.offset)
        got = self._file.read(block._upto(-(-wanted // BLOCK_BYTES) * BLOCK_BYTES), block.offset)
        block.nbytes = min(got, wanted)  # the file may have grown
        if block.nbytes < wanted:
            end = block.offset + block.nbytes
            raise EOFError(f"{self._file.path!r} ends at byte {end}; it had {self.size_bytes} bytes when it was opened")

    def _request(self, timeout_seconds: float | None) -> None:
        block = self._requests.block(self._next, timeout_seconds)
        self._ahead.append((self._requests.start(self._read, block), block))
        self._next += self.request_bytes

    def _read_ahead(self) -> None:
        """Start what the budget allows; wait only if nothing is on its way."""
        while self._next < self.size_bytes and self._requests.error is None:
            try:
                self._request(0 if self._ahead else self._requests.timeout_seconds)
            except TimeoutError:
                if not self._ahead:
                    raise
                return

    def __iter__(self) -> Self:
        """Return the reader."""
        return self

    def __next__(self) -> Block:
        """Return the next block; the reader is closed before the error of a request is raised."""
        if self._closed:
            raise ValueError("the reader is closed")
        self._settle()
        self._read_ahead()
        if not self._ahead:
            raise StopIteration
        future, block = self._ahead[0]
        problem = future.exception()  # waits; an interrupt leaves all as it is, and asking again is fine
        if problem is not None:
            self.close()
            cause = self._requests.error if isinstance(problem, CancelledError) else problem
            assert cause is not None
            raise cause
        self._ahead.popleft()
        self._lent = block
        return block

    def _settle(self) -> None:
        if self._lent is not None and not self._lent._kept:
            self._lent.release()
        self._lent = None

    def close(self) -> None:
        """Cancel what has not begun, wait for what has, give all buffers back but kept ones. Twice is fine."""
        self._closed = True
        self._requests.stop()
        for _, block in self._ahead:
            block._drop()
        self._ahead.clear()
        if self._lent is not None and not self._lent._kept:
            self._lent._drop()
        self._lent = None
        self._file.close()


class BlockWriter(_Face):
    """Writes a file anew: ``write(bytes)`` from its beginning on, or whole blocks of a reader with ``write_block``.

    Parameters as for :class:`BlockReader`. An error of a request is raised by the next call, or by ``close``; the file then
    has holes. A last block that is not whole is written padded, and the file is cut to its length by ``close``.
    """

    def __init__(
        self,
        path: StrPath,
        pool: MemPool,
        *,
        depth: int | None = None,
        segments: int = 1,
        timeout_seconds: float | None = None,
    ) -> None:
        """Open, create, empty the file. OSError, or ValueError for a pool or a file that cannot be used."""
        self._requests = Requests(pool, depth, segments, timeout_seconds, "write")
        try:
            self._file = DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        except BaseException:
            self._requests.stop()
            raise
        self.size_bytes = 0  # the end of what was accepted
        self._filling: Block | None = None
        self._way = ""
        self._in_flight: deque[tuple[Future[None], Block]] = deque()
        self._closed = False

    def _use(self, way: str) -> None:
        if self._closed:
            raise ValueError("the writer is closed")
        if self._way not in ("", way):
            raise ValueError(f"{way} on a writer that was used with {self._way}")
        if self._requests.error is not None:
            raise self._requests.error
        self._way = way

    def _write(self, block: Block) -> None:
        self._file.write(block._padded(), block.offset)
        block._drop()

    def _start(self, block: Block) -> None:
        while self._in_flight and self._in_flight[0][0].done():
            self._in_flight.popleft()
        try:
            future = self._requests.start(self._write, block)
        except BaseException as problem:
            self._requests.fail(problem, block.offset)  # its bytes were accepted, and are nowhere now
            raise
        self._in_flight.append((future, block))

    def write(self, data: Any) -> int:
        """Append bytes-like ``data``, copied; return its length in bytes.

        TimeoutError if no buffer came back in time: ``size_bytes`` says how much was accepted. OSError of an earlier request.
        """
        self._use("write")
        done = 0
        with as_octets(data) as source:
            while done < len(source):
                if self._filling is None:
                    self._filling = self._requests.block(self.size_bytes, self._requests.timeout_seconds)
                step = self._filling._append(source, done)
                done += step
                self.size_bytes += step
                if self._filling.nbytes == self.request_bytes:
                    block, self._filling = self._filling, None
                    self._start(block)
        return done

    def write_block(self, block: Block) -> None:
        """Write a block at its offset, from its buffers, and release it then; it is the writer's from here on.

        ValueError if it was released or its offset is not a multiple of 4096; TimeoutError if ``depth`` writes were in flight
        for too long; OSError of an earlier request. After any of these the block is still yours.
        """
        self._use("write_block")
        end = block.offset + block.nbytes
        if not block._on_release:
            raise ValueError("the block was released")
        if block.offset % BLOCK_BYTES:
            raise ValueError(f"the block begins at {block.offset}, which is no multiple of {BLOCK_BYTES}")
        budget = self._requests._budget
        budget.take(1, self._requests.timeout_seconds)
        try:
            heir = block._hand_over(lambda: budget.give(1))
        except BaseException:  # released while this waited
            budget.give(1)
            raise
        self.size_bytes = max(self.size_bytes, end)
        self._start(heir)

    def flush(self, *, sync: bool = False) -> None:
        """Wait for the requests in flight, and with ``sync`` for the device; raise the first error.

        What ``write`` was given since its last whole request stays in the buffers.
        """
        self._use(self._way)
        for future, _ in self._in_flight:
            future.exception()
        self._in_flight.clear()
        self._use(self._way)
        if sync:
            self._file.sync()

    def close(self) -> None:
        """Write the rest, wait, cut the file to its length; then raise the first error, with all given back. Twice is fine."""
        if self._closed:
            return
        try:
            if self._filling is not None and self._requests.error is None:
                block, self._filling = self._filling, None
                self._start(block)
            self.flush()
            if self.size_bytes % BLOCK_BYTES:
                self._file.truncate(self.size_bytes)
        finally:
            self.abort()

    def abort(self) -> None:
        """Cancel what has not begun, wait for what has, close the file as it is. Raises nothing; twice is fine."""
        self._closed = True
        self._requests.fail(CancelledError("the writer was closed"))
        self._requests.stop()
        for _, block in self._in_flight:  # those that were cancelled
            block._drop()
        self._in_flight.clear()
        if self._filling is not None:
            self._filling._drop()
            self._filling = None
        self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error, abort."""
        if error is None:
            self.close()
        else:
            self.abort()


def copy_file(
    source: StrPath,
    destination: StrPath,
    pool: MemPool,
    *,
    depth: int | None = None,
    segments: int = 1,
    timeout_seconds: float | None = None,
) -> int:
    """Copy the contents of a file through the pool's buffers; return the bytes copied.

    ``depth`` requests, reads and writes together, are in flight. ``shutil.SameFileError`` if both are one file; OSError, and
    EOFError if the source shrank: the destination is then incomplete.
    """
    if Path(destination).exists() and Path(destination).samefile(source):
        raise shutil.SameFileError(f"{source!r} and {destination!r} are the same file")
    options: dict[str, Any] = {"depth": depth, "segments": segments, "timeout_seconds": timeout_seconds}
    with BlockReader(source, pool, **options) as reader, BlockWriter(destination, pool, **options) as writer:
        for block in reader:
            with block:
                writer.write_block(block)
    return writer.size_bytes
