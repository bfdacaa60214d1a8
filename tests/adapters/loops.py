"""Shared by the tests of the asyncio adapters: the loops to run on, raw clients on loopback, waiting for a state."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from realalloc.adapters.stream import PooledProtocol

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not there"))]


def run(loop: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run on a fresh loop of that kind."""
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(main)
    gc.collect()
    return result


@contextlib.asynccontextmanager
async def serving(make: Callable[[], asyncio.BaseProtocol], **options: Any) -> AsyncIterator[Any]:
    """Serve on loopback; yield the address."""
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


async def connect(address: Any, *, receive_bytes: int | None = None) -> socket.socket:
    """Connect a raw non-blocking socket, perhaps with a small receive buffer."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(sock, address)
    return sock


def reset(sock: socket.socket) -> None:
    """Close with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def receive(sock: socket.socket, nbytes: int) -> bytes:
    """Receive exactly so much, or what came before the end."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < nbytes:
        part = await loop.sock_recv(sock, nbytes - len(got))
        if not part:
            break
        got += part
    return bytes(got)


async def until(condition: Callable[[], Any]) -> None:
    """Poll until true; fail after a minute."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Keeper(PooledProtocol):
    """Keeps every slice it receives, as a slow application does."""

    def __init__(self, buffers: Any, kept: list[memoryview]) -> None:
        super().__init__(buffers)
        self.kept = kept

    def received(self, data: memoryview) -> None:
        self.kept.append(data)
