"""Watermarks for Python: the option, who gets how far, waits that do not fail, kswapd, forks, the kernel's text."""

from __future__ import annotations

import gc
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from checks import Worker, eventually, exhaust, quiet_child, refuses
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from support import JIT, MIB, PAGE

import realalloc as ra
from realalloc import jit
from realalloc.mm import layout
from realalloc.mm.atomic import atomic_load
from realalloc.watermark import as_min_free, auto_pages, marks_of
from realalloc.zones import zone_free_pages, zone_pages

NOFAIL = ra.GFP_KERNEL | ra.GFP_NOFAIL


def free(arena: ra.Arena) -> int:
    return zone_free_pages(arena.words, layout.ZONE_NORMAL)


def fill(arena: ra.Arena, gfp: int = ra.GFP_KERNEL) -> list[Any]:
    return exhaust(lambda: arena.alloc_pages(0, gfp))


# -- marks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "marks"), [
    (256 * MIB, (512, 640, 768)), (1024 * MIB, (1024, 1286, 1548)), (16 * MIB, (128, 160, 192)), (MIB, (32, 40, 48)),
    (128 * 1024 * MIB, (11585, 11585 + 33554, 11585 + 2 * 33554)), (1 << 50, (65536, None, None)),
])  # fmt: skip
def test_auto_is_the_kernels_formula(size: int, marks: tuple[int, ...]) -> None:
    made = marks_of("auto", size // PAGE)
    assert [got for got, wanted in zip(made, marks, strict=True) if wanted is not None] == [
        m for m in marks if m is not None
    ]


@given(st.integers(1, 1 << 40), st.one_of(st.just("auto"), st.integers(0, 1 << 40)))
def test_marks_are_in_order_and_leave_something(managed: int, wanted: int | str) -> None:
    try:
        lowest, low, high = marks_of(wanted, managed)
    except ValueError:
        assert wanted != "auto" or managed < 16
        return
    assert 0 <= lowest <= low <= high < managed
    assert wanted == "auto" or lowest == wanted
    assert (lowest == 0) == (high == 0)


@pytest.mark.parametrize(("value", "pages"), [(0, 0), (1, 1), (4096, 1), ("4MiB", 1024), (np.int64(8192), 2)])
def test_bytes_are_whole_pages(value: Any, pages: int) -> None:
    assert as_min_free(value) == pages and as_min_free(" Auto ") == "auto"


@pytest.mark.parametrize(("value", "error"), [
    (-1, ValueError), ("much", ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError), ("1MiB", ValueError),
    ("900KiB", ValueError), (1 << 62, ValueError),
])  # fmt: skip
def test_what_is_no_reserve_is_refused_before_anything_is_mapped(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="min_free"):
        ra.Arena(MIB, min_free=value)
    with ra.Arena(MIB, min_free=8 * PAGE) as arena:
        before = arena.zoneinfo()
        with pytest.raises(error, match="min_free"):
            arena.set_min_free(value)
        assert arena.zoneinfo() == before


def test_the_tiniest_arena_may_have_auto() -> None:
    with ra.Arena("256KiB", min_free="auto") as arena:
        assert 0 < arena.stats().min_free < arena.stats().high_free < arena.stats().free


def test_marks_are_in_stats_and_in_the_kernels_columns() -> None:
    with ra.Arena("16MiB", lock="64KiB", min_free="1MiB") as arena:
        stats = arena.stats()
        assert (stats.min_free, stats.low_free, stats.high_free) == (MIB, MIB * 5 // 4, MIB * 3 // 2)
        text = arena.zoneinfo()
        assert [line for line in text.splitlines() if "zone" in line] == [
            "Node 0, zone      DMA",
            "Node 0, zone   Normal",
        ]
        normal = text.partition("Normal\n")[2]
        found = {name: int(value) for name, value in re.findall(r"^ +(?:pages )?(\w+):? +(\d+)$", normal, re.MULTILINE)}
        pages = zone_pages(arena.words, layout.ZONE_NORMAL)
        assert found == {
            "free": pages, "min": 256, "low": 320, "high": 384, "spanned": pages, "present": pages, "managed": pages,
            "start_pfn": 16 * MIB // PAGE - pages,
        }  # fmt: skip
        assert re.search(r"min +0\n +low +0\n +high +0\n", text.partition("Normal")[0]), "the locked zone has none"


def test_auto_follows_the_limit_and_bytes_stay() -> None:
    with ra.Arena("256MiB", min_free="auto") as arena:
        whole = arena.stats().min_free
        arena.set_limit("16MiB")
        assert arena.stats().min_free == auto_pages(16 * MIB // PAGE) * PAGE == 128 * PAGE < whole
        arena.set_limit(None)
        assert arena.stats().min_free == whole
        arena.set_min_free("2MiB")
        arena.set_limit("4MiB")
        assert arena.stats().min_free == 2 * MIB
        with pytest.raises(ValueError, match="min_free=2 MiB leaves nothing"):
            arena.set_limit("3MiB")
        assert arena.stats().limit == 4 * MIB
        arena.set_min_free(0)
        arena.set_limit("3MiB")
        assert arena.stats().high_free == 0
        arena.validate()


def test_the_default_arena_takes_it_from_the_environment() -> None:
    code = "import realalloc as ra; print(ra.default_arena().stats().min_free); ra.default_arena().close()"
    quiet_child(code, env={"REALALLOC_SIZE": "16MiB", "REALALLOC_MIN_FREE": "1MiB"}, expect=str(MIB))


# -- who gets how far --------------------------------------------------------------------------------------------------------


def test_the_reserve_is_given_out_to_the_page() -> None:
    with ra.Arena("16MiB", min_free="1MiB", kswapd=False) as arena:
        held = fill(arena)
        assert free(arena) == 256
        high = fill(arena, ra.GFP_KERNEL | ra.GFP_HIGH)
        assert (len(high), free(arena)) == (128, 128)
        high.clear()
        atomic = fill(arena, ra.GFP_ATOMIC)
        assert (len(atomic), free(arena)) == (160, 96)
        assert len(fill(arena, ra.GFP_MEMALLOC | ra.GFP_NOMEMALLOC)) == 0
        last = fill(arena, ra.GFP_MEMALLOC)
        assert (len(last), free(arena)) == (96, 0)
        arena.validate()
        del held, atomic, last


@pytest.mark.parametrize(
    "kind", ["kmalloc", "large", "cache", "ctor", "vmalloc", "exact", "bulk", "jit", "budget"] + ["array"] * JIT
)
def test_every_ordinary_request_stops_at_min(kind: str) -> None:
    with ra.Arena("16MiB", min_free="1MiB", kswapd=False) as arena:
        cache = arena.kmem_cache("c", 3000, ctor=(lambda view: None) if kind == "ctor" else None)
        budget = arena.budget("b")

        def charged() -> Any:
            with budget:
                return arena.kmalloc(5000)

        def array() -> Any:
            try:
                return arena.zeros(1000)
            except MemoryError:  # numpy's own
                raise ra.OutOfMemory from None

        def jitted() -> int:
            offset = jit.kmalloc(arena.words, 3000)
            if offset == 0:
                raise ra.OutOfMemory("none")
            return int(offset)

        verbs: dict[str, Any] = {
            "kmalloc": lambda: arena.kmalloc(3000), "large": lambda: arena.kmalloc(9000), "cache": cache.alloc,
            "ctor": cache.alloc,
            "vmalloc": lambda: arena.vmalloc(15 * PAGE), "exact": lambda: arena.alloc_pages_exact(4 * PAGE),
            "bulk": lambda: arena.alloc_pages_bulk(8) or exhausted(), "array": array, "jit": jitted,
            "budget": charged,
        }  # fmt: skip
        held = exhaust(verbs[kind])
        assert 256 <= free(arena) < 256 + 15
        assert arena.kmalloc(9000, ra.GFP_ATOMIC).nbytes == 9000 and free(arena) < 256 + 11
        arena.validate()
        if kind == "jit":
            assert all(jit.kfree(arena.words, offset) == 0 for offset in held)
        held.clear()
        gc.collect()
        cache.destroy()
        budget.close()
        arena.validate()


def exhausted() -> None:
    raise ra.OutOfMemory("none")


def test_what_refused_is_named() -> None:
    with ra.Arena("16MiB", min_free="1MiB") as arena:
        held = fill(arena)
        said = refuses(arena, ra.OutOfMemory, "below the min watermark of 256 pages", arena.alloc_pages, 0)
        assert "GFP_ATOMIC may use some, or lower min_free=" in said
        more = fill(arena, ra.GFP_ATOMIC)
        said = refuses(arena, ra.OutOfMemory, "these flags may use 160", arena.alloc_pages, 0, ra.GFP_ATOMIC)
        assert "GFP_ATOMIC may" not in said
        arena.set_min_free(0)
        more += fill(arena)
        assert "watermark" not in refuses(arena, ra.OutOfMemory, "free", arena.alloc_pages, 0)
        del held, more


def test_what_a_thread_keeps_is_served_below_the_marks() -> None:
    with ra.Arena("16MiB", min_free="1MiB", kswapd=False) as arena:
        kept = arena.kmalloc(200)
        held = fill(arena, ra.GFP_MEMALLOC)
        assert free(arena) == 0
        again = [arena.kmalloc(200, ra.GFP_NOWAIT)]  # of the slab that is there
        refuses(arena, ra.OutOfMemory, "below the min", arena.kmalloc, 9000, ra.GFP_NOWAIT)
        del kept, held, again


def test_flags_that_mean_nothing_together_are_refused() -> None:
    with ra.Arena(MIB) as arena:
        cache = arena.kmem_cache("c", 100)
        for call in (arena.kmalloc, arena.vmalloc, arena.kvmalloc, arena.kzalloc, arena.alloc_pages_exact):
            with pytest.raises(ValueError, match="GFP_NOFAIL waits"):
                call(100, ra.GFP_NOWAIT | ra.GFP_NOFAIL)
        with pytest.raises(ValueError, match="GFP_NOFAIL waits"):
            cache.alloc(ra.GFP_ATOMIC | ra.GFP_NOFAIL)
        with pytest.raises(ValueError, match="unknown bits: 0x40000"):
            arena.kmalloc(100, 0x40000)
        cache.destroy()


# -- waiting -----------------------------------------------------------------------------------------------------------------

WAITS: dict[str, Any] = {
    "kmalloc": lambda arena, cache: arena.kmalloc(3000, NOFAIL),
    "large": lambda arena, cache: arena.kmalloc(9000, NOFAIL),
    "pages": lambda arena, cache: arena.alloc_pages(1, NOFAIL),
    "exact": lambda arena, cache: arena.alloc_pages_exact(3 * PAGE, NOFAIL),
    "vmalloc": lambda arena, cache: arena.vmalloc(3 * PAGE, NOFAIL),
    "cache": lambda arena, cache: cache.alloc(NOFAIL),
}


@pytest.mark.parametrize("min_free", [0, "512KiB"])
@pytest.mark.parametrize("kind", WAITS)
def test_nofail_waits_until_another_thread_frees(kind: str, min_free: int | str) -> None:
    with ra.Arena("4MiB", min_free=min_free) as arena:
        cache = arena.kmem_cache("c", 3000, ctor=lambda view: None)
        held = fill(arena, ra.GFP_KERNEL | ra.GFP_HIGH)
        waiter = Worker(lambda: WAITS[kind](arena, cache))
        waiter.join(0.1)
        assert waiter.is_alive()
        del held[:64]
        found = waiter.result()
        assert found is not None
        del found, held
        gc.collect()
        cache.destroy()
        arena.validate()


def test_nofail_that_could_never_be_served_fails_at_once() -> None:
    with ra.Arena("4MiB", min_free="512KiB", max_order=4) as arena:
        for call in (
            lambda: arena.kmalloc(4 * MIB, NOFAIL),
            lambda: arena.vmalloc(4 * MIB - 300 * 1024, NOFAIL),
            lambda: arena.alloc_pages_exact(4 * MIB, NOFAIL),
            lambda: arena.kmalloc(100, NOFAIL | ra.GFP_DMA),
        ):
            with pytest.raises(ra.OutOfMemory):
                call()
        budget = arena.budget("b", limit="64KiB")
        with budget, pytest.raises(ra.OutOfMemory, match="budget 'b'"):
            arena.kmalloc(65 * 1024, NOFAIL)
        budget.close()


def test_nofail_waits_for_a_budget_too() -> None:
    with ra.Arena("4MiB") as arena, arena.budget("b", limit="64KiB") as _budget:
        held = [arena.kmalloc(60_000)]
        timer = threading.Timer(0.1, held.clear)
        timer.start()
        assert arena.kmalloc(50_000, NOFAIL).nbytes == 50_000
        timer.join()


def test_nofail_ends_when_the_arena_closes() -> None:
    arena = ra.Arena("4MiB")
    held = fill(arena)
    waiter = Worker(lambda: arena.alloc_pages(0, NOFAIL))
    waiter.join(0.05)
    with pytest.warns(ResourceWarning, match="live leases"):
        arena.close()
    with pytest.raises(ra.ArenaClosed):
        waiter.result()
    del held


def test_a_ctrl_c_ends_the_wait() -> None:
    quiet_child(
        """
import _thread, threading, realalloc as ra
arena = ra.Arena('4MiB', min_free='512KiB')
cache = arena.kmem_cache('c', 3000)
held = []
try:
    while True: held.append(arena.alloc_pages(0, ra.GFP_KERNEL | ra.GFP_HIGH))
except ra.OutOfMemory: pass
for call in (lambda gfp: arena.kmalloc(9000, gfp), cache.alloc, lambda gfp: arena.vmalloc(9000, gfp)):
    threading.Timer(0.1, _thread.interrupt_main).start()
    try: call(ra.GFP_KERNEL | ra.GFP_NOFAIL)
    except KeyboardInterrupt: print('interrupted')
    else: print('served')
    arena.validate()
held.clear()
cache.destroy(); arena.validate(); arena.close()
""",
        expect="interrupted\ninterrupted\ninterrupted",
    )


def test_nofail_asks_the_shrinkers() -> None:
    with ra.Arena("4MiB", min_free="512KiB") as arena:
        held: list[Any] = []

        def scan(number: int) -> int:
            freed = min(number, len(held))
            del held[:freed]
            return freed

        with arena.register_shrinker(lambda: len(held), scan):
            held += fill(arena, ra.GFP_NOWAIT)
            assert arena.kmalloc(100_000, NOFAIL).nbytes == 100_000
        held.clear()


def test_nofail_in_a_shrinker_fails_at_once_and_so_does_a_bulk_that_could_never_be() -> None:
    with ra.Arena("4MiB") as arena:
        held: list[Any] = []
        said: list[str] = []

        def scan(_number: int) -> int:
            for call in (lambda: arena.kmalloc(50_000, NOFAIL), lambda: cache.alloc(NOFAIL)):
                try:
                    call()
                except ra.OutOfMemory as error:
                    said.append(str(error))
            freed = len(held)
            held.clear()
            return freed

        cache = arena.kmem_cache("c", 3000)
        with arena.register_shrinker(lambda: len(held), scan, 0):
            held += fill(arena, ra.GFP_NOWAIT)
            assert arena.kmalloc(100_000).nbytes == 100_000 and len(said) == 2
        with pytest.raises(ra.OutOfMemory):
            cache.alloc_bulk(10_000, NOFAIL)
        pages = arena.alloc_pages_bulk(10_000, NOFAIL)
        assert 900 < len(pages) < 1024
        del pages
        cache.destroy()


def test_retry_mayfail_asks_the_shrinkers_for_a_contiguous_block() -> None:
    for extra, asked in ((0, False), (ra.GFP_RETRY_MAYFAIL, True)):
        with ra.Arena("4MiB", max_order=4) as arena:
            pages = fill(arena)
            pages.sort(key=lambda page: page.pfn)
            images = [page for page in pages if page.pfn % 2]  # every second page: no block of two is left
            calls: list[int] = []

            def scan(number: int, images: list[Any] = images, calls: list[int] = calls) -> int:
                calls.append(number)
                freed = min(number, len(images))
                del images[:freed]
                return freed

            pages = [page for page in pages if not page.pfn % 2]
            for _ in range(10):
                images.pop()
            with arena.register_shrinker(lambda images=images: len(images), scan):
                buf = arena.kvmalloc(8192, ra.GFP_KERNEL | extra)
                assert bool(calls) == asked and buf.nbytes == 8192
            pages.clear()
            images.clear()
            buf.release()


@pytest.mark.skipif(not JIT, reason="without machine code it sleeps with the GIL")
def test_jitted_code_waits_without_the_gil() -> None:
    with ra.Arena("4MiB", min_free="512KiB") as arena:
        held = fill(arena, ra.GFP_KERNEL | ra.GFP_HIGH)
        timer = threading.Timer(0.1, held.clear)
        timer.start()
        offset = wait_for(arena.words, 9000)
        assert offset > 0
        timer.join()
        assert jit.kfree(arena.words, offset) == 0
        assert wait_for(arena.words, 5 * MIB) == jit.NULL, "never"


@njit(nogil=True)
def wait_for(words, nbytes):
    """Take a block, however long that takes."""
    return jit.kmalloc(words, nbytes, jit.GFP_KERNEL | jit.GFP_NOFAIL)


# -- threads, forks, kswapd -------------------------------------------------------------------------------------------------


@njit(nogil=True)
def fight(words, seed, gfp, rounds, held):
    """Take and free blocks at random, then free all; return how often there was none."""
    state = np.int64(seed)
    refused = 0
    for k in range(rounds + held.size):
        state = (state * 1103515245 + 12345) % 2147483648
        slot = (state >> 8) % held.size if k < rounds else k - rounds
        if held[slot] != 0:
            jit.kfree(words, held[slot])
            held[slot] = 0
        elif k < rounds:
            held[slot] = jit.kmalloc(words, 4096 + (state >> 16) % 60000, gfp)
            refused += held[slot] == 0
    return refused


@njit(nogil=True)
def watch(words, stop, at):
    """Look at the free pages, again and again; return the fewest that were seen."""
    fewest = np.int64(1) << 40
    while atomic_load(stop, 0) == 0:
        fewest = min(fewest, words[at[0]] + words[at[1]] - words[at[2]])
    return fewest


@pytest.mark.skipif(not JIT, reason="four threads that run at once")
@pytest.mark.parametrize(("gfp", "mark"), [(ra.GFP_KERNEL, 512), (ra.GFP_ATOMIC, 192), (ra.GFP_NOWAIT, 512)])
def test_four_threads_never_take_free_pages_below_their_tier(gfp: int, mark: int) -> None:
    z = layout.ZONES + layout.ZONE_NORMAL * layout.ZONE_WORDS
    at = np.array([z + layout.Z_FREE_PAGES, z + layout.Z_END_PFN, z + layout.Z_FRONTIER_PFN])
    with ra.Arena("16MiB", min_free="2MiB", huge_pages=False) as arena:
        stop = np.zeros(1, np.int64)
        arena.alloc_pages(10)  # the frontier moves in steps that are no step of the lock's: it shall be at its end
        held = [arena.alloc_pages(9) for _ in range(6)]
        held += [arena.alloc_pages(8, ra.GFP_MEMALLOC) for _ in range(3)]
        held.clear()
        watcher = Worker(lambda: watch(arena.words, stop, at))
        fighters = [
            Worker(lambda n=n: fight(arena.words, n, gfp, 1_000_000, np.zeros(1200, np.int64))) for n in range(4)
        ]
        refused = sum(fighter.result() for fighter in fighters)
        stop[0] = 1
        assert refused > 0, "it was never short"
        assert watcher.result() >= mark
        arena.validate()
        arena.trim()
        assert arena.stats().allocated == 0


@pytest.mark.skipif(not JIT, reason="kswapd is machine code")
def test_kswapd_refills_to_high_while_nobody_allocates() -> None:
    with ra.Arena("64MiB", min_free="8MiB", decay=None) as arena:
        for buf in [arena.vmalloc(MIB) for _ in range(14)]:
            arena.vfree(buf)  # kept lazily
        assert arena.stats().vmalloc_lazy >= 8 * MIB
        held = []
        while arena.stats().kswapd_wakes == 0:
            held.append(arena.alloc_pages(4, ra.GFP_NOWAIT))
        eventually(lambda: free(arena) * PAGE >= arena.stats().high_free)
        assert arena.pressure().reclaims == 0, "no request had to do it"
        arena.validate()
        del held


@pytest.mark.skipif(not JIT, reason="kswapd is machine code")
def test_kswapd_comes_at_once() -> None:
    with ra.Arena("64MiB", min_free="8MiB", decay=None) as arena:
        waits = []
        for _ in range(20):
            for buf in [arena.vmalloc(MIB) for _ in range(14)]:
                arena.vfree(buf)
            held = []
            wakes = arena.stats().kswapd_wakes
            while arena.stats().kswapd_wakes == wakes:
                held.append(arena.alloc_pages(4, ra.GFP_NOWAIT))
            begun = time.perf_counter()
            eventually(lambda: free(arena) * PAGE >= arena.stats().high_free)
            waits.append(time.perf_counter() - begun)
            del held
            arena.trim()
        assert sorted(waits)[10] < 0.2, "it slept on: a quarter of a second"


@pytest.mark.skipif(not JIT, reason="kswapd is machine code")
def test_kswapd_gives_up_where_nothing_comes() -> None:
    with ra.Arena("16MiB", min_free="1MiB", decay=None) as arena:
        held = fill(arena)
        z = layout.ZONES + layout.ZONE_NORMAL * layout.ZONE_WORDS
        for _ in range(200):
            with pytest.raises(ra.OutOfMemory):
                arena.alloc_pages(0, ra.GFP_NOWAIT)
            eventually(lambda: arena.words[z + layout.Z_STAGE] == layout.STAGE_IDLE)
        assert arena.stats().kswapd_wakes <= 2 + 16
        del held


def test_where_kswapd_does_not_run_who_asks_does_it() -> None:
    with ra.Arena("64MiB", min_free="8MiB", decay=None, kswapd=False) as arena:
        for buf in [arena.vmalloc(MIB) for _ in range(14)]:
            arena.vfree(buf)
        with pytest.raises(ra.OutOfMemory):
            held = []
            while True:
                held.append(arena.alloc_pages(4, ra.GFP_NOWAIT))
        assert arena.stats().vmalloc_lazy >= 8 * MIB
        held.append(arena.alloc_pages(4))
        assert arena.stats().vmalloc_lazy == 0 and arena.pressure().reclaims == 1
        del held


@pytest.mark.skipif(not JIT, reason="kswapd is machine code")
def test_a_child_has_the_marks_and_a_kswapd_of_its_own() -> None:
    quiet_child(
        """
import os, time, warnings
import realalloc as ra
warnings.simplefilter('ignore', DeprecationWarning)
def refill():
    for buf in [arena.vmalloc(1 << 20) for _ in range(14)]: arena.vfree(buf)
    held = []; wakes = arena.stats().kswapd_wakes
    while arena.stats().kswapd_wakes == wakes: held.append(arena.alloc_pages(4, ra.GFP_NOWAIT))
    end = time.monotonic() + 30
    while arena.stats().free < arena.stats().high_free and time.monotonic() < end: time.sleep(0.001)
    good = arena.stats().free >= arena.stats().high_free
    arena.validate(); held.clear(); arena.trim()
    return good
arena = ra.Arena('64MiB', min_free='8MiB', decay=None)
assert refill()
pid = os.fork()
if pid == 0:
    os._exit(0 if refill() and arena.stats().min_free == 8 << 20 else 1)
assert os.waitpid(pid, 0)[1] == 0
assert refill()
arena.close()
print('done')
""",
        expect="done",
    )
