"""The file server: answers, refusals, pipelines, slow and vanishing clients."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from loops import LOOPS, connect, receive, reset, run, serving, until

import realalloc as ra
from realalloc.adapters.servers import NOT_FOUND, FileProtocol
from realalloc.adapters.stream import StreamBuffers

pytestmark = pytest.mark.parametrize("loop", LOOPS)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Files of many sizes, and what must not be served."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    made = {}
    for name, size in (("empty", 0), ("one", 1), ("sub/some", 8192), ("big", 1_000_003), ("späte", 12)):
        made[name] = random.Random(size).randbytes(size)
        (root / name).write_bytes(made[name])
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe")
    return made


async def answer(sock: object) -> bytes | None:
    head = await receive(sock, 8)
    return None if head == NOT_FOUND else await receive(sock, int.from_bytes(head, "big"))


def test_files_are_served_in_order_and_others_are_refused(
    loop: str, arena: ra.Arena, files: dict[str, bytes], tmp_path: Path
) -> None:
    pool = arena.mempool(2, size=8192, order="reserve-only")

    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: FileProtocol(buffers, tmp_path / "root")) as address:
            send = asyncio.get_running_loop().sock_sendall
            sock = await connect(address, receive_bytes=4096)
            await send(sock, "".join(f"{name}\n" for name in files).encode())
            for content in files.values():
                assert await answer(sock) == content
            bad = ["none", "../secret", "link", "pipe", "sub", "", "/etc/passwd", "a\0b", "one/", "\udcff"]
            for name in (*bad, "one"):
                await send(sock, name.encode("utf-8", "surrogateescape"))
                await asyncio.sleep(0)
                await send(sock, b"\n")
                got = await answer(sock)
                assert got == files.get(name, files["one"] if name == "one/" and got is not None else None), name
            await send(sock, b"big\none\n")
            sock.shutdown(1)
            assert (await answer(sock), await answer(sock)) == (files["big"], files["one"])
            assert await receive(sock, 1) == b""
            sock.close()
            await until(lambda: not buffers.connections)

    run(loop, main())
    pool.destroy()


def test_clients_that_vanish_or_shout_return_everything(
    loop: str, arena: ra.Arena, files: dict[str, bytes], tmp_path: Path
) -> None:
    pool = arena.mempool(2, size=8192, order="reserve-only")

    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: FileProtocol(buffers, tmp_path / "root")) as address:
            socks = [await connect(address, receive_bytes=4096) for _ in range(20)]
            for sock in socks:
                await asyncio.get_running_loop().sock_sendall(sock, b"big\n" * 20)
            await asyncio.sleep(0.05)
            for sock in socks:
                reset(sock)
            loud = await connect(address)
            with pytest.raises(ConnectionError):
                while True:
                    await asyncio.get_running_loop().sock_sendall(loud, b"x" * 10_000)
            loud.close()
            await until(lambda: not buffers.connections and pool.stats().outstanding == 0)

    run(loop, main())
    pool.destroy()


def test_a_file_that_shrinks_ends_the_connection(
    loop: str, arena: ra.Arena, files: dict[str, bytes], tmp_path: Path
) -> None:
    pool = arena.mempool(2, size=8192, order="reserve-only")
    (tmp_path / "root" / "huge").write_bytes(bytes(40 << 20))

    async def main() -> None:
        buffers = StreamBuffers(pool)
        async with serving(lambda: FileProtocol(buffers, tmp_path / "root")) as address:
            sock = await connect(address, receive_bytes=4096)
            await asyncio.get_running_loop().sock_sendall(sock, b"huge\n")
            assert await receive(sock, 8) == (40 << 20).to_bytes(8, "big")
            os.truncate(tmp_path / "root" / "huge", 100)
            try:
                assert len(await receive(sock, 40 << 20)) < 40 << 20
            except ConnectionResetError:
                pass
            sock.close()
            await until(lambda: not buffers.connections)

    run(loop, main())
    pool.destroy()
