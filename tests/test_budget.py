"""Budgets as a program sees them: what is charged to whom, until when, and what is said when there is no more."""

from __future__ import annotations

import copy
import gc
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from checks import Worker, quiet_child, refuses, some
from support import JIT

import realalloc as ra
from realalloc.arena import _arenas
from realalloc.mm import layout
from realalloc.mm.kmalloc import charged_bytes

PAGE = layout.PAGE_BYTES


def address_of(array: Any) -> int:
    return int(array.ctypes.data)


@pytest.fixture
def arena() -> Iterator[ra.Arena]:
    with ra.Arena("32MiB", decay=None, huge_pages=False) as made:
        yield made
        made.validate()


def charge_of(view: memoryview) -> int:
    exporter: Any = view.obj
    arena = next(made for made in _arenas if made.address == exporter.base)
    return int(charged_bytes(arena.words, exporter.offset))


def used(*budgets: ra.Budget) -> tuple[int, ...]:
    return tuple(b.used for b in budgets)


# -- what is charged ----------------------------------------------------------------------------

SIZES = [*range(1, 200, 7), 256, 257, 4096, 4097, 8192, 8193, 100_000, 4 << 20, (4 << 20) + 1, 5_000_000]


@pytest.mark.parametrize("order", [0, 4, 10])
def test_a_block_charges_what_ksize_says(order: int) -> None:
    with ra.Arena("32MiB", max_order=order, decay=None) as arena:
        b = arena.budget("b")
        for verb in (arena.kmalloc, arena.kzalloc, arena.vmalloc, arena.kvmalloc, lambda n: arena.kcalloc(1, n)):
            for size in SIZES:
                with b:
                    buf = verb(size)
                assert arena.ksize(buf) >= b.used == charge_of(buf) >= size
                assert verb == arena.vmalloc or size > 4 << 20 or order < 10 or b.used == arena.ksize(buf)
                assert b.stats().buffers == 1
                buf.release()
                assert b.used == 0
        for k in range(order + 1):
            with b:
                pages = arena.alloc_pages(k)
            assert b.used == PAGE << k
            arena.free_pages(pages)
        for size in (1, PAGE, PAGE + 1, 7 * PAGE, 5 << 20):
            with b:
                pages = arena.alloc_pages_exact(size)
            assert b.used == -(-size // PAGE) * PAGE
            del pages
        with b:
            several = arena.alloc_pages_bulk(3)
            nothing = arena.kmalloc(0)
        assert b.used == 3 * PAGE
        del several
        assert b.used == 0 == b.stats().buffers
        del nothing
        arena.validate()


def test_use_counts_in_the_parents(arena: ra.Arena) -> None:
    top = arena.budget("top", "1MiB")
    left, right = top.budget("left"), arena.budget("right", parent=top)
    with left:
        a = arena.kmalloc(4096)
        with right:
            b = arena.kmalloc(8192)
        c = arena.kmalloc(4096)
        with top:
            d = arena.kmalloc(4096)
    free = arena.kmalloc(4096)
    assert used(top, left, right) == (20480, 8192, 8192)
    assert (left.path, right.parent, top.parent) == ("top/left", top, None)
    s = top.stats()
    assert (s.used, s.buffers, s.buffer_bytes, s.limit, s.high) == (20480, 1, 4096, 1 << 20, None)
    assert [child.path for child in s.children] == ["top/left", "top/right"]
    assert s.as_dict()["children"][0]["used"] == 8192
    del a, b, c, d, free
    assert used(top, left, right) == (0, 0, 0)
    assert top.stats().peak == 20480


def test_krealloc_in_place_keeps_the_charge_and_a_move_is_charged_to_who_asks(arena: ra.Arena) -> None:
    one, two = arena.budget("one"), arena.budget("two")
    with one:
        buf = arena.kmalloc(300)
    with two:
        buf = arena.krealloc(buf, 500)
        assert used(one, two) == (512, 0)
        buf = arena.krealloc(buf, 5000)
        assert used(one, two) == (0, 8192)
    buf = arena.krealloc(buf, 9000)
    assert used(one, two) == (0, 0)


def test_views_that_live_on_are_charged(arena: ra.Arena) -> None:
    b = arena.budget("b")
    with b:
        buf = arena.kmalloc(4096)
    part, array = buf[10:20], np.frombuffer(buf, np.uint8)
    arena.kfree(buf)
    assert b.used == 4096 and arena.stats().lingering == 1
    del part
    assert b.used == 4096
    del array
    assert b.used == 0 and arena.stats().lingering == 0


def test_frees_in_a_collection_and_on_another_thread_are_counted(arena: ra.Arena) -> None:
    b = arena.budget("b")
    with b:
        cycle: list[Any] = [arena.kmalloc(100)]
        buf: list[Any] = [arena.kmalloc(100)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert b.used == 128
    Worker(buf.clear).result()
    assert b.used == 0


# -- no more ----------------------------------------------------------------------------


def test_what_passes_the_limit_names_the_budget_and_its_holders(arena: ra.Arena) -> None:
    top = arena.budget("decode", "60KiB")
    tiles = top.budget("tiles", "32KiB")
    with tiles:
        held = [arena.kmalloc(4096) for _ in range(8)]
        assert tiles.used == 32768
        text = refuses(arena, ra.OutOfMemory, "kmalloc", arena.kmalloc, 100)
    assert "budget 'decode/tiles' is full: 32 KiB of 32 KiB used, 128 B wanted" in text
    assert "largest holders: 8 buffers: 32 KiB; free some, or raise its limit with set_limit()" in text
    with top:
        text = refuses(arena, ra.OutOfMemory, "vmalloc", arena.vmalloc, 32769)
        assert "budget 'decode' is full" in text and "budget 'decode/tiles': 32 KiB" in text
        fits = arena.kvmalloc(20_000)  # 20 KiB from vmalloc, where kmalloc would take 32
        assert arena.ksize(fits) == 20480
        assert refuses(arena, ra.OutOfMemory, "in zone Normal", arena.kmalloc, 1 << 40)
        assert refuses(arena, ra.OutOfMemory, "budget", arena.kmalloc, 100_000, ra.GFP_NOWAIT)
    assert top.stats().failures > 0 < tiles.stats().failures
    del held, fits
    assert top.used == 0


def test_limits_move(arena: ra.Arena) -> None:
    b = arena.budget("b", "8KiB", high="4KiB")
    with b:
        buf = arena.kmalloc(8192, ra.GFP_NOWAIT)
        refuses(arena, ra.OutOfMemory, "full", arena.kmalloc, 1)
        with pytest.raises(ValueError, match="limit 4KiB is below what budget 'b' uses: 8 KiB"):
            b.set_limit("4KiB")
        b.set_limit(None)
        b.set_high(None)
        more = arena.kmalloc(1)
    assert (b.stats().limit, b.stats().high) == (None, None)
    del buf, more
    b.set_limit(0)
    with b:
        refuses(arena, ra.OutOfMemory, "full", arena.kmalloc, 1)
        arena.kmalloc(0).release()


def test_shrinkers_are_asked_before_a_budget_refuses(arena: ra.Arena) -> None:
    b = arena.budget("b", "32KiB")
    kept: list[memoryview] = []

    def scan(n: int) -> int:
        gone = min(n, len(kept))
        del kept[:gone]
        return gone

    with b, arena.register_shrinker(lambda: len(kept), scan) as shrinker:
        kept += [arena.kmalloc(4096) for _ in range(8)]
        buf = arena.kmalloc(4096)
        assert len(kept) < 8
        calls = shrinker.stats().counts
        refuses(arena, ra.OutOfMemory, "full", arena.kmalloc, 40_000)  # more than an empty one could give
        assert shrinker.stats().counts == calls
        refuses(arena, ra.OutOfMemory, "full", arena.kmalloc, 32_768, ra.GFP_NOWAIT)
        assert shrinker.stats().counts == calls
    kept.clear()
    del buf


def test_above_the_high_mark_allocations_slow_down(arena: ra.Arena) -> None:
    b = arena.budget("b", high="64KiB")
    with b:
        held = [arena.kmalloc(65536)]
        assert b.stats().throttled == 0
        begin = time.monotonic()
        held += [arena.kmalloc(65536) for _ in range(3)]
        assert time.monotonic() - begin > 0.05
        s = b.stats()
        assert 1 <= s.throttled <= 3 and s.used == 4 * 65536
        held.append(arena.kmalloc(65536, ra.GFP_NOWAIT))
        assert b.stats().throttled == s.throttled
    del held


def test_above_the_high_mark_memory_is_reclaimed(arena: ra.Arena) -> None:
    b = arena.budget("b", high="64KiB")
    kept: list[memoryview] = []

    def scan(n: int) -> int:
        gone = min(n, len(kept))
        del kept[:gone]
        return gone

    with b, arena.register_shrinker(lambda: len(kept), scan, seeks=0):
        for _ in range(3):
            kept.append(arena.kmalloc(65536))
        assert len(kept) < 3
    kept.clear()


# -- caches and pools ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 200, 4096, 20_000])
@pytest.mark.parametrize("ctor", [None, lambda view: None])
def test_a_cache_charges_its_slabs(arena: ra.Arena, size: int, ctor: Any) -> None:
    b = arena.budget("b", "256KiB")
    cache = arena.kmem_cache("objects", size, ctor=ctor, budget=b)
    assert b.used == 0
    held = []
    with pytest.raises(ra.OutOfMemory, match=r"budget 'b' is full.*cache 'objects'"):
        while True:
            held.append(cache.alloc())
    arena.validate()
    s = b.stats()
    assert s.used == s.slab_bytes <= 256 << 10
    assert s.slabs == cache.stats().slabs
    assert len(held) * size <= s.slab_bytes
    held.clear()
    cache.shrink()
    assert b.used == 0
    cache.alloc().release()
    cache.destroy()
    assert b.used == 0


def test_full_budgets_take_back_what_caches_keep(arena: ra.Arena) -> None:
    b = arena.budget("b", "64KiB")
    cache = arena.kmem_cache("objects", 4096, budget=b)
    held = [cache.alloc() for _ in range(8)]
    held.clear()
    assert b.used > 0  # empty slabs, and objects in sheaves
    with b:
        buf = arena.vmalloc(64 << 10)
    del buf
    cache.destroy()


def test_a_pool_charges_its_elements(arena: ra.Arena) -> None:
    b = arena.budget("b", "64KiB")
    with pytest.raises(ra.OutOfMemory, match=r"reserve cannot be filled.*budget 'b' is full"):
        arena.mempool(17, size=4000, budget=b)
    assert b.used == 0
    pool = arena.mempool(8, size=4000, budget=b)
    assert (b.used, b.stats().elements) == (32768, 8)
    held = [pool.alloc() for _ in range(16)]
    assert (b.used, b.stats().elements) == (65536, 16)
    with pytest.raises(ra.OutOfMemory):
        pool.alloc(ra.GFP_NOWAIT)
    with pytest.raises(TimeoutError):
        pool.alloc(timeout=0.01)
    held.clear()
    assert b.used == 32768
    pool.resize(4)
    assert b.used == 16384
    held.append(pool.alloc())
    pool.destroy(force=True)
    assert b.used == 4096
    held.clear()
    assert b.used == 0
    pages = arena.mempool(2, order=2, budget=b)
    assert b.used == 8 * PAGE
    pages.destroy()


def test_a_pool_of_structs_charges_its_elements_or_its_caches_slabs(arena: ra.Arena) -> None:
    b = arena.budget("b")
    kind = np.dtype([("a", "i8"), ("b", "i8", (100,))])
    for ctor in (None, lambda made: None):
        pool = arena.mempool(4, struct=kind, ctor=ctor, budget=b)
        s = b.stats()
        assert (s.elements > 0, s.slabs > 0) == (ctor is None, ctor is not None)
        pool.destroy()
        assert b.used == 0


@pytest.mark.parametrize("wrong", [7, "b", object()])
def test_only_budgets_pay(arena: ra.Arena, wrong: Any) -> None:
    refuses(arena, TypeError, "must be a Budget", lambda: arena.kmem_cache("c", 8, budget=wrong))
    refuses(arena, TypeError, "must be a Budget", lambda: arena.mempool(1, size=8, budget=wrong))
    refuses(arena, TypeError, "must be a Budget", lambda: arena.budget("x", parent=wrong))


def test_what_cannot_be_charged_is_refused(arena: ra.Arena) -> None:
    with ra.Arena("1MiB") as other:
        foreign = other.budget("b")
        refuses(arena, ValueError, "another arena", lambda: arena.kmem_cache("c", 8, budget=foreign))
        refuses(arena, ValueError, "another arena", lambda: arena.mempool(1, size=8, budget=foreign))
        refuses(arena, ValueError, "another arena", lambda: arena.budget("x", parent=foreign))
    b = arena.budget("b")
    cache = arena.kmem_cache("c", 8)
    refuses(arena, ValueError, "give it to the cache", lambda: arena.mempool(1, cache=cache, budget=b))
    objects = {"alloc_fn": lambda data, gfp: object(), "free_fn": lambda made: None}
    refuses(arena, ValueError, "give it to the cache", lambda: arena.mempool(1, budget=b, **objects))
    b.close()
    refuses(arena, ValueError, "budget 'b' is closed", lambda: arena.kmem_cache("d", 8, budget=b))
    refuses(arena, ValueError, "budget 'b' is closed", lambda: b.budget("x"))


# -- arrays ----------------------------------------------------------------------------

arrays = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code")


@arrays
def test_arrays_are_charged_until_they_die(arena: ra.Arena) -> None:
    top = arena.budget("top", "4MiB")
    low = top.budget("low")
    with arena.numpy(budget=low):
        a = np.zeros(1000, np.uint8)
        b = a[10:20]
    assert (top.used, low.stats().arrays, low.stats().array_bytes) == (1024, 1, 1024)
    del a
    assert low.used == 1024
    del b
    assert low.used == 0
    with arena.numpy(budget=low), pytest.raises(MemoryError):
        np.empty(5 << 20, np.uint8)
    with arena.numpy(budget=low, fallback=True) as context:
        big = np.ones(5 << 20, np.uint8)
        assert not arena.owns(big) and context.stats().fallbacks == 1
        big.resize(6 << 20)
    assert top.used == 0
    with low:
        c = arena.ones((16, 16))
        with arena.numpy():
            d = np.ones(100)
    assert low.stats().arrays == 2
    e = arena.ones(100)
    del c, d, e
    assert low.used == 0


@arrays
@pytest.mark.parametrize("fallback", [False, True])
def test_arrays_that_change_their_size_are_charged_for_what_they_have(arena: ra.Arena, fallback: bool) -> None:
    b = arena.budget("b", "4MiB")
    draw = random.Random(3)
    held: list[Any] = []
    with arena.numpy(budget=b, fallback=fallback):
        for _ in range(400):
            size = int(2 ** draw.uniform(0, 23))
            array = owned = None
            if held and draw.random() < 0.4:
                held.pop(draw.randrange(len(held)))
            elif held and draw.random() < 0.6:
                array = held[draw.randrange(len(held))]
                filled = int(array[0])
                try:
                    array.resize(size, refcheck=False)
                except MemoryError:
                    pass
                assert array[0] == filled
            else:
                try:
                    held.append(np.full(size, draw.randrange(256), np.uint8))
                except MemoryError:
                    assert not fallback
            owned = [array for array in held if arena.owns(array)]
            assert b.stats().arrays == len(owned)
            base = arena.address
            assert (
                b.used == sum(int(charged_bytes(arena.words, address_of(array) - base)) for array in owned) <= 4 << 20
            )
    assert b.stats().failures > 0
    arena.validate()
    array = None
    owned.clear()
    held.clear()
    assert b.used == 0


@arrays
def test_arrays_outlive_budget_and_arena() -> None:
    arena = ra.Arena("8MiB")
    b = arena.budget("b")
    with arena.numpy(budget=b):
        a = np.ones(1000)
    b.close()
    with pytest.raises(ValueError, match="closed"):
        arena.numpy(budget=b)
    with pytest.warns(ResourceWarning, match="live leases"):
        arena.close()
    a += 1
    a = None


# -- life ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((7,), TypeError, "str"), (("",), ValueError, "name"), (("a/b",), ValueError, "name"),
        (("a b",), ValueError, "name"), (("x" * 65,), ValueError, "name"), (("x", -1), ValueError, "limit"),
        (("x", 1.5), TypeError, "limit"), (("x", None, "lots"), ValueError, "high"), (("x", True), TypeError, "limit"),
    ],
)  # fmt: skip
def test_arguments_are_checked(arena: ra.Arena, arguments: Any, error: type[Exception], match: str) -> None:
    refuses(arena, error, match, arena.budget, *arguments)


def test_names_are_those_of_open_siblings(arena: ra.Arena) -> None:
    b = arena.budget("é" * 32)
    refuses(arena, ValueError, "exists", arena.budget, "é" * 32)
    child = b.budget("é" * 32)
    assert b.stats().children[0].path == child.path
    child.close()
    child = b.budget("é" * 32)
    del b, child
    gc.collect()
    b = arena.budget("é" * 32)
    assert b.stats().children == ()
    assert arena.words[layout.H_BUDGETS] == b._at and arena.words[b._at + layout.B_NEXT] == 0


def test_a_closed_budget_keeps_its_charges_in_its_parents(arena: ra.Arena) -> None:
    top = arena.budget("top")
    low = top.budget("low")
    with low:
        buf = arena.kmalloc(4096)
        with pytest.raises(BufferError, match="open budgets below it: 'top/low'"):
            top.close()
        low.close()
        low.close()
        refuses(arena, ra.OutOfMemory, "budget 'top/low' is closed", arena.kmalloc, 1)
    assert low.closed and repr(low) == "<Budget 'top/low' closed>"
    for call in (low.__enter__, lambda: low.set_limit(1), lambda: low.set_high(1)):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert top.used == low.stats().used == 4096
    low = call = None
    gc.collect()
    assert [s.closed for s in top.stats().children] == [True]
    del buf
    assert top.stats().children == () and top.used == 0
    top.close()


def test_leases_and_budgets_outlive_the_arena() -> None:
    arena = ra.Arena("1MiB")
    b = arena.budget("b")
    with b:
        buf = arena.kmalloc(4096)
        with pytest.warns(ResourceWarning, match="1 live leases"):
            arena.close()
        with pytest.raises(ra.ArenaClosed):
            arena.kmalloc(1)
    assert b.closed
    for call in (b.stats, b.__enter__, lambda: b.used, lambda: b.set_limit(1), lambda: b.budget("x")):
        with pytest.raises(ra.ArenaClosed):
            call()
    b.close()
    assert repr(b) == "<Budget 'b' closed>"
    buf[:4] = b"live"
    buf.release()


def test_a_budget_cannot_be_copied(arena: ra.Arena) -> None:
    b = arena.budget("b", 100)
    for call in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither"):
            call(b)
    assert repr(b) == "<Budget 'b' 0 B of 100 B>"
    assert repr(arena.budget("c")) == "<Budget 'c' 0 B>"


# -- many at once ----------------------------------------------------------------------------


def test_a_long_random_run_adds_up(arena: ra.Arena) -> None:
    draw = random.Random(5)
    budgets = [arena.budget("a", "600KiB"), arena.budget("b", "900KiB")]
    for k in range(6):
        budgets.append(draw.choice(budgets[:5]).budget(f"n{k}", draw.choice([None, "200KiB", "400KiB"])))
    held: list[tuple[memoryview, ra.Budget]] = []
    verbs = [arena.kmalloc, arena.kzalloc, arena.vmalloc, arena.kvmalloc, lambda n: arena.alloc_pages_exact(n).view]

    def total(b: ra.Budget) -> int:
        return sum(charge_of(view) for view, owner in held if owner is b or owner.path.startswith(f"{b.path}/"))

    refused = 0
    for _ in range(some(3000, 300)):
        if held and draw.random() < 0.45:
            held.pop(draw.randrange(len(held)))
            continue
        b = draw.choice(budgets)
        try:
            with b:
                held.append((draw.choice(verbs)(int(2 ** draw.uniform(0, 16))), b))
        except ra.OutOfMemory:
            refused += 1
        if draw.random() < 0.02:
            arena.validate()
            assert used(*budgets) == tuple(map(total, budgets))
    assert refused or some(0, 1)
    assert used(*budgets) == tuple(map(total, budgets))
    held.clear()
    assert not any(used(*budgets))


def test_threads_at_the_limit_never_pass_it(arena: ra.Arena) -> None:
    top = arena.budget("top", "128KiB")
    low = [top.budget(f"low{k}", "96KiB") for k in range(4)]
    over = []
    end = time.monotonic() + some(1, 1)

    def work(b: ra.Budget) -> int:
        held: list[memoryview] = []
        refused = 0
        with b:
            while time.monotonic() < end:
                try:
                    held.append(arena.kmalloc(4096 if len(held) & 1 else 9000, ra.GFP_NOWAIT))
                except ra.OutOfMemory:
                    refused += 1
                    del held[: 1 + len(held) // 2]
                if top.used > 128 << 10 or b.used > 96 << 10:
                    over.append(b)
        return refused

    workers = [Worker(lambda b=b: work(b)) for b in low]
    refused = sum(worker.result() for worker in workers)
    assert refused > 0 and not over
    arena.validate()
    assert used(top, *low) == (0,) * 5
    assert top.stats().peak <= 128 << 10


@pytest.mark.skipif(not JIT, reason="without machine code an interrupted kernel keeps its lock")
def test_interrupts_lose_no_charge() -> None:
    quiet_child("""
import random, signal, time
import realalloc as ra
from realalloc import payers
arena = ra.Arena("32MiB", decay=None)
top = arena.budget("top", "1MiB")
low = top.budget("low", high="64KiB")
cache = arena.kmem_cache("c", 4096, budget=top)
draw = random.Random(1)
with low:  # compile
    held = [arena.kmalloc(5000), arena.vmalloc(5000), arena.kmalloc(40000, ra.GFP_NOWAIT)]
    top.budget("temporary").close()
    with top.budget("other", 1):
        try: arena.kmalloc(5000)
        except ra.OutOfMemory: pass
    held.append(arena.kmalloc(40000))
held.append(cache.alloc())
held.clear()
top.stats()
def ring(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, ring)
end = time.monotonic() + 1.5
armed, rings = False, 0
def spend(held, stop):  # a function of its own: a loop's jump back may lie outside the try around it
    while time.monotonic() < stop:
        with low:
            held.append(arena.kmalloc(draw.randrange(1, 5000)))
            with top:
                held.append(arena.vmalloc(5000))
            held.append(cache.alloc())
            if len(held) > 20: held.clear()
            top.budget("temporary")
def once():
    global armed, rings
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 1e-3))
        spend([], time.monotonic() + 0.1)
        armed = False
    except KeyboardInterrupt:
        rings += 1
    armed = False
while time.monotonic() < end:
    once()
    payers._innermost.set(None)  # a signal may come between __enter__ and the block
held.clear()
cache.destroy()
arena.validate()
assert rings > 20
assert (top.used, low.used) == (0, 0), (top.stats())
assert [s.name for s in top.stats().children] == ["low"], top.stats()
""")


def test_the_child_of_a_fork_has_counters_of_its_own() -> None:
    quiet_child("""
import os
import realalloc as ra
arena = ra.Arena("8MiB")
b = arena.budget("b", "64KiB")
with b:
    buf = arena.kmalloc(4096)
    pid = os.fork()
    if pid == 0:
        more = arena.kmalloc(4096)
        assert b.used == 8192
        del buf, more
        assert b.used == 0
        arena.validate()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert b.used == 4096
del buf
assert b.used == 0
arena.validate()
arena.close()
""")


def test_the_interpreter_may_end_in_a_block() -> None:
    quiet_child("""
import realalloc as ra
arena = ra.Arena("8MiB")
b = arena.budget("b")
c = b.budget("c")
cache = arena.kmem_cache("x", 100, budget=c)
c.__enter__()
held = [arena.kmalloc(100), cache.alloc()]
held.append(held)
import warnings
warnings.simplefilter("ignore")
""")
