"""Echo servers, each in a process of its own: 64 KiB messages there and back, and what idle connections cost.

Contestants: ``asyncio.Protocol``, a ``BufferedProtocol`` with 64 KiB for each connection, and ours; on asyncio, and on uvloop
where it is installed. Throughput: the same blocking client takes turns with all of them. Memory: growth of a server's RSS from
before the first connection to when all are open and each has echoed one message; for ours from before the pool exists, so the
pool counts. Servers share one core and the client has another where there are two: free to move, they are on one or on two for
seconds at a time, 15 or 33 us a message. ``python -m bench network``; a child is ``python -m bench.network KIND LOOP``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.measure import Result, Turn, sample

MESSAGE = 64 << 10
POOL = 16  # elements of ours
OURS, PLAIN, PER_CONNECTION = "realalloc", "Protocol", "BufferedProtocol, 64 KiB each"


class PlainEcho(asyncio.Protocol):
    """What everybody writes first."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class BufferEcho(asyncio.BufferedProtocol):
    """A buffer for each connection, kept."""

    def __init__(self):
        self.view = memoryview(bytearray(MESSAGE))

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):  # noqa: ARG002
        return self.view

    def buffer_updated(self, nbytes):
        self.transport.write(self.view[:nbytes].tobytes() if self.copies else self.view[:nbytes])

    copies = False  # asyncio of 3.11 copies what it cannot send; where views are queued the buffer would be overwritten


async def child(kind: str, copies: bool) -> None:
    """Serve until stdin ends; say the port, and the RSS before."""
    import realalloc as ra
    from realalloc.adapters.servers import EchoProtocol
    from realalloc.adapters.stream import StreamBuffers

    make = {PLAIN: PlainEcho, PER_CONNECTION: BufferEcho}.get(kind)
    BufferEcho.copies = copies
    arena = ra.Arena("64MiB")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: make(), "127.0.0.1", 0, backlog=4096)
    rss = psutil.Process().memory_info().rss
    if make is None:
        buffers = StreamBuffers(arena.mempool(POOL, size=MESSAGE, order="reserve-only"))
        make = lambda: EchoProtocol(buffers)  # noqa: E731
    print(server.sockets[0].getsockname()[1], rss, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Server:
    """A child, and connections to it."""

    def __init__(self, kind: str, loop: str) -> None:
        command = [sys.executable, "-m", "bench.network", kind, loop]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port, self.base = map(int, self.process.stdout.readline().split())
        self.ps = psutil.Process(self.process.pid)
        self.ps.cpu_affinity([max(os.sched_getaffinity(0))])

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def faults(self) -> int:
        """Minor page faults of the child so far: the tenth field of its stat, the second one after the name's eighth."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return int(text.rpartition(")")[2].split()[7])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def echo(socks: list[socket.socket], number: int) -> None:
    """Send ``number`` messages over every connection in turn; read each back whole before the next one on it."""
    message, into = bytes(MESSAGE), memoryview(bytearray(MESSAGE))
    for _ in range(number // len(socks)):
        for sock in socks:
            sock.sendall(message)
        for sock in socks:
            got = 0
            while got < MESSAGE:
                got += sock.recv_into(into[got:])


def throughput(servers: dict[str, Server], *, smoke: bool) -> Result:
    """Microseconds a message of 64 KiB, both ways, 4 connections."""
    number, rounds = (8, 1) if smoke else (1200, 11)
    turns, faults = {}, {}

    def turn(name: str, server: Server) -> Turn:
        socks = [server.connect() for _ in range(4)]
        faults[name] = []

        def run(count: int) -> None:
            before = server.faults()
            echo(socks, count)
            faults[name].append((server.faults() - before) / count)

        return Turn(run, close=lambda: [sock.close() for sock in socks])

    for name, server in servers.items():
        turns[name] = turn(name, server)
    samples = sample(turns, number, rounds)
    medians = {name: statistics.median(values) / 1000 for name, values in samples.items()}
    notes = {f"page faults a message, {name}": statistics.median(counts[1:]) for name, counts in faults.items()}
    return Result(f"echo of {MESSAGE} bytes", "us", medians, OURS, {}, notes, pairwise(samples))


def pairwise(samples: dict[str, list[float]]) -> dict[str, float]:
    """Return medians of ours / peer within a round."""
    ours = samples[OURS]
    return {
        name: statistics.median(a / b for a, b in zip(ours, values, strict=True)) for name, values in samples.items()
    }


def idle(server: Server, count: int) -> float:
    """Return KiB by which the server grew for so many connections that were used once."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks.append(server.connect())
            socks[-1].sendall(b"x" * 1000)
            left = 1000
            while left:
                left -= len(socks[-1].recv(left))
        time.sleep(0.2)
        return (server.ps.memory_info().rss - server.base) / 1024
    finally:
        for sock in socks:
            sock.close()


def loops() -> Iterator[str]:
    """Return the loops there are; say which are not."""
    yield "asyncio"
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: F401

        yield "uvloop"
        return
    print("uvloop: not installed, skipped")


def network(*, smoke: bool) -> list[Result]:
    """Run all."""
    count = 20 if smoke else 2000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = []
    for loop in loops():
        names = (OURS, PLAIN, PER_CONNECTION)
        servers = {name: Server(name, loop) for name in names}
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            result = throughput(servers, smoke=smoke)
            result.name += f", {loop}"
            result.targets = {PLAIN: 1.0}
            results.append(result)
        finally:
            os.sched_setaffinity(0, allowed)
            for server in servers.values():
                server.close()
        grown: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(1 if smoke else 3):
            for name in names:
                server = Server(name, loop)
                try:
                    grown[name].append(idle(server, count))
                finally:
                    server.close()
        medians = {name: statistics.median(values) for name, values in grown.items()}
        what = f"growth of the server's RSS at {count} idle connections, {loop}"
        results.append(Result(what, "KiB", medians, OURS, {PER_CONNECTION: 0.2}))
    return results


def main() -> None:
    """Be a child."""
    kind, loop = sys.argv[1:]
    threading.stack_size(1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop
    copies = loop == "uvloop" or sys.version_info >= (3, 12)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(child(kind, copies))


if __name__ == "__main__":
    main()
