"""The array methods of an arena against NumPy's own functions."""

from __future__ import annotations

import numpy as np
import pytest
from support import JIT

import realalloc as ra

pytestmark = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")


@pytest.mark.parametrize("shape", [(), 0, 5, (3, 4), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, float, "i4,f8", "U5", object])
@pytest.mark.parametrize("order", ["C", "F"])
def test_they_make_what_numpy_makes(arena: ra.Arena, shape: object, dtype: object, order: str) -> None:
    for ours, theirs in ((arena.zeros, np.zeros), (arena.ones, np.ones)):
        a, b = ours(shape, dtype, order), theirs(shape, dtype, order)
        assert (a.shape, a.dtype, a.strides, a.flags.owndata) == (b.shape, b.dtype, b.strides, True)
        assert (a == b).all()
        assert arena.owns(a)
    e = arena.empty(shape, dtype, order)
    assert (e.shape, e.dtype, e.strides) == (b.shape, b.dtype, b.strides)
    like = arena.empty_like(b)
    assert (like.shape, like.dtype, like.strides) == (b.shape, b.dtype, b.strides)
    assert arena.owns(e)
    assert arena.owns(like)


def test_values(arena: ra.Arena) -> None:
    full = arena.full((3, 2), 7, np.int16)
    assert full.dtype == np.int16
    assert (full == 7).all()
    assert arena.full(2, 1.5).dtype == np.float64
    source = np.arange(6).reshape(2, 3)
    copy = arena.array(source, np.float32, ndmin=3)
    assert copy.shape == (1, 2, 3)
    assert (copy[0] == source).all()
    assert arena.owns(copy)
    assert not np.shares_memory(copy, source)
    assert arena.owns(arena.array([1, 2, 3]))
    mine = arena.array(source)
    again = arena.array(mine)
    assert not np.shares_memory(mine, again)


def test_owns(arena: ra.Arena) -> None:
    with ra.Arena("1MiB") as other:
        a = arena.ones(10)
        assert arena.owns(a)
        assert arena.owns(a[3:])
        assert not other.owns(a)
        assert not arena.owns(np.ones(3))
        buf = arena.kmalloc(64)
        assert arena.owns(np.frombuffer(buf, np.uint8))
        buf.release()


def test_views_keep_the_block(arena: ra.Arena) -> None:
    a = arena.zeros(1000)
    view = memoryview(a)[10:20]
    del a
    assert arena.stats().live_objects == 1
    view.release()
    assert arena.stats().live_objects == 0


def test_dlpack_shares_the_memory(arena: ra.Arena) -> None:
    a = arena.ones(100)
    b = np.from_dlpack(a)
    assert np.shares_memory(a, b)
    del a
    assert (b == 1).all()
    assert arena.owns(b)
