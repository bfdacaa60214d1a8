"""malloc, calloc, realloc and free by C function pointer, called as C calls them, through ctypes and without the GIL."""

from __future__ import annotations

import ctypes
import gc
import platform
import random
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from checks import unchanged
from support import JIT, run_child

import realalloc as ra
import realalloc.jit
from realalloc.mm import layout

P, N = ctypes.c_void_p, ctypes.c_size_t


class Calls(NamedTuple):
    """The four functions, as Python calls them; NULL is None."""

    malloc: Callable[[int], Any]
    calloc: Callable[[int, int], Any]
    realloc: Callable[[Any, int], Any]
    free: Callable[[Any], None]
    kept: Any


def calls(arena: ra.Arena, *, bound: bool) -> Calls:
    """Make them callable."""
    made = arena.c_functions(bound=bound)
    assert made.context == (0 if bound else arena.address)
    first = () if bound else (made.context,)
    kinds = () if bound else (P,)

    def call(address: int, result: Any, *parameters: Any) -> Callable[..., Any]:
        function = ctypes.CFUNCTYPE(result, *kinds, *parameters)(address)
        return lambda *args: function(*first, *args)

    return Calls(
        call(made.malloc, P, N),
        call(made.calloc, P, N, N),
        call(made.realloc, P, P, N),
        call(made.free, None, P),
        made,
    )


@pytest.fixture(params=[False, True], ids=["context", "bound"])
def c(arena: ra.Arena, request: pytest.FixtureRequest) -> Calls:
    return calls(arena, bound=request.param)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 24, 64, 100, 4096, 8192, 8193, 40_000, 300_000, 6 << 20])
def test_a_block_is_the_callers_until_freed(arena: ra.Arena, c: Calls, size: int) -> None:
    block = c.malloc(size)
    offset = block - arena.address
    assert block % (16 if size > 8 else 8) == 0
    assert ra.jit.ksize(arena.words, offset) >= max(size, 1)
    ctypes.memset(block, 0x5A, size)
    other = c.malloc(size)
    ctypes.memset(other, 0xA5, size)
    assert ctypes.string_at(block, size) == b"\x5a" * size
    c.free(block)
    c.free(other)
    arena.validate()


def test_null_is_freed_as_nothing(arena: ra.Arena, c: Calls) -> None:
    with unchanged(arena):
        c.free(None)
    block = c.malloc(64)
    with unchanged(arena):
        c.free(None)
    c.free(block)


@pytest.mark.parametrize("size", [1, 100, 5000, 100_000])
def test_calloc_reads_as_zero(c: Calls, size: int) -> None:
    for _ in range(3):
        block = c.calloc(3, size)
        assert ctypes.string_at(block, 3 * size) == bytes(3 * size)
        ctypes.memset(block, 0xFF, 3 * size)
        c.free(block)
    empty = c.calloc(0, size)
    assert empty is not None
    c.free(empty)


@pytest.mark.parametrize(
    "factors", [(1 << 32, 1 << 32), (1 << 33, 1 << 31), (3, 1 << 62), (1 << 62, 3), ((1 << 64) - 1, 1)]
)
def test_calloc_refuses_a_product_that_overflows(arena: ra.Arena, c: Calls, factors: tuple[int, int]) -> None:
    with unchanged(arena):
        assert c.calloc(*factors) is None
        assert c.calloc(factors[1], factors[0]) is None


def test_calloc_of_a_large_factor_and_nothing(c: Calls) -> None:
    for factors in ((1 << 32, 0), (0, 1 << 40)):
        block = c.calloc(*factors)
        assert block is not None
        c.free(block)


def test_realloc(arena: ra.Arena, c: Calls) -> None:
    block = c.realloc(None, 100)
    ctypes.memmove(block, bytes(range(100)), 100)
    assert c.realloc(block, 128) == block  # it fits
    assert c.realloc(block, 0) == block
    text = bytes(range(100))
    for size in (200, 5000, 20_000, 1 << 20, 5 << 20):
        moved = c.realloc(block, size)
        assert moved != block
        assert ctypes.string_at(moved, 100) == text
        block = moved
    with unchanged(arena):
        assert c.realloc(block, 1 << 40) is None
        assert c.realloc(block, 1 << 63) is None
    assert ctypes.string_at(block, 100) == text
    c.free(block)


@pytest.mark.parametrize("size", [1 << 30, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_there_is_no_such_memory(arena: ra.Arena, c: Calls, size: int) -> None:
    with unchanged(arena):
        assert c.malloc(size) is None
        assert c.calloc(1, size) is None
        assert c.realloc(None, size) is None


def test_memory_runs_out_and_comes_back(c: Calls) -> None:
    held = []
    while (block := c.malloc(64 << 10)) is not None:
        held.append(block)
    assert len(held) > 200
    while (block := c.malloc(1000)) is not None:
        held.append(block)
    for block in held:
        c.free(block)


@pytest.mark.parametrize("bound", [False, True])
def test_what_is_no_block_is_refused_and_counted(bound: bool) -> None:
    with ra.Arena("16MiB") as arena:
        c = calls(arena, bound=bound)
        block, large = c.malloc(64), c.malloc(100_000)
        foreign = ctypes.create_string_buffer(64)
        wrong = [
            block + 8,
            large + 64,
            arena.address,
            arena.address + 4096,
            ctypes.addressof(foreign),
            8,
            (1 << 64) - 4096,
        ]
        for count, address in enumerate(wrong, 1):
            c.free(address)
            assert c.realloc(address, 1) is None
            assert arena.words[layout.H_BAD_FREES] == count
        c.free(block)
        c.free(large)
        arena.words[layout.H_BAD_FREES] = 0
        arena.validate()
        assert (arena.stats().live_objects, arena.stats().live_blocks) == (0, 0)


def test_blocks_are_those_of_jitted_code(arena: ra.Arena, c: Calls) -> None:
    block = c.malloc(300)
    assert arena.stats().live_objects == 1
    assert ra.jit.kfree(arena.words, block - arena.address) == 0
    offset = ra.jit.kmalloc(arena.words, 300)
    c.free(arena.address + int(offset))
    assert arena.stats().live_objects == 0


@pytest.mark.parametrize("bound", [False, True])
def test_a_closed_arena_has_no_memory_and_stays_mapped(bound: bool) -> None:
    arena = ra.Arena("16MiB")
    c = calls(arena, bound=bound)
    first, second = c.malloc(64), c.malloc(100_000)
    ctypes.memset(first, 7, 64)
    arena.close()
    gc.collect()
    with pytest.raises(ra.ArenaClosed):
        arena.c_functions(bound=bound)
    for size in (1, 64, 100_000, 8 << 20):
        assert c.malloc(size) is None
        assert c.calloc(size, 1) is None
    assert c.realloc(first, 64) == first
    assert c.realloc(first, 5000) is None
    assert ctypes.string_at(first, 64) == b"\7" * 64
    c.free(first)
    c.free(second)
    c.free(None)


def test_the_functions_are_made_once(arena: ra.Arena) -> None:
    with ra.Arena("1MiB") as other:
        here, there = arena.c_functions(), other.c_functions()
        assert (here.malloc, here.calloc, here.realloc, here.free) == (
            there.malloc,
            there.calloc,
            there.realloc,
            there.free,
        )
        assert here.context != there.context
        mine = arena.c_functions(bound=True)
        assert repr(mine) == repr(arena.c_functions(bound=True))
        assert mine.malloc != other.c_functions(bound=True).malloc


def test_threads(arena: ra.Arena, c: Calls) -> None:
    errors: list[str] = []
    handed: list[int] = []  # freed by another thread

    def work(seed: int) -> None:
        rng = random.Random(seed)
        live: dict[int, bytes] = {}
        for k in range(600 if JIT else 150):
            size = rng.choice((8, 24, 64, 500, 3000, 20_000))
            block = c.malloc(size)
            mark = seed.to_bytes(4, "little") + k.to_bytes(4, "little")
            ctypes.memmove(block, mark, 8)
            live[block] = mark
            if len(live) > 40:
                block, mark = live.popitem()
                if ctypes.string_at(block, 8) != mark:
                    errors.append("somebody else wrote here")
                handed.append(block)
            if rng.random() < 0.5 and handed:
                c.free(handed.pop())
        for block, mark in live.items():
            if ctypes.string_at(block, 8) != mark:
                errors.append("somebody else wrote here")
            c.free(block)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for block in handed:
        c.free(block)
    assert not errors
    arena.validate()


kept = pytest.mark.skipif(
    not JIT or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="no thread keeps its slot"
)


@kept
def test_threads_keep_their_slots_as_long_as_they_have_them() -> None:
    code = """
import ctypes, threading, time, realalloc as ra
from realalloc.lease.threadword import _load
from realalloc.mm import layout as at
arena = ra.Arena("64MiB")
made = arena.c_functions(bound=True)
malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.free)
words = arena.words
where = int(words[at.KEPT_AT])
def work(seen):
    seen.append(_load(where))
    for _ in range(100):
        free(malloc(64))
    slot = at.NOBODY + _load(where)
    seen.append(int(words[slot + at.T_KEY]) == threading.get_ident() and slot >= at.THREADS)
    arena.validate()
    seen.append(slot)
mine, slots = [], set()
work(mine)
for _ in range(100):
    seen = []
    thread = threading.Thread(target=work, args=(seen,))
    thread.start()
    thread.join()
    assert seen[:2] == [0, True], seen
    slots.add(seen[2])
assert mine[:2] == [0, True], mine
assert mine[2] not in slots
while words[at.H_NR_SLOTS] != 1:  # destructors run after Python has let go of a thread
    time.sleep(0.001)
print(words[at.H_BAD_FREES], arena.stats().live_objects)
ctypes.c_int64.from_address(threading.get_ident() + where).value += 8
try:
    arena.validate()
except ra.CorruptionError as error:
    print("found")
ctypes.c_int64.from_address(threading.get_ident() + where).value -= 8
arena.validate()
"""
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "0 0\nfound\n"), done.stderr


@pytest.mark.skipif(not JIT, reason="a destructor has no GIL")
def test_destructors_of_threads_may_free_and_allocate_before_and_after_ours() -> None:
    code = """
import ctypes, threading, time, realalloc as ra
from realalloc.mm import layout as at
libc = ctypes.CDLL(None)
libc.pthread_setspecific.argtypes = [ctypes.c_uint, ctypes.c_void_p]
def key(destructor):
    made = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(made), ctypes.c_void_p(destructor)) == 0
    return made.value
with ra.Arena("64MiB") as first:
    before = first.c_functions(bound=True)  # and its keys
    arena = ra.Arena("64MiB")
    made = arena.c_functions(bound=True)
    keys = [key(made.free) for _ in range(40)]  # some of them behind the 32 that are in the thread's descriptor
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
    free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.free)
    takes = key(made.malloc)  # a destructor that allocates: its argument is a size
    def work():
        for _ in range(3):
            blocks = [malloc(64) for _ in range(100)]
            for block in blocks:
                free(block)
        for one in keys:
            libc.pthread_setspecific(one, malloc(64))
        libc.pthread_setspecific(takes, 64)
    for _ in range(30):
        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    while arena.stats().live_objects != 300:  # destructors run after Python has let go of a thread
        time.sleep(0.01)
    arena.validate()
    first.validate()
    print(arena.words[at.H_BAD_FREES])
"""
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@kept
def test_a_child_of_a_fork_keeps_the_slot_of_its_only_thread() -> None:
    code = """
import ctypes, os, threading, realalloc as ra
arena = ra.Arena("64MiB")
made = arena.c_functions(bound=True)
malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.free)
stop = threading.Event()
def work():
    while not stop.is_set():
        for block in [malloc(64) for _ in range(150)]:
            free(block)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for block in [malloc(64) for _ in range(150)]:
    free(block)
codes = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        stop.set()
        for _ in range(3):
            work_here = threading.Thread(target=lambda: [free(malloc(64)) for _ in range(300)])
            work_here.start()
            for block in [malloc(64) for _ in range(300)]:
                free(block)
            work_here.join()
        arena.validate()
        os._exit(0)
    codes.append(os.waitpid(pid, 0)[1])
stop.set()
for thread in threads:
    thread.join()
arena.validate()
print(codes, arena.stats().live_objects)
"""
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "[0, 0, 0, 0, 0] 0\n"), done.stderr


def test_a_process_may_end_while_they_are_in_use() -> None:
    code = """
import ctypes, realalloc as ra
arena = ra.Arena("16MiB")
made = arena.c_functions(bound=True)
malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
print(malloc(64) is not None)
arena.close()
"""
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
