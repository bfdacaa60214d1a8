"""NumPy's arrays in an arena: blocks, the whole process, lifetimes, budgets, threads, children.

Without machine code there is no hook to give NumPy: a Python callback may not run where NumPy allocates. That leg checks the
refusal alone.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import tracemalloc
from typing import Any

import numpy as np
import psutil
import pytest
from checks import quiet_child
from support import JIT, MIB, PAGE

import realalloc as ra
import realalloc.context
import realalloc.numpy
from realalloc.context import hook

needs_jit = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")


def name(array: np.ndarray) -> str:
    return str(np._core.multiarray.get_handler_name(array))


@pytest.mark.skipif(JIT, reason="with machine code it works")
def test_without_machine_code_it_is_refused(arena: ra.Arena) -> None:
    for call in (arena.numpy, lambda: arena.empty(3), lambda: ra.numpy.install(arena)):
        with pytest.raises(RuntimeError, match="machine code"):
            call()
    assert name(np.empty(3)) == "default_allocator"


@needs_jit
def test_a_block(arena: ra.Arena) -> None:
    before = np.arange(4.0)
    with arena.numpy() as handler:
        a = np.arange(1000.0)
        b = a * 2 + before[0]
        assert arena.owns(a)
        assert arena.owns(b[10:20])
        assert name(b) == "realalloc"
    c = a + b
    assert not arena.owns(c)
    assert name(c) == "default_allocator"
    assert handler.stats().live == 2
    assert arena.stats().leases == 1  # the handler, as long as an array has it
    del a, b
    assert handler.stats().live == 0
    assert handler.stats().as_dict()["allocations"] == handler.stats().frees
    assert arena.stats().leases == 0


@needs_jit
def test_blocks_nest(arena: ra.Arena) -> None:
    with ra.Arena("16MiB") as other, arena.numpy():
        with other.numpy() as inner:
            a = np.ones(3)
            with arena.numpy():
                pass
            assert other.owns(np.ones(3))
            assert inner.stats().live == 1
        assert other.owns(a)
        assert arena.owns(np.ones(3))
        del a


@needs_jit
def test_a_block_that_is_not_the_innermost_is_not_left(arena: ra.Arena) -> None:
    outer, inner = arena.numpy(), arena.numpy()
    with pytest.raises(RuntimeError, match="innermost"):
        outer.__exit__(None, None, None)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="innermost"):
        outer.__exit__(None, None, None)
    assert arena.owns(np.ones(3))
    inner.__exit__(None, None, None)
    outer.__exit__(None, None, None)
    assert not arena.owns(np.ones(3))


@needs_jit
def test_an_exception_leaves_the_blocks_inside_that_were_not_left(arena: ra.Arena) -> None:
    with ra.Arena("16MiB") as other:
        with other.numpy():
            with pytest.raises(KeyboardInterrupt), arena.numpy():
                other.numpy().__enter__()  # as if the Ctrl-C came before its __exit__ began
                arena.numpy(align=4096).__enter__()
                raise KeyboardInterrupt
            assert other.owns(np.ones(3))
        assert not other.owns(np.ones(3))
        stranger = arena.numpy()
        with other.numpy():
            with pytest.raises(RuntimeError, match="innermost"):
                stranger.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            assert other.owns(np.ones(3))


@needs_jit
def test_threads_and_tasks_have_their_own(arena: ra.Arena) -> None:
    seen: list[bool] = []

    async def task(*, inside: bool) -> None:
        if inside:
            with arena.numpy():
                await asyncio.sleep(0)
                seen.append(arena.owns(np.ones(3)))
        else:
            await asyncio.sleep(0)
            seen.append(not arena.owns(np.ones(3)))

    async def both() -> None:
        await asyncio.gather(task(inside=True), task(inside=False), task(inside=True))

    asyncio.run(both())
    with arena.numpy():
        thread = threading.Thread(target=lambda: seen.append(not arena.owns(np.ones(3))))
        thread.start()
        thread.join()
    assert seen == [True] * 4


@needs_jit
@pytest.mark.parametrize("align", [16, 32, 64, 128, 4096, 65536, 2 * MIB])
def test_alignment(align: int) -> None:
    with ra.Arena("64MiB", max_order=4) as arena:
        for size in (1, 33, 65, 100, 129, 1000, 4096, 5000, 9000, 70_000, 300_000, 3 * MIB):
            for make in (arena.empty, arena.zeros):
                a = make(size, np.uint8, align=align)
                assert a.ctypes.data % align == 0
                assert size < PAGE or a.ctypes.data % 64 == 0
        with arena.numpy(align=align):
            grown = np.ones(3, np.uint8)
            for size in (70, 5000, 70_000, 3 * MIB, 10, 6 * MIB):
                grown.resize(size, refcheck=False)
                assert grown.ctypes.data % align == 0
        del a, grown
        arena.validate()


@needs_jit
def test_bad_arguments(arena: ra.Arena) -> None:
    for align in (8, 24, 4 * MIB, 0, -64):
        with pytest.raises(ValueError, match="align"):
            arena.numpy(align=align)
    for wrong in (64.0, True, None):
        with pytest.raises(TypeError, match="align"):
            arena.numpy(align=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="owns"):
        arena.owns(b"bytes")
    for shape in (1 << 62, 1 << 59, (1 << 31, 1 << 31), 1 << 40):
        with pytest.raises((MemoryError, ValueError)):
            arena.empty(shape)
        with pytest.raises((MemoryError, ValueError)):
            arena.zeros(shape)
    assert arena.stats().leases == 0


@needs_jit
def test_resize_keeps_contents(arena: ra.Arena) -> None:
    with arena.numpy() as handler:
        a = np.arange(10, dtype=np.uint8)
    for size in (20, 200, 5000, 100_000, MIB, 5 * MIB, 7 * MIB, 100, 10):
        a.resize(size, refcheck=False)
        assert (a[:10] == range(10)).all()
        assert not a[10:].any()
        assert arena.owns(a)
        arena.validate()
    stats = handler.stats()
    assert stats.reallocations == 9
    assert 0 < stats.in_place < 9
    with pytest.raises(MemoryError):
        a.resize(1 << 40, refcheck=False)
    assert (a == range(10)).all()
    del a


@needs_jit
def test_zeros_are_zero_and_fresh_ones_are_not_touched() -> None:
    with ra.Arena("160MiB") as arena:
        before = psutil.Process().memory_info().rss
        a = arena.zeros(64 * MIB, np.uint8)
        assert psutil.Process().memory_info().rss - before < 16 * MIB
        assert not a[:: PAGE // 2].any()
        del a
        for size in (100, 5000, 100_000, MIB, 64 * MIB):
            for _ in range(2):
                a = arena.full(size, 255, np.uint8)
                del a
                assert not arena.zeros(size, np.uint8).any()


@needs_jit
def test_over_budget_is_numpys_memory_error() -> None:
    with ra.Arena("64MiB", limit="8MiB") as arena:
        handler = arena.numpy()
        with handler, pytest.raises(np._core._exceptions._ArrayMemoryError):
            np.empty(16 * MIB, np.uint8)
        assert handler.stats().refused == 1
        fallback = arena.numpy(fallback=True)
        with fallback:
            kept = [np.full(MIB, k, np.uint8) for k in range(20)]
            zeros = np.zeros(16 * MIB, np.uint8)
            inside = [arena.owns(a) for a in kept]
            assert True in inside
            assert False in inside
            assert not arena.owns(zeros)
            assert not zeros.any()
            kept[0].resize(20 * MIB, refcheck=False)  # from the arena to the default handler
            kept[-1].resize(2 * MIB, refcheck=False)  # and one that was there from the beginning
        assert not arena.owns(kept[0])
        assert (kept[0][:MIB] == 0).all()
        assert all((a[:MIB] == k).all() for k, a in enumerate(kept))
        assert fallback.stats().fallbacks > 3
        del kept, zeros
        gc.collect()
        assert fallback.stats().live == 0
        arena.validate()


@needs_jit
def test_arrays_outlive_a_closed_arena() -> None:
    arena = ra.Arena("16MiB")
    handler = arena.numpy()
    with handler:
        small, large = np.arange(10), np.ones(MIB, np.uint8)
        with pytest.warns(ResourceWarning, match="live leases"):
            arena.close()
        with pytest.raises(MemoryError):
            np.empty(10)
        with pytest.raises(MemoryError):
            np.empty(MIB)
    with pytest.raises(ra.ArenaClosed), handler:
        pass
    with pytest.raises(ra.ArenaClosed):
        arena.numpy()
    with pytest.raises(MemoryError):
        small.resize(10_000, refcheck=False)
    assert (small == range(10)).all()
    assert large.sum() == MIB
    assert (pickle.loads(pickle.dumps(small)) == small).all()
    del small, large
    assert handler.stats().live == 0


@needs_jit
def test_the_whole_process(arena: ra.Arena) -> None:
    handler = ra.numpy.install(arena, align=64)
    try:
        assert ra.numpy.installed() is handler
        with pytest.raises(RuntimeError, match="installed already"):
            ra.numpy.install(arena)
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(arena.owns(np.ones(3))))
        thread.start()
        thread.join()
        a = np.ones(100)
        assert seen == [True]
        assert arena.owns(a)
        with ra.Arena("1MiB") as other, other.numpy():
            assert other.owns(np.ones(3))
        assert arena.owns(np.ones(3))
    finally:
        ra.numpy.uninstall()
    with pytest.raises(RuntimeError, match="not installed"):
        ra.numpy.uninstall()
    assert ra.numpy.installed() is None
    b = np.ones(100)
    assert name(b) == "default_allocator"
    a.resize(5000, refcheck=False)
    assert arena.owns(a)
    del a


@needs_jit
def test_installing_under_another_handler_puts_that_back(arena: ra.Arena) -> None:
    with ra.Arena("16MiB") as other, other.numpy():
        ra.numpy.install(arena)
        assert arena.owns(np.ones(3))
        ra.numpy.uninstall()
        assert other.owns(np.ones(3))
    assert name(np.ones(3)) == "default_allocator"


@needs_jit
def test_tracemalloc_sees_the_arrays(arena: ra.Arena) -> None:
    tracemalloc.start()
    try:
        a = arena.empty(MIB, np.uint8)
        numpy_only = [tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)]
        traces = tracemalloc.take_snapshot().filter_traces(numpy_only).traces
        assert MIB in [trace.size for trace in traces]
        del a, traces
    finally:
        tracemalloc.stop()


class Ringing:
    """A context variable after whose first assignment a Ctrl-C comes."""

    def __init__(self, variable: Any) -> None:
        self.variable, self.get, self.left = variable, variable.get, 1

    def set(self, value: Any) -> Any:
        token = self.variable.set(value)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return token


@needs_jit
def test_an_interrupt_as_a_block_is_entered_or_left_leaves_it(arena: ra.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("__enter__", "__exit__"):
        context = arena.numpy()
        arguments = (None, None, None) if method == "__exit__" else ()
        if arguments:
            context.__enter__()
        with monkeypatch.context() as patch:
            patch.setattr("realalloc.context._entered", Ringing(realalloc.context._entered))
            with pytest.raises(KeyboardInterrupt):
                getattr(context, method)(*arguments)
        assert not arena.owns(np.ones(3))
        with pytest.raises(RuntimeError, match="innermost"):
            context.__exit__(None, None, None)


@needs_jit
def test_threads(arena: ra.Arena) -> None:
    wrong: list[str] = []
    handed: list[np.ndarray] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with arena.numpy(fallback=True):
            for k in range(200):
                a = np.full(int(rng.integers(1, 30_000)), seed * 1000 + k)
                b = np.sort(a * 2)
                if not (b == (seed * 1000 + k) * 2).all():
                    wrong.append("somebody else wrote here")
                handed.append(a)
                if len(handed) > 10:
                    handed.pop(0)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handed.clear()
    assert not wrong
    arena.validate()


@needs_jit
def test_the_hook_is_found_without_leaving_traces() -> None:
    import contextvars

    assert hook().variable.name == "current_allocator"
    assert contextvars.copy_context().get(hook().variable) is None


CHILDREN = {
    "arrays at exit": "a = arena.zeros(1000); b = arena.ones(1 << 20); arena = None",
    "a block that never ends": "arena.numpy().__enter__(); a = np.ones(1 << 18)",
    "installed at exit": "import realalloc.numpy; ra.numpy.install(arena); a = [np.ones(k) for k in range(100)]",
    "a cycle at exit": "a = np.empty(1, object); b = arena.empty(1, object); a[0] = b; b[0] = a; sys.kept = a",
    "an array in builtins": "import builtins; builtins.kept = arena.ones(100_000)",
    "a daemon thread": """
import threading
def work():
    with arena.numpy():
        while True:
            np.ones(3000) * 2
threading.Thread(target=work, daemon=True).start()
""",
    "fork": """
a = arena.ones(1000); b = arena.ones(1 << 20)
pid = os.fork()
with arena.numpy():
    c = a + a; d = b * 2
assert c.sum() == 2000 and d.sum() == 2 << 20
del a, b, c, d
arena.validate()
if pid: assert os.waitpid(pid, 0)[1] == 0
""",
}


@needs_jit
@pytest.mark.parametrize("name", CHILDREN)
def test_a_process_may_end_at_any_time(name: str) -> None:
    head = "import os, sys, numpy as np, realalloc as ra\narena = ra.Arena('64MiB')\nprint('ok', flush=True)\n"
    options = ("-W", "ignore::ResourceWarning", "-W", "ignore::DeprecationWarning")
    fresh = name in ("installed at exit", "a cycle at exit", "a daemon thread")  # the others are forked
    quiet_child(head + CHILDREN[name], *options, expect="ok", fresh=fresh)
