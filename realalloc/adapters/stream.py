"""TCP connections in asyncio that receive into elements of one bounded mempool, and hold none while they are idle.

``PooledProtocol`` is an ``asyncio.BufferedProtocol``. The loop asks for a buffer when the socket is readable, and not before:
so an element is taken then, passed to ``received``, and goes back when the last view of it is gone, which is at once unless
``received`` kept a slice or gave it to ``send`` and the peer takes no more.

Nothing grows. Two things stop a connection from reading, and only that connection:
* SLOW: data given to ``send`` is not sent yet. What the socket does not take stays in its element, without a copy; the
  transport gets pieces of at most ``PIECE_BYTES``, only in order to hear from it when there is room.
* STARVED: the pool is empty. A protocol cannot wait in ``get_buffer``, and the transport is going to read. So it reads at
  most ``SIP_BYTES`` into a scratch buffer shared by the loop. If something came reading is paused, and the connection queues
  for an element, first come, first served; with it the sip, and what has come meanwhile, is delivered and reading goes on.
A peer that neither reads nor goes away keeps its element; ``stall_seconds`` bounds that: who makes no progress in sending for
so long is aborted.

Works on asyncio's selector loop and on uvloop: on both, nothing runs between ``get_buffer`` and ``buffer_updated``. A read
that finds nothing is not reported, though (uvloop tries one after each full buffer); so the element belongs to nobody until
``buffer_updated``, and the next connection that reads uses it: ``ElementQueue.hand``, at most one for a loop.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import cast

from realalloc.adapters.elements import ElementQueue
from realalloc.mempool import MemPool

PIECE_BYTES = 4096  # handed to the transport when the socket is full: it may copy them
RECORD_BYTES = 16384  # the same where only the transport can write: TLS, a record
SIP_BYTES = 64  # received without an element: so much can wait outside the pool for each starved connection

SLOW = 1  # why reading is paused; bits
STARVED = 2
HELD = 4
NO_DIRECT_IO = -1
NOTHING = memoryview(b"")


class StreamBuffers:
    """What the connections of one server, or of one loop, share: the elements, and the scratch to starve on.

    ``stall_seconds``: abort a connection whose peer takes nothing for so long while data waits to be sent; None: never.
    """

    def __init__(self, pool: MemPool, *, stall_seconds: float | None = None) -> None:
        self.elements = ElementQueue(pool)
        self.stall_seconds = stall_seconds
        self.scratch = memoryview(bytearray(SIP_BYTES))
        self.connections: set[PooledProtocol] = set()

    def abort(self) -> None:
        """Abort every connection. Elements are back after the loop has called ``connection_lost`` of each."""
        for connection in tuple(self.connections):
            connection.abort()


class PooledProtocol(asyncio.BufferedProtocol):
    """One connection. Subclasses override ``received``, and perhaps ``drained``, ``ended`` and ``closed``."""

    __slots__ = (
        "__weakref__",
        "_buffers",
        "_closing",
        "_eof",
        "_fd",
        "_paused",
        "_stall",
        "_task",
        "_transport",
        "_unsent",
    )

    def __init__(self, buffers: StreamBuffers) -> None:
        self._buffers = buffers
        self._transport: asyncio.Transport | None = None
        self._unsent: deque[memoryview] | None = None  # slices of elements that the socket did not take yet
        self._task: asyncio.Task[None] | None = None  # waits for an element
        self._stall: asyncio.TimerHandle | None = None
        self._fd = NO_DIRECT_IO
        self._paused = 0
        self._closing = self._eof = False

    # -- for subclasses -------------------------------------------------------------------------------------------------------

    def received(self, data: memoryview) -> None:
        """Override: ``data`` arrived. Every view of it keeps an element out; keep none for long."""
        raise NotImplementedError

    def drained(self) -> None:
        """Override: everything given to ``send`` was sent, after some of it had to wait."""

    def ended(self) -> None:
        """Override: the peer sends no more. The default closes when everything is sent."""
        self.close()

    def closed(self, error: Exception | None) -> None:
        """Override: the connection is gone; ``error`` is None after an orderly end."""

    def send(self, data: memoryview) -> None:
        """Send; what the socket does not take now is kept, not copied, and reading pauses until it is sent.

        Do not write to ``data`` until ``drained``. After the connection is lost it does nothing.
        """
        if self._unsent is None:
            data = self._write_some(data)
        if len(data):
            if self._unsent is None:
                self._unsent = deque()
                self._pause(SLOW)
                self._watch()
            self._unsent.append(data)
            if self._paused & SLOW and self._writable():
                self._pump()

    def hold(self) -> None:
        """Stop reading until ``resume``: back-pressure for reasons of the subclass."""
        self._pause(HELD)

    def resume(self) -> None:
        """Read again."""
        self._go_on(HELD)

    @property
    def is_draining(self) -> bool:
        """Whether data given to ``send`` waits for the peer."""
        return self._unsent is not None

    @property
    def paused(self) -> int:
        """Why reading is paused: SLOW, STARVED and HELD, or 0."""
        return self._paused

    def close(self) -> None:
        """Close when everything is sent."""
        self._closing = True
        if self._transport is not None and self._unsent is None:
            self._transport.close()

    def abort(self) -> None:
        """Close now; what is not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    # -- called by the loop: receiving ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look whether the socket may be written directly, and ask for word whenever the transport is empty."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)
        if (
            transport.get_extra_info("sslcontext") is None
        ):  # else the socket carries records, and only asyncio can write them
            self._fd = transport.get_extra_info("socket").fileno()
        self._buffers.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # an element has the size it has
        """Return an element, or the scratch if there is none."""
        elements = self._buffers.elements
        buf = elements.hand
        if buf is None:
            buf = elements.hand = elements.take()
            if buf is None:  # no pause_reading here: stopping libuv between its two callbacks crashes it
                return self._buffers.scratch
        return buf

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what came, and let go of the element."""
        elements = self._buffers.elements
        buf = elements.hand
        if buf is None:
            self._starve(bytes(self._buffers.scratch[:nbytes]))
            return
        elements.hand = None
        if not self._closing:
            self.received(buf[:nbytes])

    def eof_received(self) -> bool:
        """Let go of the element; the transport stays open for what is still to be sent."""
        self._buffers.elements.hand = None
        self._eof = True
        self.ended()
        return self._transport is not None and not self._transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._buffers.connections.discard(self)
        self._transport = self._unsent = None
        self._fd = NO_DIRECT_IO
        self._stop_watching()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._buffers.elements.hand = None
        self.closed(exc)

    # -- starving -------------------------------------------------------------------------------------------------------------

    def _starve(self, sip: bytes) -> None:
        """Pause and queue. Nothing more can arrive, the end neither, before the element is there."""
        self._pause(STARVED)
        self._task = asyncio.get_running_loop().create_task(self._feed(sip))

    async def _feed(self, sip: bytes) -> None:
        """Wait for an element, deliver the sip in it, read on."""
        buf = await self._buffers.elements.element()
        self._task = None
        try:
            if not self._closing:
                buf[: len(sip)] = sip
                self.received(buf[: len(sip) + self._read_some(buf[len(sip) :])])
        except Exception as error:  # noqa: BLE001  # as a transport does when buffer_updated raises
            context = {
                "message": "received() failed",
                "exception": error,
                "protocol": self,
                "transport": self._transport,
            }
            asyncio.get_running_loop().call_exception_handler(context)
            self.abort()
        del buf
        self._go_on(STARVED)

    def _read_some(self, room: memoryview) -> int:
        """Receive what is there already: else a connection that always starves would live on sips (64 bytes a turn)."""
        if self._fd == NO_DIRECT_IO:
            return 0
        try:
            return os.readv(self._fd, [room])
        except OSError:  # nothing there, or an end that the transport will meet too
            return 0

    def _pause(self, why: int) -> None:
        if not self._paused and self._transport is not None and not self._eof:
            self._transport.pause_reading()
        self._paused |= why

    def _go_on(self, why: int) -> None:
        was, self._paused = self._paused, self._paused & ~why
        if was and not self._paused and self._transport is not None and not self._eof:  # the end is not read twice
            self._transport.resume_reading()

    # -- sending --------------------------------------------------------------------------------------------------------------

    def _writable(self) -> bool:
        transport = self._transport
        return transport is not None and not transport.is_closing() and transport.get_write_buffer_size() == 0

    def _write_some(self, data: memoryview) -> memoryview:
        """Give the socket what it takes and return the rest; nothing is left where the connection is gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return data[:0]
        if transport.get_write_buffer_size():
            return data
        if self._fd == NO_DIRECT_IO:
            return data
        try:
            sent = os.write(self._fd, data)
            return NOTHING if sent == len(data) else data[sent:]
        except BlockingIOError:
            return data
        except OSError:
            transport.write(data[:1])  # finds the same error, and ends the connection as asyncio does
            return data[:0]

    def _pump(self) -> None:
        """Send what waits until the socket is full; then the transport holds a piece and calls resume_writing."""
        unsent = self._unsent
        while unsent and self._transport is not None:
            rest = self._write_some(unsent[0])
            if len(rest) and self._writable():
                piece = PIECE_BYTES if self._fd != NO_DIRECT_IO else RECORD_BYTES
                self._transport.write(rest[:piece])
                rest = rest[piece:]
            if not len(rest):
                unsent.popleft()
                continue
            unsent[0] = rest
            if not self._writable():
                return
        if unsent is not None and self._writable():
            self._all_sent()

    def _all_sent(self) -> None:
        self._unsent = None
        self._stop_watching()
        if self._closing:
            self.close()
            return
        self.drained()
        if self._unsent is None:
            self._go_on(SLOW)

    def pause_writing(self) -> None:
        """Do nothing: the transport said so by not being empty."""

    def resume_writing(self) -> None:
        """Go on: the transport is empty, and that was progress."""
        if self._unsent is not None:
            self._watch()
            self._pump()

    def _watch(self) -> None:
        self._stop_watching()
        seconds = self._buffers.stall_seconds
        if seconds is not None:
            self._stall = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
