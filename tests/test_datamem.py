"""The four functions of NumPy's handler, called as C calls them: sizes of a ``size_t``, NULL, other allocators' blocks."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
from support import JIT, MIB

import realalloc as ra
from realalloc.context import NumPyContext
from realalloc.lease import datarecord

pytestmark = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")

PTRDIFF_MAX = (1 << 63) - 1
SIZE_MAX = (1 << 64) - 1


class Functions:
    """A handler's functions without their first argument; called as NumPy does, with the GIL."""

    def __init__(self, context: NumPyContext) -> None:
        self.context = context
        self.at = context._record.address
        self.lease: Any = context.capsule()  # what each array has

    def call(self, number: int, result: type | None, *arguments: int) -> int:
        function = self.context._record[datarecord.R_FUNCTIONS + 8 * number]
        kinds = [ctypes.c_void_p, *[ctypes.c_size_t] * len(arguments)]
        return ctypes.PYFUNCTYPE(result, *kinds)(function)(self.at, *arguments) or 0

    def malloc(self, nbytes: int) -> int:
        return self.call(0, ctypes.c_void_p, nbytes)

    def calloc(self, count: int, nbytes: int) -> int:
        return self.call(1, ctypes.c_void_p, count, nbytes)

    def realloc(self, block: int, nbytes: int) -> int:
        return self.call(2, ctypes.c_void_p, block, nbytes)

    def free(self, block: int, nbytes: int) -> None:
        self.call(3, None, block, nbytes)


@pytest.fixture(params=["free", "paid", "fallback"])
def calls(request: pytest.FixtureRequest) -> Iterator[Functions]:
    """The functions of a handler, of one that a budget pays for, and of one with a fallback."""
    with ra.Arena("16MiB") as arena:
        budget = arena.budget("arrays") if request.param == "paid" else None
        made = Functions(arena.numpy(budget=budget, fallback=request.param == "fallback"))
        yield made
        made.lease = None
        assert made.context.stats().live == 0
        assert budget is None or budget.used == 0
        stats = arena.stats()
        assert (stats.leases, stats.live_blocks, stats.live_areas) == (0, 0, 0)
        arena.validate()


def test_sizes_beyond_any_memory_are_null(calls: Functions) -> None:
    for nbytes in (1 << 46, 1 << 62, PTRDIFF_MAX, PTRDIFF_MAX + 1, SIZE_MAX - 8, SIZE_MAX):
        assert calls.malloc(nbytes) == 0
        assert calls.realloc(0, nbytes) == 0
        assert calls.calloc(1, nbytes) == 0
        assert calls.calloc(nbytes, 1) == 0
        assert calls.calloc(nbytes, nbytes) == 0
    for count, nbytes in ((1 << 32, 1 << 32), (1 << 33, (1 << 31) + 1), (3, SIZE_MAX // 2), ((1 << 62) + 1, 4)):
        assert calls.calloc(count, nbytes) == 0  # the product wraps around to something small


def test_no_bytes_are_a_block_of_their_own(calls: Functions) -> None:
    blocks = [calls.malloc(0), calls.calloc(0, 8), calls.calloc(8, 0), calls.realloc(0, 0)]
    assert 0 not in blocks
    assert len(set(blocks)) == 4
    for block in blocks:
        calls.free(block, 0)


def test_null_may_be_freed(calls: Functions) -> None:
    calls.free(0, 0)
    calls.free(0, MIB)
    assert calls.context.stats().frees == 0


def test_a_block_that_cannot_grow_stays_whole(calls: Functions) -> None:
    for nbytes in (100, 5000, 3 * MIB):
        block = calls.malloc(nbytes)
        ctypes.memset(block, 7, nbytes)
        for wanted in (1 << 46, PTRDIFF_MAX + 1, SIZE_MAX):
            assert calls.realloc(block, wanted) == 0
        assert ctypes.string_at(block, nbytes) == b"\7" * nbytes
        block = calls.realloc(block, 0)
        assert block != 0
        calls.free(block, 0)


def test_zeroes_of_memory_that_was_used(calls: Functions) -> None:
    for nbytes in (1, 100, 8192, 8193, MIB + 1, 3 * MIB):
        for _ in range(2):
            block = calls.calloc(nbytes, 1)
            assert not any(ctypes.string_at(block, nbytes))
            ctypes.memset(block, 255, nbytes)
            calls.free(block, nbytes)


def test_what_is_no_live_block_is_left_alone_and_validate_tells() -> None:
    with ra.Arena("16MiB") as arena:
        calls = Functions(arena.numpy())
        block = calls.malloc(64 << 10)
        arena.validate()
        calls.free(block + 4096, 0)
        assert calls.realloc(block + 4096, 100) == 0
        ctypes.memset(block, 1, 64 << 10)  # it is still whose it was
        calls.free(block, 0)
        calls.free(block, 0)
        assert calls.context.stats().frees == 1
        with pytest.raises(ra.CorruptionError, match="freed that was not in use"):
            arena.validate()
        calls.lease = None


def test_a_closed_arena_gives_nothing_and_takes_everything_back() -> None:
    for fallback in (False, True):
        arena = ra.Arena("16MiB")
        calls = Functions(arena.numpy(fallback=fallback))
        blocks = [calls.malloc(nbytes) for nbytes in (100, 5000, 3 * MIB)]
        with pytest.warns(ResourceWarning, match="live leases"):
            arena.close()
        late = [calls.malloc(100), calls.calloc(1, MIB)]
        assert [block != 0 for block in late] == [fallback] * 2
        grown = calls.realloc(blocks[0], 10_000)
        assert (grown != 0) == fallback
        for block in (grown or blocks[0], *blocks[1:], *filter(None, late)):
            calls.free(block, 0)
        assert calls.context.stats().live == 0
        calls.lease = None


def test_the_record_is_what_numpy_reads(arena: ra.Arena) -> None:
    calls = Functions(arena.numpy())
    assert ctypes.string_at(calls.at, 127).rstrip(b"\0") == b"realalloc"
    assert ctypes.string_at(calls.at + 127, 1) == b"\1"
    assert calls.context._record[datarecord.R_CTX] == calls.at
    calls.lease = None
