"""The verbs inside a user's own jitted functions, on the same arena and the same blocks as Python's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit, prange
from support import JIT, run_child

import realalloc as ra
from realalloc import jit
from realalloc.jit import (
    GFP_DMA,
    GFP_KERNEL,
    GFP_ZERO,
    NULL,
    alloc_pages,
    free_pages,
    kfree,
    kmalloc,
    kmem_cache_alloc,
    kmem_cache_free,
    krealloc,
    ksize,
    kzalloc,
    mempool_alloc,
    mempool_free,
    pfn_to_offset,
    vmalloc,
)


@njit(nogil=True)
def churn(words, seed, rounds, slots):
    """Replace random slots by blocks of random size that carry their identity; return errors found."""
    state = seed
    errors = 0
    live = np.zeros(slots, np.int64)
    for k in range(rounds):
        state = (state * 1103515245 + 12345) % 2147483648
        slot = state % slots
        if live[slot] != NULL:
            at = live[slot] >> 3
            errors += words[at] != live[slot] or words[at + 1] != seed
            errors += kfree(words, live[slot]) != 0
        live[slot] = kmalloc(words, 16 + state % 3000)
        if live[slot] != NULL:
            words[live[slot] >> 3] = live[slot]
            words[(live[slot] >> 3) + 1] = seed
    for slot in range(slots):
        errors += kfree(words, live[slot]) != 0
    return errors


def test_every_verb_in_one_jitted_function(arena: ra.Arena) -> None:
    """Blocks of every kind are taken and freed in nopython code; the arena is whole afterwards (fixture)."""
    cache = arena.kmem_cache("objects", 100)
    pool = arena.mempool(2, size=5000)

    @njit
    def work(words, cache_at, pool_at):
        total = 0
        block = kzalloc(words, 100)
        total += words[block >> 3] + ksize(words, block)
        words[block >> 3] = 7
        block = krealloc(words, block, 9000)
        total += words[block >> 3] + ksize(words, block)
        total += kfree(words, block)
        area = vmalloc(words, 5 << 20)
        words[(area + (5 << 20) - 8) >> 3] = 1
        total += kfree(words, area)
        pfn = alloc_pages(words, 2)
        words[pfn_to_offset(pfn) >> 3] = 1
        total += free_pages(words, pfn, 2)
        item = kmem_cache_alloc(words, cache_at)
        total += kmem_cache_free(words, cache_at, item)
        element = mempool_alloc(words, pool_at)
        total += mempool_free(words, pool_at, element)
        return total

    assert work(arena.words, cache.at, pool.at) == 128 + 7 + 16384
    pool.destroy()
    cache.destroy()


def test_python_and_jit_see_the_same_blocks(arena: ra.Arena) -> None:
    """A block leased to Python is read in jitted code, and one made in jitted code is freed from Python."""
    buf = arena.kmalloc(64)
    np.frombuffer(buf, np.int64)[:] = 5

    @njit
    def read(words, offset):
        return words[offset >> 3]

    assert read(arena.words, buf.obj.offset) == 5
    offset = kmalloc(arena.words, 64)
    assert arena.stats().live_objects == 2
    assert kfree(arena.words, offset) == 0
    assert kfree(arena.words, offset) == jit.EINVAL
    assert kfree(arena.words, NULL) == 0


def test_no_memory_is_null_and_loses_nothing(arena: ra.Arena) -> None:
    """An impossible request returns NULL; a failing krealloc leaves the old block."""
    words = arena.words
    free = arena.stats().free
    assert kmalloc(words, 1 << 40) == NULL
    assert kmalloc(words, 0) == NULL
    assert alloc_pages(words, 99) == NULL
    block = kmalloc(words, 64)
    assert krealloc(words, block, 1 << 40) == NULL
    assert ksize(words, block) == 64
    kfree(words, block)
    arena.trim()
    assert arena.stats().free == free


def test_threads_without_the_gil(arena: ra.Arena) -> None:
    """Four threads churn one arena from nogil code; contents hold and nothing is lost."""
    rounds = 20000 if JIT else 300
    with ThreadPoolExecutor(4) as executor:
        words = arena.words
        futures = [executor.submit(churn, words, seed, rounds, 50) for seed in range(1, 5)]
        while not all(future.done() for future in futures):
            arena.validate()
        assert [future.result() for future in futures] == [0, 0, 0, 0]


@pytest.mark.skipif(not JIT, reason="parallel=True needs the compiler")
def test_parallel_loops(arena: ra.Arena) -> None:
    """The verbs work under parallel=True."""

    @njit(parallel=True, nogil=True)
    def many(words, wrong):
        for k in prange(len(wrong)):
            block = kmalloc(words, 8 + k % 500)
            words[block >> 3] = k
            wrong[k] = words[block >> 3] != k
            wrong[k] |= kfree(words, block) != 0

    wrong = np.ones(20000, np.int64)
    many(arena.words, wrong)
    assert wrong.sum() == 0


@pytest.mark.skipif(not JIT, reason="nothing is cached without the compiler")
def test_a_cached_function_of_a_user_never_ends_the_process(tmp_path) -> None:
    """numba refuses to cache what calls a verb, so no code on disk can miss its symbol; a second run works too."""
    script = tmp_path / "program.py"
    script.write_text(
        "import warnings, numba, realalloc as ra\n"
        "from realalloc.jit import kmalloc, kfree\n"
        "@numba.njit(cache=True)\n"
        "def work(words):\n"
        "    return kfree(words, kmalloc(words, 100))\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    arena = ra.Arena('1MiB')\n"
        "    print(work(arena.words), any('cannot cache' in str(w.message).lower() for w in seen))\n"
    )
    for _ in range(2):
        child = run_child(f"import runpy; runpy.run_path({str(script)!r})", env={"NUMBA_CACHE_DIR": str(tmp_path)})
        assert (child.returncode, child.stdout) == (0, "0 True\n"), child.stderr


# -- the same verbs as the faces have ----------------------------------------------------------------------------------

EVERY_ZERO = {
    "kzalloc": lambda words, nbytes: jit.kzalloc(words, nbytes),
    "kcalloc": lambda words, nbytes: jit.kcalloc(words, nbytes, 1),
    "vzalloc": lambda words, nbytes: jit.vzalloc(words, nbytes),
    "kvmalloc": lambda words, nbytes: jit.kvmalloc(words, nbytes, GFP_KERNEL | GFP_ZERO),
    "kmalloc": lambda words, nbytes: kmalloc(words, nbytes, GFP_KERNEL | GFP_ZERO),
}


@pytest.mark.parametrize("verb", EVERY_ZERO)
@pytest.mark.parametrize("nbytes", [1, 8, 100, 4096, 8192, 8193, 70_000, 5 << 20])
def test_zeroing_verbs_zero_what_was_dirty(arena: ra.Arena, verb: str, nbytes: int) -> None:
    words = arena.words
    take = njit(EVERY_ZERO[verb]) if JIT else EVERY_ZERO[verb]
    for _ in range(3):
        offset = int(take(words, nbytes))
        block = jit.as_bytes(words, offset, nbytes)
        assert not block.any()
        block[:] = 0xAA
        assert kfree(words, offset) == 0


def test_a_product_that_overflows_is_null(arena: ra.Arena) -> None:
    words = arena.words
    for n, nbytes in (
        (1 << 32, 1 << 32),
        (1 << 62, 2),
        (3, (1 << 62) - 1),
        (-1, 8),
        (8, -1),
        (0, 8),
        (8, 0),
        (1 << 40, 8),
    ):
        assert jit.kcalloc(words, n, nbytes) == NULL
    offset = jit.kcalloc(words, 7, 13)
    assert ksize(words, offset) == 96
    kfree(words, offset)


def test_flags_reach_the_locked_zone_through_every_verb() -> None:
    with ra.Arena("16MiB", lock="1MiB", decay=None) as arena:
        words, out = arena.words, np.zeros(20, np.int64)
        end = arena.stats().metadata + (1 << 20)
        flags = GFP_KERNEL | GFP_DMA

        def locked(offset: int) -> bool:
            return arena.stats().metadata <= offset < end

        for nbytes in (1, 100, 8192, 20_000):
            assert jit.kmalloc_bulk(words, nbytes, 20, out, flags) == 20
            assert all(locked(offset) for offset in out.tolist()) and len(set(out.tolist())) == 20
            assert jit.kfree_bulk(words, 20, out) == 0
            taken = [
                jit.kzalloc(words, nbytes, flags),
                jit.kcalloc(words, 1, nbytes, flags),
                jit.kvmalloc(words, nbytes, flags),
            ]
            assert all(locked(offset) for offset in taken)
            grown = krealloc(words, taken.pop(), 2 * 8192, flags)
            assert locked(grown)
            for offset in (*taken, grown):
                assert kfree(words, offset) == 0
        assert jit.alloc_pages_bulk(words, 20, out, flags) == 20
        assert all(locked(int(pfn) << 12) for pfn in out)
        for pfn in out.tolist():
            assert free_pages(words, pfn, 0) == 0
        assert jit.kmalloc_bulk(words, 1 << 19, 3, out, flags) == 0  # two of them there are: all or nothing
        assert jit.vmalloc(words, 5 << 20, GFP_KERNEL) != 0
        arena.validate()


@pytest.mark.parametrize("nbytes", [8, 100, 192, 4096, 8192, 8193, 40_000])
def test_bulk_verbs_zero_where_asked(arena: ra.Arena, nbytes: int) -> None:
    words, out = arena.words, np.zeros(40, np.int64)
    for flags in (GFP_KERNEL, GFP_KERNEL | GFP_ZERO) * 2:
        assert jit.kmalloc_bulk(words, nbytes, 40, out, flags) == 40
        for offset in out.tolist():
            block = jit.as_bytes(words, offset, nbytes)
            assert not flags & GFP_ZERO or not block.any()
            block[:] = 0x55
        assert jit.kfree_bulk(words, 40, out) == 0


def test_objects_read_as_zero_where_asked_and_constructed_ones_are_left_alone(arena: ra.Arena) -> None:
    words, out = arena.words, np.zeros(30, np.int64)
    cache = arena.kmem_cache("dirty", 104)
    for _ in range(3):
        assert jit.kmem_cache_alloc_bulk(words, cache.at, 30, out, GFP_KERNEL | GFP_ZERO) == 30
        one = kmem_cache_alloc(words, cache.at, GFP_KERNEL | GFP_ZERO)
        for offset in (one, *out.tolist()):
            assert not jit.as_bytes(words, offset, 104).any()
            jit.as_bytes(words, offset, 104)[:] = 9
        assert kmem_cache_free(words, cache.at, one) == jit.kmem_cache_free_bulk(words, cache.at, 30, out) == 0
    made = arena.kmem_cache("made", 104, ctor=lambda view: view.__setitem__(slice(None), b"\7" * 104))
    held = made.alloc()
    assert kmem_cache_alloc(words, made.at, GFP_KERNEL | GFP_ZERO) == NULL
    assert jit.kmem_cache_alloc_bulk(words, made.at, 2, out, GFP_KERNEL | GFP_ZERO) == 0
    assert jit.kmem_cache_alloc_bulk(words, made.at, 2, out) == 2
    assert (jit.as_bytes(words, int(out[0]), 104) == 7).all()
    assert jit.kmem_cache_free_bulk(words, made.at, 2, out) == 0
    del held
    cache.destroy()
    made.destroy()


def test_bulk_verbs_leave_what_the_marks_keep_for_others() -> None:
    """GFP_ATOMIC may go below the min watermark, an ordinary request may not: all or nothing either way."""
    with ra.Arena("4MiB", min_free="1MiB", decay=None, kswapd=False) as arena:
        words, out = arena.words, np.zeros(2000, np.int64)
        taken = jit.alloc_pages_bulk(words, 2000, out)
        assert 0 < taken < 2000 and arena.stats().free >= 1 << 20
        more = np.zeros(60, np.int64)
        assert jit.kmalloc_bulk(words, 8192, 20, more) == 0
        cache = arena.kmem_cache("pages", 4096)
        assert jit.kmem_cache_alloc_bulk(words, cache.at, 20, more) == 0
        for flags in (ra.GFP_ATOMIC, GFP_KERNEL | ra.GFP_HIGH):
            assert jit.kmalloc_bulk(words, 8192, 20, more, flags) == 20
            assert jit.kfree_bulk(words, 20, more) == 0
            assert jit.kmem_cache_alloc_bulk(words, cache.at, 20, more, flags) == 20
            assert jit.kmem_cache_free_bulk(words, cache.at, 20, more) == 0
        assert jit.kmalloc_bulk(words, 8192, 60, more, ra.GFP_ATOMIC) == 60 or arena.stats().free < 1 << 20
        arena.trim()
        arena.validate()


def test_a_bulk_that_may_not_fail_waits_for_what_is_missing() -> None:
    with ra.Arena("4MiB", decay=None) as arena:
        words, out = arena.words, np.zeros(2000, np.int64)
        blocks = np.zeros(3, np.int64)
        jit.kmalloc_bulk(words, 100_000, 3, blocks)  # compiled before the thread starts
        jit.kfree_bulk(words, 3, blocks)
        taken = jit.alloc_pages_bulk(words, 2000, out)
        assert jit.kmalloc_bulk(words, 100_000, 3, blocks) == 0
        assert jit.kmalloc_bulk(words, 64 << 20, 2, blocks, GFP_KERNEL | jit.GFP_NOFAIL) == 0  # that can never be
        with ThreadPoolExecutor(1) as executor:
            waits = executor.submit(jit.kmalloc_bulk, words, 100_000, 3, blocks, GFP_KERNEL | jit.GFP_NOFAIL)
            assert not waits.done()
            for pfn in out[:taken].tolist():
                free_pages(words, pfn, 0)
            assert waits.result(60) == 3
        assert len(set(blocks.tolist())) == 3 and jit.kfree_bulk(words, 3, blocks) == 0
        arena.validate()


def test_kvmalloc_finds_scattered_pages(arena: ra.Arena) -> None:
    words, out = arena.words, np.zeros(5000, np.int64)
    taken = jit.alloc_pages_bulk(words, 5000, out)
    pfns = sorted(out[:taken].tolist())
    for pfn in pfns[::2]:
        free_pages(words, pfn, 0)
    assert kmalloc(words, 40_000) == NULL
    offset = jit.kvmalloc(words, 40_000)
    assert ksize(words, offset) == 40_960 and jit.kvfree(words, offset) == jit.kvfree(words, NULL) == 0
    small = jit.kvmalloc(words, 4096)
    assert ksize(words, small) == 4096 and jit.kvfree(words, small) == 0
    for pfn in pfns[1::2]:
        free_pages(words, pfn, 0)


def test_krealloc_with_flags_zeroes_the_growth_and_keeps_the_rest(arena: ra.Arena) -> None:
    words = arena.words
    for first, second in ((8, 100), (100, 9000), (9000, 5 << 20), (64, 8192)):
        dirty = kmalloc(words, second)
        jit.as_bytes(words, dirty, second)[:] = 0xEE
        kfree(words, dirty)
        old = kmalloc(words, first)
        usable = ksize(words, old)
        jit.as_bytes(words, old, usable)[:] = 3
        fresh = krealloc(words, old, second, GFP_KERNEL | GFP_ZERO)
        block = jit.as_bytes(words, fresh, second)
        assert (block[:usable] == 3).all() and not block[usable:].any()
        assert kfree(words, fresh) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 6])
def test_elements_of_a_pool_in_bulk_are_all_or_none(arena: ra.Arena, count: int) -> None:
    words, out = arena.words, np.zeros(8, np.int64)
    pool = arena.mempool(4, size=300, order="reserve-only")
    held = [mempool_alloc(words, pool.at)] if count in (4, 6) else []
    room = 4 - len(held)
    assert jit.mempool_alloc_bulk(words, pool.at, count, out) == (count if count <= room else 0)
    had = count if count <= room else 0
    assert pool.curr_nr == room - had and len(set(out[:had].tolist())) == had
    assert jit.mempool_free_bulk(words, pool.at, had, out) == 0
    assert pool.curr_nr == room
    if held:
        assert mempool_free(words, pool.at, held[0]) == 0
    assert jit.mempool_free_bulk(words, pool.at, 2, np.array([8, 16], np.int64)) == 2  # no elements at all
    pool.destroy()


def test_no_verb_takes_of_a_closed_arena() -> None:
    arena = ra.Arena("16MiB")
    words, out = arena.words, np.zeros(4, np.int64)
    cache, pool = arena.kmem_cache("c", 64), arena.mempool(2, size=64)
    at, pool_at = cache.at, pool.at
    pool.destroy()
    arena.close()
    for flags in (GFP_KERNEL, GFP_KERNEL | GFP_ZERO, GFP_KERNEL | jit.GFP_NOFAIL):
        assert jit.kmalloc_bulk(words, 64, 4, out, flags) == jit.kmalloc_bulk(words, 9000, 4, out, flags) == 0
        assert jit.kmem_cache_alloc_bulk(words, at, 4, out, flags) == kmem_cache_alloc(words, at, flags) == 0
        assert jit.alloc_pages_bulk(words, 4, out, flags) == jit.kvmalloc(words, 9000, flags) == 0
        assert jit.kcalloc(words, 4, 8, flags) == jit.vzalloc(words, 9000, flags) == 0
    assert pool_at > 0


def test_no_area_is_locked_and_fewer_than_none_are_none() -> None:
    with ra.Arena("16MiB", lock="1MiB", decay=None) as arena:
        words, out = arena.words, np.full(4, 7, np.int64)
        pool = arena.mempool(2, size=100)
        cache = arena.kmem_cache("c", 100)
        flags = GFP_KERNEL | GFP_DMA
        for take in (vmalloc, jit.vzalloc, jit.kvmalloc):
            assert take(words, 600_000, flags) == take(words, 600_000, flags | jit.GFP_NOFAIL) == NULL
        for count in (0, -1, -(1 << 40)):
            assert (
                jit.kmalloc_bulk(words, 64, count, out) == jit.kmalloc_bulk(words, 64, count, out, jit.GFP_NOFAIL) == 0
            )
            assert (
                jit.kmem_cache_alloc_bulk(words, cache.at, count, out) == jit.alloc_pages_bulk(words, count, out) == 0
            )
            assert jit.mempool_alloc_bulk(words, pool.at, count, out) == 0
            assert jit.mempool_free_bulk(words, pool.at, count, out) == jit.kfree_bulk(words, count, out) == 0
        assert out.tolist() == [7, 7, 7, 7]
        pool.destroy()
        cache.destroy()
        arena.validate()
