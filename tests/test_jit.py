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
