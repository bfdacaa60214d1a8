"""Blocking sockets and mempools: receive into elements without holding one while nothing arrives.

``receive`` takes an element only when the socket is readable, so a thread that waits for a silent peer costs none.
Timeouts are the socket's own, in seconds, as with ``recv``: TimeoutError when nothing arrives for so long.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

from realalloc.mempool import MemPool


def _wait_readable(sock: socket.socket) -> None:
    timeout = sock.gettimeout()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError(f"nothing arrived within {timeout} s")


def receive(sock: socket.socket, pool: MemPool) -> Iterator[memoryview]:
    """Yield what arrives, each time in another element, until the peer ends the stream.

    Waits for the socket, then for an element. A block goes back when its last view is gone. OSError as ``recv_into``; what
    was not yet yielded then is lost.
    """
    while True:
        _wait_readable(sock)
        buf = pool.alloc()
        nbytes = sock.recv_into(buf)
        if not nbytes:
            return
        data = buf[:nbytes]
        del buf
        yield data
        del data  # before waiting again: only the consumer's views keep it


def receive_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill ``view``. EOFError says how many bytes came if the peer ends the stream before; OSError as ``recv_into``."""
    done = 0
    while done < len(view):
        nbytes = sock.recv_into(view[done:])
        if not nbytes:
            raise EOFError(f"the stream ended after {done} of {len(view)} bytes")
        done += nbytes
