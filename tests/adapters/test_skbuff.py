"""Socket buffers: the kernel's rules on small sizes exhaustively, then random operations against plain bytes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from checks import Worker
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from support import JIT, MIB

import realalloc as ra
from realalloc.adapters.skbuff import SkBuff, SkBuffPool


@pytest.fixture
def pool(arena: ra.Arena) -> Iterator[SkBuffPool]:
    """Four buffers of 100 bytes; all must be back at the end."""
    made = SkBuffPool(arena, 4, 100)
    yield made
    gc.collect()
    assert made.stats().outstanding == 0
    made.destroy()


def state(skb: SkBuff) -> tuple[Any, ...]:
    return (skb.headroom, skb.len, len(skb), skb.tailroom, skb.size, skb.is_cloned, bytes(skb.data))


def test_the_ends_move_as_in_the_kernel(pool: SkBuffPool) -> None:
    with pool.alloc() as skb:
        assert (skb.headroom, skb.len, skb.tailroom, skb.size) == (0, 0, 100, 100) and skb
        skb.reserve(20)
        assert (skb.headroom, skb.len, skb.tailroom) == (20, 0, 80)
        skb.put(5)[:] = b"hello"
        skb.put_data(b", you")
        skb.push(4)[:] = b"HEAD"
        assert bytes(skb.data) == b"HEADhello, you" and (skb.headroom, skb.tailroom) == (16, 70)
        assert bytes(skb.pull_data(4)) == b"HEAD"
        assert bytes(skb.pull(2)) == b"llo, you"
        assert bytes(skb.push(6)) == b"HEADhe", "pulled bytes are still there"
        skb.trim(3)
        skb.trim(50)
        assert bytes(skb.data) == b"HEA"
        assert "16 + 3 + 81" in repr(skb)


def test_every_move_of_a_small_buffer_keeps_the_sum_or_changes_nothing(arena: ra.Arena) -> None:
    size = 4
    pool = SkBuffPool(arena, 1, size)
    for data, length, n in itertools.product(range(size + 1), range(size + 1), range(size + 2)):
        if data + length > size:
            continue
        room = size - data - length
        moves = {
            "reserve": (length == 0 and n <= room, (data + n, length)),
            "push": (n <= data, (data - n, length + n)),
            "pull": (n <= length, (data + n, length - n)),
            "put": (n <= room, (data, length + n)),
            "trim": (True, (data, min(length, n))),
        }
        for name, (allowed, after) in moves.items():
            with pool.alloc() as skb:
                skb.reserve(data)
                skb.put(length)[:] = bytes(range(length))
                before = state(skb)
                if allowed:
                    getattr(skb, name)(n)
                    assert (skb.headroom, skb.len) == after
                    assert skb.headroom + skb.len + skb.tailroom == size
                else:
                    with pytest.raises(ValueError, match=name):
                        getattr(skb, name)(n)
                    assert state(skb) == before
    pool.destroy()


@pytest.mark.parametrize("name", ["reserve", "push", "pull", "pull_data", "put", "trim"])
@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_counts_are_checked(pool: SkBuffPool, name: str, bad: Any, error: type[Exception]) -> None:
    with pool.alloc() as skb:
        with pytest.raises(error):
            getattr(skb, name)(bad)
        assert (skb.headroom, skb.len) == (0, 0)


def test_a_clone_shares_the_bytes_and_neither_may_write(pool: SkBuffPool) -> None:
    skb = pool.alloc()
    skb.reserve(8)
    skb.put_data(b"shared")
    clone = skb.clone()
    assert pool.stats().outstanding == 1, "one block"
    for one in (skb, clone):
        assert one.is_cloned and "cloned" in repr(one)
        with pytest.raises(TypeError, match="read-only"):
            one.data[0] = 1
        for move in (lambda one=one: one.push(1), lambda one=one: one.put(1), lambda one=one: one.reserve(0)):
            with pytest.raises(BufferError, match="unshare"):
                move()
        with pytest.raises(BufferError):
            _ = one.tail_view
    clone.pull(2)
    clone.trim(3)
    assert (bytes(clone.data), bytes(skb.data)) == (b"are", b"shared"), "pointers are each one's own"
    skb.free()
    assert not clone.is_cloned
    clone.data[:] = b"ARE"
    assert bytes(clone.push(2)) == b"sh"
    clone.free()


def test_copy_and_unshare(pool: SkBuffPool) -> None:
    skb = pool.alloc()
    skb.reserve(10)
    skb.put_data(b"payload")
    assert skb.unshare() is skb
    clone = skb.clone()
    copy = skb.copy()
    assert state(copy) == (10, 7, 7, 83, 100, False, b"payload")
    copy.data[0:1] = b"P"
    assert bytes(skb.data) == b"payload"
    mine = clone.unshare()
    assert mine is not clone and not mine.is_cloned and not skb.is_cloned and bytes(mine.data) == b"payload"
    with pytest.raises(ValueError, match="freed"):
        _ = clone.data
    for one in (skb, copy, mine):
        one.free()


def test_no_memory_for_a_copy_changes_nothing(arena: ra.Arena) -> None:
    pool = SkBuffPool(arena, 1, 1 << 20, headroom=16)
    held = [pool.alloc_preallocated()]
    held[0].put_data(b"abc")
    clone = held[0].clone()
    blocks = []
    while True:
        try:
            blocks.append(pool.alloc(ra.GFP_NOWAIT))
        except ra.OutOfMemory:
            break
    before = state(clone)
    for call in (clone.copy, clone.unshare):
        with pytest.raises(ra.OutOfMemory):
            call()
        with pytest.raises(TimeoutError):
            call(ra.GFP_KERNEL, 0)
    assert state(clone) == before and before[0] == 16
    with pytest.raises(BufferError, match="elements out"):
        pool.destroy()
    for skb in (*held, *blocks, clone):
        skb.free()
    pool.destroy()


def test_the_block_goes_back_once_when_the_last_view_is_gone(pool: SkBuffPool) -> None:
    skb = pool.alloc()
    skb.put_data(b"kept")
    kept = skb.data
    skb.free()
    assert bytes(kept) == b"kept" and pool.stats().outstanding == 1
    with pytest.raises(ra.InvalidFree):
        skb.free()
    for call in (lambda: skb.len, lambda: skb.headroom, lambda: skb.tailroom, lambda: skb.data, skb.clone, skb.copy,
                 skb.unshare, lambda: skb.put(0), lambda: skb.pull(0), lambda: skb.trim(0), skb.__enter__):  # fmt: skip
        with pytest.raises(ValueError, match="freed"):
            call()
    assert repr(skb) == "<SkBuff freed>"
    del kept
    assert pool.stats().outstanding == 0
    clones = [pool.alloc()]
    clones += [clones[0].clone() for _ in range(5)]
    del clones
    assert pool.stats().outstanding == 0, "dropping is freeing"
    with pool.alloc() as inner:
        inner.free()


def test_a_pool_that_cannot_be_made_leaves_nothing(arena: ra.Arena) -> None:
    with pytest.raises(ra.OutOfMemory):
        SkBuffPool(arena, 10_000, 64 << 10, name="big")
    for size, headroom, error in ((0, 0, ValueError), (10, 11, ValueError), (1.5, 0, TypeError), (10, -1, ValueError)):
        with pytest.raises(error):
            SkBuffPool(arena, 1, size, headroom=headroom)
    pool = SkBuffPool(arena, 2, 64 << 10, name="big", headroom=64)
    assert "64 headroom" in repr(pool)
    pool.destroy()


def test_clones_freed_on_threads_give_the_block_back_once(pool: SkBuffPool) -> None:
    for _ in range(50):
        skb = pool.alloc()
        clones = [[skb.clone() for _ in range(20)] for _ in range(4)]
        workers = [Worker(lambda mine=mine: [one.free() for one in mine]) for mine in clones]
        skb.free()
        for worker in workers:
            worker.result()
        del clones, workers
    pool.pool.validate()


class Model:
    """What a buffer must look like: its ends, and the bytearray that its clones share."""

    def __init__(self, skb: SkBuff, area: dict[str, Any], data: int, tail: int) -> None:
        self.skb, self.area, self.data, self.tail = skb, area, data, tail


class Machine(RuleBasedStateMachine):
    """Random moves, clones, copies and frees against plain bytes."""

    buffers = Bundle("buffers")
    SIZE = 48

    def __init__(self) -> None:
        super().__init__()
        self.arena = ra.Arena(MIB)
        self.pool = SkBuffPool(self.arena, 3, self.SIZE, order="reserve-first")
        self.live: list[Model] = []
        self.seed = 0

    def bytes(self, n: int) -> bytes:
        self.seed += 1
        return bytes((self.seed * 31 + k) & 255 for k in range(n))

    def add(self, skb: SkBuff, area: dict[str, Any], data: int, tail: int) -> Model:
        model = Model(skb, area, data, tail)
        self.live.append(model)
        return model

    @rule(target=buffers)
    def alloc(self) -> Any:
        skb = self.pool.alloc()
        block = skb.put(self.SIZE)
        content = self.bytes(self.SIZE)
        block[:] = content
        skb.trim(0)
        return self.add(skb, {"bytes": bytearray(content), "users": 1}, 0, 0)

    def allowed(self, model: Model, fits: bool, call: Any, *, writes: bool) -> Any:
        """Check that a move is refused, for the right reason, or done; return what it returned, None if refused."""
        if writes and model.area["users"] > 1:
            with pytest.raises(BufferError):
                call()
            return None
        if not fits:
            with pytest.raises(ValueError):
                call()
            return None
        return (call(),)

    @rule(m=buffers, n=st.integers(0, 50))
    def reserve(self, m: Model, n: int) -> None:
        fits = m.data == m.tail and n <= self.SIZE - m.tail
        if self.allowed(m, fits, lambda: m.skb.reserve(n), writes=True):
            m.data += n
            m.tail += n

    @rule(m=buffers, n=st.integers(0, 50))
    def push(self, m: Model, n: int) -> None:
        done = self.allowed(m, n <= m.data, lambda: m.skb.push(n), writes=True)
        if done:
            m.data -= n
            new = self.bytes(n)
            done[0][:] = new
            m.area["bytes"][m.data : m.data + n] = new

    @rule(m=buffers, n=st.integers(0, 50))
    def put(self, m: Model, n: int) -> None:
        done = self.allowed(m, n <= self.SIZE - m.tail, lambda: m.skb.put(n), writes=True)
        if done:
            new = self.bytes(n)
            done[0][:] = new
            m.area["bytes"][m.tail : m.tail + n] = new
            m.tail += n

    @rule(m=buffers, n=st.integers(0, 50))
    def pull(self, m: Model, n: int) -> None:
        if self.allowed(m, n <= m.tail - m.data, lambda: m.skb.pull(n), writes=False):
            m.data += n

    @rule(m=buffers, n=st.integers(0, 50))
    def trim(self, m: Model, n: int) -> None:
        m.skb.trim(n)
        m.tail = min(m.tail, m.data + n)

    @rule(target=buffers, m=buffers)
    def clone(self, m: Model) -> Any:
        m.area["users"] += 1
        return self.add(m.skb.clone(), m.area, m.data, m.tail)

    @rule(target=buffers, m=buffers)
    def copy(self, m: Model) -> Any:
        made = m.skb.copy()
        content = bytearray(self.SIZE)
        content[m.data : m.tail] = m.area["bytes"][m.data : m.tail]
        spare = self.bytes(self.SIZE)  # the room around is nobody's: write it, to know it
        area = {"bytes": bytearray(spare), "users": 1}
        area["bytes"][m.data : m.tail] = content[m.data : m.tail]
        model = self.add(made, area, m.data, m.tail)
        made.push(m.data)[:] = spare[: m.data]
        made.pull(m.data)
        made.put(self.SIZE - m.tail)[:] = spare[m.tail :]
        made.trim(m.tail - m.data)
        return model

    @rule(target=buffers, m=consumes(buffers))
    def unshare(self, m: Model) -> Any:
        if m.area["users"] == 1:
            assert m.skb.unshare() is m.skb
            return m
        model = self.copy(m)
        model.skb.free()  # the model of a copy, over the buffer that unshare returns
        model.skb = m.skb.unshare()
        model.skb.push(m.data)[:] = model.area["bytes"][: m.data]
        model.skb.pull(m.data)
        model.skb.put(self.SIZE - m.tail)[:] = model.area["bytes"][m.tail :]
        model.skb.trim(m.tail - m.data)
        m.area["users"] -= 1
        self.live.remove(m)
        return model

    @rule(target=buffers, m=consumes(buffers), drop=st.booleans())
    def free(self, m: Model, drop: bool) -> Any:
        m.area["users"] -= 1
        self.live.remove(m)
        if drop:
            m.skb = None  # type: ignore[assignment]
        else:
            m.skb.free()
        return multiple()

    @invariant()
    def every_buffer_is_what_it_should_be(self) -> None:
        for m in self.live:
            content = bytes(m.area["bytes"][m.data : m.tail])
            expected = (m.data, m.tail - m.data, self.SIZE - m.tail, m.area["users"] > 1, content)
            got = (m.skb.headroom, m.skb.len, m.skb.tailroom, m.skb.is_cloned, bytes(m.skb.data))
            assert got == expected
            assert m.skb.data.readonly == (m.area["users"] > 1)
        assert self.pool.stats().outstanding == len({id(m.area) for m in self.live})

    def teardown(self) -> None:
        for m in self.live:
            m.skb.free()
        self.pool.destroy()
        self.arena.validate()
        assert self.arena.stats().leases == 0
        self.arena.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60 if JIT else 10,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_an_empty_payload_of_any_shape_can_be_put(arena: ra.Arena) -> None:
    pool = SkBuffPool(arena, 1, 64)
    with pool.alloc() as skb:
        skb.put_data(np.empty((0, 3)))
        skb.put_data(np.arange(3, dtype=np.int16))
        assert bytes(skb.data) == bytes((0, 0, 1, 0, 2, 0))
    pool.destroy()
