"""Shared by the tests of the Python faces: what may not change, how to use all up, children that must be quiet."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import JIT, run_child

import realalloc as ra
from realalloc import views

NOT_MEMORYVIEWS = [b"bytes", bytearray(8), 7, "text", np.zeros(4, np.uint8), object()]


class Index:
    """An object with ``__index__``."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def books(arena: ra.Arena) -> tuple[Any, ...]:
    """Return everything that a refused operation must leave alone; not the sheaves, which it may drain."""
    s = arena.stats()
    every = [views.cache_stats(arena.words, c) for c in views.caches(arena.words)]
    used = {c.name: c.active_objects for c in every if c.active_objects and c.name not in views.INTERNAL}
    return (s.leases, s.lingering, s.live_objects, s.live_blocks, s.live_areas, used, s.vmalloc)


@contextlib.contextmanager
def unchanged(arena: ra.Arena) -> Iterator[None]:
    """Fail if the block changes what is in use, or breaks an invariant."""
    before = books(arena)
    yield
    arena.validate()
    assert books(arena) == before


def refuses(arena: ra.Arena, error: type[BaseException], match: str, call: Callable[..., Any], *args: Any) -> str:
    """Check that a call raises exactly this error and changes nothing; return the message."""
    with unchanged(arena):
        with pytest.raises(error, match=match) as info:
            call(*args)
        assert info.type is error
        text = str(info.value)
        del info
    return text


def address(view: memoryview) -> int:
    """Return the address of a view's first byte."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def exhaust(alloc: Callable[[], Any], limit: int = 100_000) -> list[Any]:
    """Call until OutOfMemory; return what was had."""
    made: list[Any] = []
    for _ in range(limit):
        try:
            made.append(alloc())
        except ra.OutOfMemory:
            return made
    raise AssertionError("the arena never ran out")


def eat_everything(arena: ra.Arena) -> list[Any]:
    """Take every page and every object that is left, the largest first."""
    held: list[Any] = []
    for order in range(10, -1, -1):
        with contextlib.suppress(ValueError):
            held += exhaust(lambda order=order: arena.alloc_pages(order))
    for size in (8192, 4096, 2048, 1024, 512, 256, 192, 128, 96, 64, 32, 16, 8):
        held += exhaust(lambda size=size: arena.kmalloc(size))
    return held


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Poll until true; fail at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.001)


class Worker(threading.Thread):
    """A daemon thread that keeps what its function returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function: Callable[[], Any] | None = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        assert self._function is not None
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error.with_traceback(None)
        self._function = None

    def result(self, seconds: float = 120.0) -> Any:
        """Return or raise what the function did."""
        self.join(seconds)
        assert not self.is_alive(), "the thread hangs"
        error, value = self._error, self._value
        self._error = self._value = None
        if error is not None:
            raise error
        return value


@contextlib.contextmanager
def meanwhile(function: Callable[[], Any], threads: int = 1) -> Iterator[None]:
    """Call a function again and again on threads until the block is left, however it is; then raise what they raised."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            function()

    workers = [Worker(repeat) for _ in range(threads)]
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join(120)
    for worker in workers:
        worker.result()


def quiet_child(code: str, *options: str, env: dict[str, str] | None = None, expect: str = "", **how: Any) -> None:
    """Run code in a child as ``run_child`` does; it must exit with 0, say ``expect`` and nothing on stderr."""
    child = run_child(code, *options, env=env, **how)
    assert (child.returncode, child.stderr) == (0, ""), f"exit {child.returncode}\n{child.stdout}\n{child.stderr}"
    assert child.stdout.strip() == expect, child.stdout


def bare(arena: ra.Arena, kind: str, min_nr: int, **options: Any) -> Any:
    """Make a pool with nothing but its reserve: its backing fails from now on."""
    if kind == "objects":
        options |= {"alloc_fn": lambda _data, _gfp: bytearray(200), "free_fn": id}
    else:
        options["size"] = 200
    pool = arena.mempool(min_nr, **options)
    pool.fail_alloc()
    return pool


def some(jitted: int, plain: int) -> int:
    """Return a count that suits this leg."""
    return jitted if JIT else plain
