"""The arena itself: its options, closing, and what the system sees of it."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import resource
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from checks import Index, address, eat_everything, exhaust, some, unchanged
from support import JIT, MIB, PAGE

import realalloc as ra
from realalloc.errors import BROKEN_INVARIANTS
from realalloc.facts import thp_mode
from realalloc.mm import layout

# -- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        (MIB, MIB),
        ("1MiB", MIB),
        ("1.5 mib", 3 << 19),
        (np.int64(MIB), MIB),
        (Index(MIB), MIB),
        (MIB + 5, MIB),
        ("1g", 1 << 30),
    ],
)
def test_a_size_is_an_integer_or_text_rounded_down_to_pages(size: Any, nbytes: int) -> None:
    with ra.Arena(size) as arena:
        assert arena.size == arena.stats().size == nbytes


@pytest.mark.parametrize("size", [True, 1e6, None, b"1MiB", [1], np.float32(1e6), object()])
def test_a_size_of_a_wrong_type_is_a_type_error(size: Any) -> None:
    with pytest.raises(TypeError, match="size must be an integer"):
        ra.Arena(size)


@pytest.mark.parametrize(
    "size", [0, -1, 4096, (256 << 10) - 1, 2**63, 2**64, "1 XiB", "", "-1MiB", "1e6", "1.3", "5TiB", 1 << 50]
)
def test_a_size_out_of_reach_is_a_value_error(size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        ra.Arena(size)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_order": -1}, ValueError, "max_order must be at least 0"),
        ({"max_order": 19}, ValueError, "max_order must be at most 18"),
        ({"max_order": 1.0}, TypeError, "max_order"),
        ({"max_order": True}, TypeError, "max_order"),
        ({"limit": 100}, ValueError, "limit must be at least 4096"),
        ({"limit": "much"}, ValueError, "limit: 'much'"),
        ({"limit": 1.5}, TypeError, "limit"),
        ({"lock": -4096}, ValueError, "lock must be at least 0"),
        ({"lock": "1GiB"}, ValueError, "locked zone of 1GiB"),
        ({"lock": None}, TypeError, "lock"),
        ({"huge_pages": "always"}, ValueError, "huge_pages must be"),
        ({"huge_pages": 1}, ValueError, "huge_pages must be"),
        ({"debug": "FZ"}, ValueError, "debug='FZ'"),
        ({"classes": "coarse"}, ValueError, "classes must be 'kernel' or 'fine', not 'coarse'"),
        ({"classes": 4}, ValueError, "classes must be"),
        ({"classes": ["fine"]}, ValueError, "classes must be"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ra.Arena(MIB, **options)


def slabinfo_sizes(arena: ra.Arena) -> dict[str, int]:
    """Read the names of kmalloc's caches and their objects' bytes."""
    rows = [line.split() for line in arena.slabinfo().splitlines() if "kmalloc-" in line]
    return {row[0]: int(row[3]) for row in rows}


@pytest.mark.parametrize(("classes", "sizes"), [("kernel", layout.KMALLOC_SIZES), ("fine", layout.KMALLOC_FINE_SIZES)])
def test_classes_say_what_kmalloc_hands_out(classes: str, sizes: tuple[int, ...]) -> None:
    with ra.Arena("64MiB", classes=classes, lock=PAGE) as arena:
        names = [str(size) if size % 1024 else f"{size // 1024}k" for size in sizes]
        wanted = {f"kmalloc-{name}": size for name, size in zip(names, sizes, strict=True)}
        assert slabinfo_sizes(arena) == wanted | {f"dma-{name}": size for name, size in wanted.items()}
        for name in wanted:
            with pytest.raises(ValueError, match="exists"):
                arena.kmem_cache(name, 100)
        held = []
        for nbytes in range(1, 8193, 1 if JIT else 7):
            held.append(arena.kzalloc(nbytes))
            assert arena.ksize(held[-1]) == next(size for size in sizes if size >= nbytes)
            assert address(held[-1]) % (nbytes & -nbytes) == 0
            held[-1][:] = bytes([nbytes % 251]) * nbytes
        arena.validate()
        assert all(bytes(buf) == bytes([len(buf) % 251]) * len(buf) for buf in held)
        waste = arena.fragmentation()
        assert {cache.name for cache in waste.caches} >= set(wanted)
        assert sum(cache.used_bytes for cache in waste.caches if cache.name in wanted) == sum(map(arena.ksize, held))
        assert waste.slab_bytes == sum(
            c.used_bytes + c.padding_bytes + c.free_bytes + c.tail_bytes for c in waste.caches
        )
        held.clear()


def test_fine_classes_grow_blocks_and_charge_what_they_hand_out() -> None:
    with ra.Arena("16MiB", classes="fine") as arena:
        buf = arena.kmalloc(1)
        buf[0] = 7
        moves = 0
        for nbytes in range(2, 20_000, 1 if JIT else 13):
            before = address(buf)
            buf = arena.krealloc(buf, nbytes)
            moves += address(buf) != before
            buf[nbytes - 1] = nbytes % 251
        assert buf[0] == 7 and moves >= len(layout.KMALLOC_FINE_SIZES) - 1
        with arena.budget("b", limit="1MiB") as budget:
            held = [arena.kmalloc(nbytes) for nbytes in (1, 17, 81, 1025, 3000, 5121, 7000)]
        assert budget.used == 8 + 32 + 96 + 1280 + 3072 + 6144 + 8192 == sum(map(arena.ksize, held))
        held.clear()
        assert budget.used == 0
        arena.validate()
        del buf


@pytest.mark.skipif(not JIT, reason="NumPy's handler needs machine code")
@pytest.mark.parametrize("align", [16, 64, 256, 1024, 4096])
def test_fine_classes_keep_alignments(align: int) -> None:
    with ra.Arena("64MiB", classes="fine") as arena:
        held = [arena.empty(nbytes, np.uint8, align=align) for nbytes in range(1, 9000, 37)]
        assert all(array.ctypes.data % align == 0 for array in held)
        made = arena.c_functions()
        malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
        free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(made.free)
        for nbytes in range(9, 9000, 11):
            block = malloc(made.context, nbytes)
            assert block % 16 == 0
            free(made.context, block)
        held.clear()


@pytest.mark.parametrize("size", ["256KiB", "1MiB", "3MiB", "67MiB"] if JIT else ["256KiB", "1MiB", "3MiB"])
@pytest.mark.parametrize("max_order", [0, 3, 10, 18])
def test_arenas_of_any_shape_serve_all_their_memory_and_get_it_back(size: str, max_order: int) -> None:
    with ra.Arena(size, max_order=max_order) as arena:
        free = arena.stats().free
        assert free == arena.size - arena.stats().metadata
        held = exhaust(lambda: arena.alloc_pages_exact(64 << 10)) + exhaust(lambda: arena.alloc_pages(0))
        assert arena.stats().free == 0 and arena.stats().allocated == free
        arena.validate()
        held.clear()
        assert (arena.stats().live_blocks, arena.stats().leases) == (0, 0)
        arena.validate()
        arena.trim()
        assert arena.stats().free == free and arena.stats().committed == 0
        arena.validate()


def test_the_arena_is_aligned_so_that_every_block_is_aligned_to_its_size(arena: ra.Arena) -> None:
    for order in range(11):
        pages = arena.alloc_pages(order)
        assert pages.address % (PAGE << order) == 0 == pages.pfn % (1 << order)
        assert pages.address == address(pages.view) == arena.address + pages.offset
        assert pages.order == order and len(pages.view) == PAGE << order
        assert f"pfn={pages.pfn}" in repr(pages)


def test_an_arena_can_be_neither_copied_nor_pickled(arena: ra.Arena) -> None:
    with unchanged(arena):
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                attempt(arena)


def test_repr_shows_use_and_closing() -> None:
    arena = ra.Arena(MIB)
    pages = arena.alloc_pages(2)
    assert repr(arena) == f"<Arena 16 KiB of 1 MiB at {arena.address:#x}>"
    arena.free_pages(pages)
    arena.close()
    assert repr(arena) == "<Arena closed>"


# -- closing ---------------------------------------------------------------------------------------------------------


def test_every_operation_on_a_closed_arena_is_arena_closed() -> None:
    arena = ra.Arena(MIB, lock=PAGE)
    cache, pool = arena.kmem_cache("c", 64), arena.mempool(0, order=0)
    buf, pages, obj, element = arena.kmalloc(8), arena.alloc_pages(0), cache.alloc(), pool.alloc()
    with pytest.warns(ResourceWarning, match="4 live leases"):
        arena.close()
    calls: list[Callable[[], Any]] = [
        lambda: arena.kmalloc(8), lambda: arena.kmalloc(8, ra.GFP_NOWAIT), lambda: arena.kmalloc(0),
        lambda: arena.kzalloc(8), lambda: arena.kcalloc(1, 8), lambda: arena.krealloc(buf, 9),
        lambda: arena.krealloc(None, 9), lambda: arena.vmalloc(8), lambda: arena.vzalloc(8), lambda: arena.kvmalloc(8),
        lambda: arena.alloc_pages(0), lambda: arena.alloc_pages_exact(1), lambda: arena.alloc_pages_bulk(1),
        lambda: arena.kfree(buf), lambda: arena.vfree(buf), lambda: arena.ksize(buf), lambda: arena.free_pages(pages),
        lambda: arena.kmem_cache("d", 8), lambda: arena.mempool(1, size=8), arena.stats, arena.buddyinfo,
        arena.pagetypeinfo, arena.slabinfo, arena.vmallocinfo, arena.meminfo, arena.trim, arena.validate,
        lambda: arena.set_limit(None), lambda: arena.words, arena.__enter__,
        cache.alloc, lambda: cache.free(obj), lambda: cache.alloc_bulk(1), cache.shrink, cache.validate, cache.stats,
        cache.destroy, cache.live_objects,
        pool.alloc, lambda: pool.alloc(timeout=0), lambda: pool.alloc(ra.GFP_NOWAIT), pool.alloc_preallocated,
        lambda: pool.alloc_bulk(1), lambda: pool.free(element), lambda: pool.resize(2), pool.stats, pool.validate,
        pool.destroy, lambda: pool.min_nr, lambda: pool.curr_nr,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ra.ArenaClosed, match="closed"):
            call()
    assert arena.closed and "gone" in repr(pool) and "gone" in repr(cache)
    arena.close()
    buf[0] = pages.view[0] = obj[0] = element[0] = 1


def test_close_names_what_is_out() -> None:
    arena = ra.Arena("16MiB")
    held = [arena.kmalloc(60) for _ in range(3)] + [arena.vmalloc(5), arena.alloc_pages(0).view, arena.kmalloc(9000)]
    with pytest.warns(ResourceWarning) as caught:
        arena.close()
    assert str(caught[0].message) == (
        "arena closed with 6 live leases: kmalloc-64: 3, page blocks: 2, vmalloc areas: 1"
    )
    assert caught[0].filename == __file__
    assert len(held) == 6


def test_threads_that_allocate_while_the_arena_closes_get_arena_closed_and_no_crash() -> None:
    for _ in range(some(30, 5)):
        arena = ra.Arena(MIB)
        pool, cache = arena.mempool(1, size=64), arena.kmem_cache("c", 32)
        ready = threading.Barrier(4)
        errors: list[type[BaseException]] = []

        def work(alloc: Callable[[], Any]) -> None:
            ready.wait()
            try:
                while True:
                    alloc()
            except Exception as error:
                errors.append(type(error))

        verbs = [lambda: arena.vmalloc(9), lambda: arena.kmalloc(9), lambda: (pool.alloc(), cache.alloc(ra.GFP_KERNEL))]
        threads = [threading.Thread(target=work, args=(verb,), daemon=True) for verb in verbs]
        for thread in threads:
            thread.start()
        ready.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # whether a thread holds a buffer just then is chance
            arena.close()
        for thread in threads:
            thread.join(60)
        assert errors == [ra.ArenaClosed] * 3
        pool = cache = verbs = None  # type: ignore[assignment]


# -- limits, zones, what the system sees -----------------------------------------------------------------------------


def test_a_limit_bounds_what_can_be_taken_and_can_be_moved(small: ra.Arena) -> None:
    with ra.Arena(4 * MIB, limit=MIB) as arena:
        assert arena.stats().limit == MIB
        held = exhaust(lambda: arena.alloc_pages(0))
        assert len(held) == MIB // PAGE
        arena.set_limit("2MiB")
        more = exhaust(lambda: arena.alloc_pages(0))
        assert len(more) == MIB // PAGE
        with unchanged(arena), pytest.raises(ValueError, match="below what is in use: 2 MiB; free some"):
            arena.set_limit(MIB)
        more.clear()
        held.clear()
        arena.trim()
        arena.set_limit(MIB)
        arena.set_limit(None)
        assert arena.stats().limit == arena.stats().size - arena.stats().metadata
        with unchanged(arena), pytest.raises(TypeError):
            arena.set_limit(1.5)  # type: ignore[arg-type]


def resident(arena: ra.Arena) -> int:
    """Ask the system for the resident bytes of the page area."""
    meta = arena.stats().metadata
    return arena._memory.resident_pages(meta, arena.size - meta) * PAGE


def test_committed_is_an_upper_bound_of_what_is_resident_and_trim_makes_both_zero() -> None:
    with ra.Arena("16MiB", huge_pages=False) as arena:
        assert arena.stats().committed == resident(arena) == 0
        pages = arena.alloc_pages(8)
        assert resident(arena) <= arena.stats().committed
        np.frombuffer(pages.view, np.uint8)[::PAGE] = 1
        assert resident(arena) == len(pages.view) <= arena.stats().committed
        arena.free_pages(pages)
        assert resident(arena) == 256 * PAGE, "freed pages stay until trim"
        assert arena.trim() >= 256 * PAGE
        assert arena.stats().committed == resident(arena) == 0


def test_touched_pages_raise_the_rss_and_trim_gives_them_back() -> None:
    process = psutil.Process()
    with ra.Arena("256MiB", huge_pages=False) as arena:
        before = process.memory_info().rss
        held = [arena.kmalloc(4 << 20) for _ in range(8)] + [arena.vmalloc(32 << 20)]
        assert process.memory_info().rss - before < 16 << 20, "nothing was touched"
        for buf in held:
            np.frombuffer(buf, np.uint8)[::PAGE] = 1
        assert process.memory_info().rss - before > 56 << 20
        del buf
        held.clear()
        assert arena.trim() >= 64 << 20
        assert process.memory_info().rss - before < 16 << 20


def test_prefault_makes_every_page_resident_before_use() -> None:
    with ra.Arena(4 * MIB, prefault=True, huge_pages=False) as arena:
        assert resident(arena) == arena.size - arena.stats().metadata
        pages = arena.alloc_pages(9)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        ctypes.memset(pages.address, 1, 2 * MIB)
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 20


def test_the_locked_zone_is_locked_in_memory() -> None:
    def locked() -> int:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))

    before = locked()
    with ra.Arena(4 * MIB, lock=MIB) as arena:
        assert locked() - before == 1024
        with arena.kmalloc(5000, ra.GFP_DMA) as buf:
            start = address(buf) - arena.address - arena.stats().metadata
            assert 0 <= start < MIB
        with arena.kmalloc(5000) as buf:
            assert address(buf) - arena.address - arena.stats().metadata >= MIB
    assert locked() == before


def test_trim_returns_the_bytes_it_gave_back_and_then_nothing(arena: ra.Arena) -> None:
    with arena.alloc_pages(4).view as view:
        view[:] = bytes(len(view))
    assert arena.trim() >= 16 * PAGE
    assert arena.trim() == 0


def test_memory_given_back_reads_as_zero_when_it_returns(arena: ra.Arena) -> None:
    for _ in range(2):
        with arena.kmalloc(MIB) as buf:
            buf[:] = b"\xaa" * MIB
        arena.trim()
        with arena.kzalloc(MIB) as buf:
            assert not np.frombuffer(buf, np.uint8).any()


def test_a_huge_arena_costs_what_it_uses() -> None:
    before = psutil.Process().memory_info().rss
    with ra.Arena("1TiB") as arena:
        with arena.kmalloc(100) as buf:
            buf[:] = bytes(100)
        arena.validate()
        assert psutil.Process().memory_info().rss - before < 64 << 20


def test_words_show_the_header_and_keep_the_range_mapped() -> None:
    arena = ra.Arena(MIB)
    words = arena.words
    assert words.dtype == np.int64 and words.flags.c_contiguous and words.ctypes.data == arena.address
    assert words[layout.H_MAGIC] == layout.MAGIC
    arena.close()
    assert words[layout.H_CLOSED] == 1


def test_damaged_metadata_is_a_corruption_error_that_names_the_invariant() -> None:
    with ra.Arena(MIB) as arena:
        for word, code in (
            (layout.H_MAGIC, layout.BAD_HEADER),
            (layout.H_BAD_FREES, layout.BAD_HEADER),
            (layout.H_COMMITTED_PAGES, layout.BAD_COMMITTED),
            (layout.H_NR_RECORDS, layout.BAD_SHEAF),
            (layout.H_VM_PAGES, layout.BAD_AREA_SUM),
        ):
            arena.words[word] += 1
            with pytest.raises(ra.CorruptionError) as info:
                arena.validate()
            assert str(info.value) == BROKEN_INVARIANTS[code]
            arena.words[word] -= 1
            arena.validate()


def test_two_arenas_share_nothing() -> None:
    with ra.Arena(MIB) as one, ra.Arena(MIB) as two:
        held = eat_everything(one)
        before = two.stats()
        with two.kmalloc(5000) as buf:
            buf[:] = b"2" * 5000
        for item in held:
            view = item.view if isinstance(item, ra.Pages) else item
            view[:] = b"1" * len(view)
        assert before.leases == two.stats().leases == 0
        two.validate()
        one.validate()
        del item, view
        held.clear()


def test_default_arena_is_one_until_it_is_closed() -> None:
    first = ra.default_arena()
    assert first is ra.default_arena()
    first.close()
    second = ra.default_arena()
    assert second is not first and not second.closed
    second.close()


def test_os_specific_numbers_agree_with_the_system() -> None:
    assert os.sysconf("SC_PAGESIZE") == PAGE


@pytest.mark.parametrize(
    ("mode", "huge"), [("never", layout.HUGE_NEVER), ("madvise", layout.HUGE_AUTO), ("unknown", layout.HUGE_AUTO)]
)
def test_where_the_system_never_uses_huge_pages_none_are_in_the_books(
    monkeypatch: pytest.MonkeyPatch, mode: str, huge: int
) -> None:
    monkeypatch.setattr("realalloc.arena.thp_mode", lambda: mode)
    with ra.Arena("16MiB") as arena:
        assert arena.words[layout.H_HUGE] == huge
        block = arena.alloc_pages(9)
        assert (arena.words[arena.words[layout.H_HUGEMAP]] != 0) <= (mode != "never")
        del block
        arena.validate()


def test_zeroes_of_huge_units_hold_no_memory_until_they_are_touched() -> None:
    with ra.Arena("256MiB") as arena:
        for _ in range(3):
            block = arena.kzalloc(32 * MIB)
            seen = arena.residency()
            held = seen.pages + seen.window
            if thp_mode() in ("always", "madvise"):
                assert held < 32 * MIB // 4
            assert seen.stray == 0
            assert not any(block[::4096])
            block[:: PAGE // 2] = b"x" * (32 * MIB * 2 // PAGE)
            del block
        arena.validate()
