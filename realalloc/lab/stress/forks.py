"""One fork of a process whose threads allocate without the GIL: the child must find the arena whole, and be able to use it.

Guarantees: the child runs nothing but the check and leaves by ``_exit``; a child that hangs is killed, and is a finding.
Ctrl-C reaches the parent only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
import warnings

from realalloc.arena import Arena
from realalloc.errors import OutOfMemory
from realalloc.jit import kfree, kmalloc

CHILD_SECONDS = 60.0
CHECKED_BYTES = (8, 500, 9000, 70_000)
POLL_SECONDS = 0.0005


def fork_and_check(arena: Arena, child_seconds: float = CHILD_SECONDS) -> str | None:
    """Fork; return what the child found wrong, or None."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGALRM))
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            child = os.fork()
        if child == 0:
            _be_child(arena, writer)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        os.close(writer)
    with os.fdopen(reader, "rb") as file:
        status = _wait_for(child, child_seconds)
        said = file.read().decode(errors="replace").strip()
    if status == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"child {child} of a fork: {'killed, it hung' if code == -signal.SIGKILL else f'exit {code}'}; {said}"


def _be_child(arena: Arena, writer: int) -> None:
    code = 1
    try:
        arena.validate()
        for size in CHECKED_BYTES:
            offset = kmalloc(arena.words, size)
            assert offset == 0 or kfree(arena.words, offset) == 0, f"kfree of {size} bytes was refused"
        with contextlib.suppress(OutOfMemory):
            arena.kmalloc(300).release()
        arena.trim()
        arena.validate()
        code = 0
    except BaseException:  # noqa: BLE001  # nothing may leave the child
        os.write(writer, traceback.format_exc(limit=-3)[-2000:].encode(errors="replace"))
    finally:
        os._exit(code)


def _wait_for(child: int, child_seconds: float) -> int:
    deadline = time.monotonic() + child_seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:  # it hangs, maybe in the fork itself
            os.kill(child, signal.SIGKILL)
            deadline += child_seconds
        time.sleep(POLL_SECONDS)
    return ended[1]
