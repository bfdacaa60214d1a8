r"""Two TCP servers on :class:`~realalloc.adapters.stream.PooledProtocol`: echo, and files.

Both hold elements only for data on its way, so any number of idle connections costs none.
``loop.create_server(lambda: EchoProtocol(buffers), host, port)`` starts one.

Files: a request is a relative path in UTF-8 and ``\n``; the answer is a length in bytes, 8 bytes big-endian, and so many
bytes, or ``NOT_FOUND`` alone. Requests of a connection are answered in order. Disks are read in the loop's executor.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
from pathlib import Path

from realalloc.adapters.stream import PooledProtocol, StreamBuffers

LENGTH_BYTES = 8
NOT_FOUND = b"\xff" * LENGTH_BYTES
MAX_REQUEST_BYTES = 4096  # a longer line ends the connection


class EchoProtocol(PooledProtocol):
    """Sends back what it receives, out of the element that received it."""

    __slots__ = ()

    def received(self, data: memoryview) -> None:
        """Send it back."""
        self.send(data)


def open_below(root: Path, name: str) -> io.FileIO:
    """Open a regular file below ``root``; OSError where there is none, or where the name leads out of ``root``."""
    path = (root / name).resolve()
    if "\0" in name or not path.is_relative_to(root):
        raise FileNotFoundError(name)
    file = io.FileIO(path, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK))  # a pipe does not stop us
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileNotFoundError(name)
    return file


class FileProtocol(PooledProtocol):
    """Serves the files below ``root``; reads no further request while it answers one."""

    __slots__ = ("_answer", "_line", "_root", "_sent")

    def __init__(self, buffers: StreamBuffers, root: Path) -> None:
        super().__init__(buffers)
        self._root = root.resolve()
        self._line = b""
        self._answer: asyncio.Task[None] | None = None
        self._sent: asyncio.Future[None] | None = None

    def received(self, data: memoryview) -> None:
        """Collect requests; answer the first."""
        self._line += bytes(data)
        if self._answer is not None:
            return
        if b"\n" in self._line:
            self.hold()
            self._answer = asyncio.get_running_loop().create_task(self._answer_all())
        elif len(self._line) > MAX_REQUEST_BYTES:
            self.abort()

    def ended(self) -> None:
        """Close after the last answer."""
        if self._answer is None:
            self.close()

    def drained(self) -> None:
        """Let the answer go on."""
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def closed(self, error: Exception | None) -> None:  # noqa: ARG002  # the transport has logged it where it matters
        """Stop answering."""
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None  # its traceback leads back here: a cycle would keep the element until it is collected
        self._sent = None

    async def _answer_all(self) -> None:
        while b"\n" in self._line:
            request, _, self._line = self._line.partition(b"\n")
            await self._answer_one(request.decode("utf-8", "surrogateescape"))
        self._answer = None
        if self._eof:
            self.close()
        self.resume()

    async def _answer_one(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            file = await loop.run_in_executor(None, open_below, self._root, name)
        except (OSError, ValueError):  # ValueError: a null byte
            await self._send_all(memoryview(NOT_FOUND))
            return
        with file:
            left = os.fstat(file.fileno()).st_size
            await self._send_all(memoryview(left.to_bytes(LENGTH_BYTES, "big")))
            while left:
                buf = await self._buffers.elements.element()
                got = await loop.run_in_executor(None, file.readinto, buf[:left])
                if not got:  # it shrank: the length was a promise, and nothing can take it back
                    self.abort()
                    return
                await self._send_all(buf[:got])
                left -= got
                del buf

    async def _send_all(self, data: memoryview) -> None:
        """Send, and wait until the socket took it."""
        self.send(data)
        if self.is_draining:
            self._sent = asyncio.get_running_loop().create_future()
            await self._sent
