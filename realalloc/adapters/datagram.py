"""UDP in asyncio: datagrams received in batches, each into a :class:`~realalloc.adapters.skbuff.SkBuff` of a bounded pool.

One wake-up of the loop receives up to ``batch`` datagrams with ``recvmsg_into``, one system call each, and hands them over
in one call. An idle receiver holds no buffer. Where the reserve is empty it stops listening until an element comes back:
meanwhile datagrams queue in the socket's receive buffer, and the kernel drops what does not fit there, as UDP does.
Whoever gets a batch owns its buffers; what is dropped goes back.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from realalloc.adapters.elements import ElementQueue
from realalloc.adapters.skbuff import SkBuff, SkBuffPool
from realalloc.sizes import as_int


class Datagram(NamedTuple):
    """One datagram. ``truncated``: it was longer than the buffer's tailroom, and its end is lost."""

    skb: SkBuff
    address: Any
    truncated: bool


class DatagramReceiver:
    """Receives from a bound socket until ``close``. Make it inside a running loop; the socket becomes non-blocking."""

    def __init__(
        self,
        sock: socket.socket,
        pool: SkBuffPool,
        received: Callable[[list[Datagram]], object],
        *,
        batch: int = 32,
    ) -> None:
        """Begin. ``received`` is called with 1 to ``batch`` datagrams; what it raises goes to the loop's handler."""
        self.batch = as_int(batch, "batch", 1)
        self.errors = 0  # answers to what was sent from this socket: ECONNREFUSED and the like
        self._sock, self._pool, self._received = sock, pool, received
        self._elements = ElementQueue(pool.pool)
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        sock.settimeout(0)
        self._loop.add_reader(sock.fileno(), self._ready)

    @property
    def starved(self) -> bool:
        """Whether it waits for an element."""
        return self._task is not None

    def _ready(self) -> None:
        self._receive(None)

    def _receive(self, block: memoryview | None) -> None:
        """Receive a batch, the first into ``block`` if there is one already."""
        made: list[Datagram] = []
        while len(made) < self.batch:
            if block is None:
                block = self._elements.take()
            if block is None:
                self._starve()
                break
            skb, block = self._pool.wrap(block), None
            try:
                nbytes, _, flags, address = self._sock.recvmsg_into([skb.tail_view])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.errors += 1
                break
            skb.put(nbytes)
            made.append(Datagram(skb, address, bool(flags & socket.MSG_TRUNC)))
        if made:
            self._deliver(made)

    def _deliver(self, made: list[Datagram]) -> None:
        """Call the user; errors end here: in the loop they would be a cycle, which keeps buffers until it is collected."""
        try:
            self._received(made)
        except Exception as error:  # noqa: BLE001  # as the loop does
            self._loop.call_exception_handler({"message": "received() failed", "exception": error})

    def _starve(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._task = self._loop.create_task(self._feed())

    async def _feed(self) -> None:
        block = await self._elements.element()
        self._task = None
        self._loop.add_reader(self._sock.fileno(), self._ready)
        self._receive(block)

    def close(self) -> None:
        """Stop receiving; the socket is the caller's to close. Twice is once."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        else:
            self._loop.remove_reader(self._sock.fileno())
