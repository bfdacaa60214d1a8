"""The three kinds of allocator that loops are made over: what they give is memory, and blocks do not overlap."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from support import JIT

import realalloc as ra
from realalloc.lab.loops.kinds import CONTROL, CONTROL_OBJECTS, CONTROL_SHIFT, FEW, NATIVE, OURS, control_how
from realalloc.lab.natives import call_alloc, call_free, call_realloc, find_natives


def _user(f):
    alloc, free, store, load, at, realloc = f

    @numba.njit
    def use(how, size, blocks, addresses):
        for k in range(len(blocks)):
            blocks[k] = alloc(how, size)
            if blocks[k] == 0:
                return -1
            store(how, blocks[k], k + 1)
            addresses[k] = at(how, blocks[k])
        total = 0
        for k in range(len(blocks)):
            if k % 2 == 0:
                blocks[k] = realloc(how, blocks[k], 9000)
            total += load(how, blocks[k])
            blocks[k] = realloc(how, blocks[k], 2 * size)
            if blocks[k] == 0 or load(how, blocks[k]) == 0:
                return -2
            free(how, blocks[k])
        return total

    return use


def _use(f, how, size, count=50):
    blocks, addresses = np.zeros(count, np.int64), np.zeros(count, np.int64)
    assert _user(f)(how, size, blocks, addresses) == count * (count + 1) // 2
    assert (np.diff(np.sort(addresses)) >= size).all()
    return addresses


def test_ours(arena: ra.Arena) -> None:
    with arena.kmalloc(64) as lease:
        inside = np.frombuffer(lease, np.uint8).ctypes.data
        del lease
    addresses = _use(OURS, arena.words, 64)
    assert (abs(addresses - inside) < arena.size).all()


def test_native() -> None:
    (glibc,), _ = find_natives("glibc")
    _use(NATIVE, np.array([glibc.alloc, glibc.free, glibc.realloc], np.int64), 64)


def test_control_gives_what_is_there_already() -> None:
    how = control_how(0, FEW)
    addresses = _use(CONTROL, how, 1 << CONTROL_SHIFT)
    again = _use(CONTROL, how, 1 << CONTROL_SHIFT)
    assert len(set(addresses.tolist()) | set(again.tolist())) == FEW
    other = control_how(1, FEW)
    assert not set(_use(CONTROL, other, 1 << CONTROL_SHIFT)) & set(addresses)
    assert control_how(0)[1] == how[1]  # the same objects for the same thread
    assert CONTROL_OBJECTS & (CONTROL_OBJECTS - 1) == 0


@pytest.mark.skipif(not JIT, reason="nothing is compiled without jit")
@pytest.mark.parametrize("call", [call_alloc, call_realloc, call_free], ids=lambda call: call.__name__)
def test_calls_by_address_compile(call) -> None:
    two, three = numba.njit(lambda f, a: call(f, a)), numba.njit(lambda f, a, b: call(f, a, b))
    compiled, count = (three, 3) if call is call_realloc else (two, 2)
    compiled.compile((numba.int64,) * count)
    assert compiled.signatures
