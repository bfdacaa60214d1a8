"""Datagrams into socket buffers: contents, batches, truncation, an empty pool, errors."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from loops import LOOPS, run, until

import realalloc as ra
from realalloc.adapters.datagram import Datagram, DatagramReceiver
from realalloc.adapters.skbuff import SkBuffPool

pytestmark = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A bound UDP socket, and one that sends to it."""
    with socket.socket(type=socket.SOCK_DGRAM) as here, socket.socket(type=socket.SOCK_DGRAM) as there:
        here.bind(("127.0.0.1", 0))
        there.connect(here.getsockname())
        yield here, there


def test_batches_truncation_and_an_empty_pool(
    loop: str, arena: ra.Arena, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    pool = SkBuffPool(arena, 4, 1000, headroom=40)

    async def main() -> None:
        batches: list[list[Datagram]] = []
        receiver = DatagramReceiver(here, pool, batches.append, batch=3)
        for k in range(10):
            there.send(bytes([k]) * (k * 10))
        await until(lambda: receiver.starved and len(batches) == 2)
        assert [len(batch) for batch in batches] == [3, 1]
        assert pool.stats().outstanding == 4, "the rest waits in the socket"
        got = []
        while len(got) < 10:
            await until(lambda: batches)
            for datagram in batches.pop(0):
                assert datagram.skb.headroom == 40 and not datagram.truncated
                assert datagram.address == there.getsockname()
                got.append(bytes(datagram.skb.data))
            del datagram
        assert got == [bytes([k]) * (k * 10) for k in range(10)]
        await until(lambda: not receiver.starved)
        there.send(b"y" * 2000)
        await until(lambda: batches)
        ((last,),) = batches
        assert last.truncated and bytes(last.skb.data) == b"y" * 960 and last.skb.tailroom == 0
        receiver.close()
        receiver.close()
        last.skb.free()

    run(loop, main())
    pool.destroy()


def test_closing_while_starved_and_errors_of_the_handler(
    loop: str, arena: ra.Arena, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    pool = SkBuffPool(arena, 1, 100)

    async def main() -> None:
        seen: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(repr(context["exception"])))

        def faulty(batch: list[Datagram]) -> None:
            raise RuntimeError(bytes(batch[0].skb.data))

        receiver = DatagramReceiver(here, pool, faulty)
        there.send(b"one")
        await until(lambda: seen and not receiver.starved)
        held = pool.alloc_preallocated()
        there.send(b"two")
        await until(lambda: receiver.starved)
        held.free()
        await until(lambda: len(seen) == 2 and not receiver.starved)
        assert seen == ["RuntimeError(b'one')", "RuntimeError(b'two')"]
        held = pool.alloc_preallocated()
        there.send(b"three")
        await until(lambda: receiver.starved)
        receiver.close()
        held.free()
        with pytest.raises(ValueError, match="batch"):
            DatagramReceiver(here, pool, faulty, batch=0)

    run(loop, main())
    pool.destroy()


def test_an_answer_that_nobody_listens_is_counted(loop: str, arena: ra.Arena) -> None:
    pool = SkBuffPool(arena, 1, 100)

    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as gone, socket.socket(type=socket.SOCK_DGRAM) as sock:
            gone.bind(("127.0.0.1", 0))
            sock.connect(gone.getsockname())
            gone.close()
            receiver = DatagramReceiver(sock, pool, lambda batch: None)
            sock.send(b"hello?")
            await until(lambda: receiver.errors)
            receiver.close()

    run(loop, main())
    pool.destroy()
