"""Reading files in threads: plainly, and through buffers that ``take`` makes.

``hash_plainly`` is the reference: ``open().read()``. ``hash_through`` reads unbuffered with ``readinto``, a buffer a
read: ``take`` is the only difference between a pool and fresh bytearrays, so their times can be compared.

Guarantees: a file that cannot be read is an ``OSError`` handed to ``sink``, never the end of the run; any other error of
a worker ends the run and is raised in the caller. Callbacks run in the caller's thread. When the caller is interrupted,
the workers stop at their next read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import FileIO

POLL_SECONDS = 0.1
STOP_SECONDS = 2.0
PLAIN_BYTES = 64 << 20  # a file above this is read in parts: a tree may hold files larger than memory
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a file may become a link or a pipe meanwhile

Take = Callable[[], AbstractContextManager[memoryview]]
Read = Callable[[str, "Worker"], bytes]
Sink = Callable[[int, "bytes | OSError"], None]


class Stopped(Exception):  # a signal between threads, not an error
    """The run was interrupted."""


def _opener(path: str, _flags: int) -> int:
    return os.open(path, OPEN_FLAGS)


def _would_block(path: str) -> OSError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def hash_plainly(path: str, worker: Worker) -> bytes:
    """Hash a file by ``open().read()``."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb", opener=_opener) as file:
        while part := file.read(PLAIN_BYTES):
            worker.count(len(part))
            digest.update(part)
        if part is None:
            raise _would_block(path)
    return digest.digest()


def hash_through(take: Take) -> Read:
    """Make a reader that hashes a file through buffers, a new one for every read."""

    def read(path: str, worker: Worker) -> bytes:
        digest = hashlib.blake2b(digest_size=32)
        with FileIO(path, opener=_opener) as file:
            while True:
                with take() as buffer:
                    got = file.readinto(buffer)
                    if got is None:
                        raise _would_block(path)
                    worker.count(got)
                    if got == 0:
                        return digest.digest()
                    digest.update(buffer[:got])

    return read


class Worker(threading.Thread):
    """One reading thread: takes the next index until none is left."""

    def __init__(self, paths: Sequence[str], todo: Iterator[int], read: Read, sink: Sink) -> None:
        """Share ``todo`` with the other workers: the next of a range iterator is one step under the GIL."""
        super().__init__(name="realalloc-demo", daemon=True)
        self.files = self.nbytes = self.reads = 0
        self.ended = 0.0
        self.failure: BaseException | None = None
        self.stopped = False
        self._paths, self._todo, self._read, self._sink = paths, todo, read, sink

    def count(self, nbytes: int) -> None:
        """Count a read; Stopped if the run was interrupted."""
        if self.stopped:
            raise Stopped
        self.reads += 1
        self.nbytes += nbytes

    def _one(self, index: int) -> None:
        try:
            found: bytes | OSError = self._read(self._paths[index], self)
        except OSError as error:
            found = error.with_traceback(None)  # its frames would keep the buffer
        self._sink(index, found)
        self.files += 1

    def run(self) -> None:
        """Work until nothing is left, or something that is not the file's fault goes wrong."""
        try:
            for index in self._todo:
                if self.stopped:
                    break
                self._one(index)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            self.failure = error
        finally:
            self.ended = time.perf_counter()


def read_all(
    paths: Sequence[str], threads: int, read: Read, sink: Sink, on_tick: Callable[[int], None]
) -> tuple[float, int, int]:
    """Read every file in ``threads`` threads; return seconds, bytes and reads.

    ``on_tick`` is told the number of files that are done, about ten times a second. Raises what a worker raised.
    """
    todo = iter(range(len(paths)))
    workers = [Worker(paths, todo, read, sink) for _ in range(threads)]
    begun = time.perf_counter()
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():
                worker.join(POLL_SECONDS)
                if any(w.failure is not None for w in workers):
                    _stop(workers)
                on_tick(sum(w.files for w in workers))
    except BaseException:
        _stop(workers)
        raise
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    on_tick(sum(w.files for w in workers))
    return max(w.ended for w in workers) - begun, sum(w.nbytes for w in workers), sum(w.reads for w in workers)


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.stopped = True
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        if worker.ident is not None:
            worker.join(max(0.0, deadline - time.monotonic()))
