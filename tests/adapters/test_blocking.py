"""Blocking sockets: what arrives is what was sent, waiting holds no element."""

from __future__ import annotations

import random
import socket

import pytest
from checks import Worker, eventually

import realalloc as ra
from realalloc.adapters.blocking import receive, receive_exactly


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_stream_arrives_whole_in_elements(arena: ra.Arena, timeout: float | None) -> None:
    pool = arena.mempool(1, size=512)
    here, there = socket.socketpair()
    message = random.Random(1).randbytes(20_000)
    with here:
        here.settimeout(timeout)

        def send() -> None:
            with there:
                there.sendall(message)

        worker = Worker(send)
        got = b""
        for data in receive(here, pool):
            assert pool.stats().outstanding <= 1
            got += data
            del data
        worker.result()
    assert got == message
    pool.destroy()


def test_waiting_holds_no_element_and_times_out(arena: ra.Arena) -> None:
    pool = arena.mempool(1, size=512)
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(0.01)
        with pytest.raises(TimeoutError, match="within 0.01 s"):
            next(receive(here, pool))
        here.settimeout(None)
        worker = Worker(lambda: bytes(next(receive(here, pool))))
        eventually(lambda: pool.curr_nr == 1)
        there.send(b"at last")
        assert worker.result() == b"at last"
    pool.destroy()


def test_exactly(arena: ra.Arena) -> None:
    here, there = socket.socketpair()
    with here, there, arena.kmalloc(1000) as buf:
        there.sendall(b"a" * 600)
        Worker(lambda: there.sendall(b"b" * 400)).result()
        receive_exactly(here, buf)
        assert bytes(buf) == b"a" * 600 + b"b" * 400
        there.sendall(b"c" * 10)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError, match="after 10 of 1000 bytes"):
            receive_exactly(here, buf)
