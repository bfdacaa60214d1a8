"""Streams over one bounded pool: what arrives is what was sent, idle costs no element, nothing grows, all comes back."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import JIT

sys.path.insert(0, str(Path(__file__).parent))
from loops import LOOPS, Keeper, connect, receive, reset, run, serving, until

import realalloc as ra
from realalloc.adapters.servers import EchoProtocol
from realalloc.adapters.stream import HELD, PIECE_BYTES, SIP_BYTES, SLOW, STARVED, StreamBuffers

ELEMENT = 4096
pytestmark = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[ra.MemPool]:
    """Three elements of 4 KiB; all must be back at the end, and no more may ever have existed."""
    made = arena.mempool(3, size=ELEMENT, order="reserve-only")
    yield made
    stats = made.stats()
    assert (stats.outstanding, stats.curr_nr) == (0, 3)
    made.destroy()


async def settle(buffers: StreamBuffers) -> None:
    """Wait until every connection is gone."""
    await until(lambda: not buffers.connections)


def test_an_echo_of_many_sizes_is_exact_and_idle_connections_hold_nothing(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            sock = await connect(address)
            for n in (1, 2, SIP_BYTES, ELEMENT - 1, ELEMENT, ELEMENT + 1, 100_000):
                message = random.Random(n).randbytes(n)
                send = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(sock, message))
                assert await receive(sock, n) == message
                await send
                await until(lambda: pool.curr_nr >= 2)  # one may be in hand
            assert len(buffers.connections) == 1
            sock.close()
            await settle(buffers)

    run(loop, main())


def test_a_slow_consumer_stops_only_itself_and_nothing_grows(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            slow = await connect(address, receive_bytes=4096)
            message = random.Random(1).randbytes(16 << 20)
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(slow, message))
            await until(lambda: any(c.paused & SLOW for c in buffers.connections))
            (connection,) = buffers.connections
            for _ in range(50):
                await asyncio.sleep(0.001)
                assert pool.stats().outstanding <= 1
                assert connection._transport.get_write_buffer_size() <= PIECE_BYTES
            quick = await connect(address)
            for k in range(20):
                await asyncio.get_running_loop().sock_sendall(quick, bytes([k]) * 3000)
                assert await receive(quick, 3000) == bytes([k]) * 3000
            assert not sending.done(), "back-pressure reaches the sender"
            assert await receive(slow, len(message)) == message
            await sending
            for sock in (slow, quick):
                sock.close()
            await settle(buffers)

    run(loop, main())


def test_an_empty_pool_starves_in_order_and_loses_nothing(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        held = [pool.alloc_preallocated() for _ in range(3)]
        messages = [random.Random(k).randbytes(k * 50) for k in range(1, 30)]
        async with serving(lambda: EchoProtocol(buffers)) as address:
            socks = []
            for k, message in enumerate(messages):
                socks.append(await connect(address))
                await asyncio.get_running_loop().sock_sendall(socks[-1], message)
                await until(lambda k=k: buffers.elements.waiting == k + 1)
            assert all(c.paused == STARVED for c in buffers.connections)
            held.pop().release()  # one element serves them all
            for sock, message in zip(socks, messages, strict=True):
                assert await receive(sock, len(message)) == message
                sock.close()
            await settle(buffers)
            assert pool.curr_nr == 1 and pool.stats().outstanding == 2
        for buf in held:
            buf.release()

    run(loop, main())


def test_elements_that_others_return_are_noticed(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        kept: list[memoryview] = []
        async with serving(lambda: Keeper(buffers, kept)) as address:
            socks = [await connect(address) for _ in range(5)]
            for sock in socks:
                await asyncio.get_running_loop().sock_sendall(sock, b"x")
            await until(lambda: len(kept) == 3 and buffers.elements.waiting == 2)
            for left in (1, 0):
                kept.pop(0)
                await until(lambda left=left: buffers.elements.waiting == left and len(kept) == 3)
            assert [bytes(view) for view in kept] == [b"x"] * 3
            kept.clear()
            for sock in socks:
                sock.close()
            await settle(buffers)

    run(loop, main())


@pytest.mark.parametrize("end", ["reset", "close"])
def test_disconnects_in_every_state_return_everything(loop: str, end: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            slow = await connect(address, receive_bytes=4096)
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(slow, bytes(16 << 20)))
            await until(lambda: any(c.paused & SLOW for c in buffers.connections))
            held = [pool.alloc_preallocated() for _ in range(pool.curr_nr)]
            starved = await connect(address)
            await asyncio.get_running_loop().sock_sendall(starved, b"x" * 200)
            await until(lambda: buffers.elements.waiting == 1)
            idle = await connect(address)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            for sock in (slow, starved, idle):
                reset(sock) if end == "reset" else sock.close()
            held.clear()
            await settle(buffers)
            assert buffers.elements.waiting == 0

    run(loop, main())


def test_an_end_while_starved_needs_no_element(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        held = [pool.alloc_preallocated() for _ in range(3)]
        async with serving(lambda: EchoProtocol(buffers)) as address:
            sock = await connect(address)
            sock.shutdown(1)
            assert await receive(sock, 1) == b""
            sock.close()
            await settle(buffers)
        held.clear()

    run(loop, main())


def test_a_half_closed_peer_gets_the_rest(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            sock = await connect(address, receive_bytes=4096)
            message = random.Random(3).randbytes(3 << 20)

            async def send() -> None:
                await asyncio.get_running_loop().sock_sendall(sock, message)
                sock.shutdown(1)

            sending = asyncio.ensure_future(send())
            assert await receive(sock, len(message) + 1) == message
            await sending
            sock.close()
            await settle(buffers)

    run(loop, main())


def test_a_stalled_peer_is_aborted_if_asked_for(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool, stall_seconds=0.05)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            sock = await connect(address, receive_bytes=4096)
            with pytest.raises(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(sock, bytes(32 << 20))
            await settle(buffers)
            sock.close()

    run(loop, main())


def test_hundreds_of_connections_share_three_elements(loop: str, pool: ra.MemPool) -> None:
    count, messages = (400, 4) if JIT else (60, 2)

    async def client(address: Any, seed: int) -> None:
        dice = random.Random(seed)
        sock = await connect(address, receive_bytes=4096 if seed % 7 == 0 else None)
        for _ in range(messages):
            message = dice.randbytes(dice.choice([1, 60, 700, 5000, 30_000]))
            sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(sock, message))
            if dice.random() < 0.1:
                await asyncio.sleep(0)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                reset(sock)
                return
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() / 100)
            assert await receive(sock, len(message)) == message
            await sending
        sock.close()

    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers), backlog=512) as address:
            await asyncio.gather(*(client(address, seed) for seed in range(count)))
            await settle(buffers)
        stats = pool.stats()
        assert stats.curr_nr == 3 and stats.outstanding == 0

    run(loop, main())


class Faulty(EchoProtocol):
    """Raises on what it does not like."""

    __slots__ = ()

    def received(self, data: memoryview) -> None:
        if data[0] == 0:
            raise RuntimeError("faulty")
        super().received(data)


@pytest.mark.parametrize("starved", [False, True])
def test_an_error_of_received_ends_that_connection_only(loop: str, starved: bool, pool: ra.MemPool) -> None:
    async def main() -> None:
        seen: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(repr(context["exception"])))
        buffers = StreamBuffers(pool)
        async with serving(lambda: Faulty(buffers)) as address:
            held = [pool.alloc_preallocated() for _ in range(3)] if starved else []
            bad, good = await connect(address), await connect(address)
            for sock, message in ((bad, b"\0"), (good, b"good")):
                await asyncio.get_running_loop().sock_sendall(sock, message)
            if starved:
                await until(lambda: buffers.elements.waiting == 2)
            held.clear()
            assert await receive(good, 4) == b"good"
            try:
                assert await receive(bad, 1) == b""
            except ConnectionResetError:
                pass
            assert seen == ["RuntimeError('faulty')"]
            bad.close()
            good.close()
            await settle(buffers)

    run(loop, main())


def test_abort_and_hold(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: EchoProtocol(buffers)) as address:
            sock = await connect(address)
            await until(lambda: buffers.connections)
            (connection,) = buffers.connections
            connection.hold()
            connection.hold()
            await asyncio.get_running_loop().sock_sendall(sock, b"later")
            await asyncio.sleep(0.02)
            assert connection.paused == HELD and pool.curr_nr == 3
            connection.resume()
            assert await receive(sock, 5) == b"later"
            buffers.abort()
            await settle(buffers)
            connection.send(memoryview(b"nobody"))
            connection.abort()
            connection.close()
            assert not connection.is_draining
            sock.close()

    run(loop, main())


def test_waiters_for_elements_are_served_in_order_and_may_be_cancelled(loop: str, pool: ra.MemPool) -> None:
    async def main() -> None:
        queue = StreamBuffers(pool).elements
        unbounded = pool._arena.mempool(1, size=8)
        with pytest.raises(ValueError, match="not bounded: make it with order"):
            StreamBuffers(unbounded)
        unbounded.destroy()
        held = [await queue.element() for _ in range(3)]
        assert queue.take() is None
        order: list[int] = []

        async def wait(k: int) -> None:
            with await queue.element():
                order.append(k)

        tasks = [asyncio.ensure_future(wait(k)) for k in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[4].cancel()
        held.pop().release()
        assert queue.take() is None, "those who wait come first"
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [1, 2, 3, 5, 6, 7, 8, 9]
        (buf,) = [await queue.element()]
        task = asyncio.ensure_future(queue.element())
        await asyncio.sleep(0)
        buf.release()
        assert pool.stats().waiters == 0  # served, and cancelled before it runs
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        assert pool.curr_nr == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.gather(*(queue.element() for _ in range(2)))
        held.clear()

    run(loop, main())
