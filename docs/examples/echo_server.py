"""An echo server on one bounded pool: ``python echo_server.py [port]``. 64 elements serve any number of connections."""

from __future__ import annotations

import asyncio
import sys

import realalloc as ra
from realalloc.adapters.servers import EchoProtocol
from realalloc.adapters.stream import StreamBuffers


async def main(port: int) -> None:
    """Serve until interrupted."""
    with ra.Arena("64MiB") as arena:
        pool = arena.mempool(64, size=64 << 10, order="reserve-only")
        buffers = StreamBuffers(pool, stall_seconds=30)
        server = await asyncio.get_running_loop().create_server(lambda: EchoProtocol(buffers), "127.0.0.1", port)
        print("listening on", server.sockets[0].getsockname()[1], flush=True)
        try:
            await asyncio.Event().wait()  # serve_forever, cancelled, would wait for its clients from Python 3.12 on
        finally:
            server.close()
            buffers.abort()
            while buffers.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            pool.destroy()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
