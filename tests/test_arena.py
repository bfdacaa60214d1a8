"""The arena's verbs: what they accept, what they refuse, what they leave behind, and what the system sees of it."""

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
from checks import address, eat_everything, exhaust, refuses, some, unchanged
from support import JIT, MIB, PAGE

import realalloc as ra
from realalloc.errors import BROKEN_INVARIANTS
from realalloc.facts import thp_mode
from realalloc.mm import layout


class Index:
    """An object with ``__index__``."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


SIZE_VERBS = ["kmalloc", "kzalloc", "vmalloc", "vzalloc", "kvmalloc", "alloc_pages_exact"]
WRONG_TYPES: list[Any] = [True, False, np.True_, 1.0, np.float64(8), "8", b"8", None, [8], 8j, np.array([1, 2])]
WRONG_VALUES = [-1, -(2**63), -(2**64), 2**63, 2**64, 2**100]


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


# -- sizes, counts, flags --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", SIZE_VERBS)
@pytest.mark.parametrize("size", WRONG_TYPES, ids=repr)
def test_a_size_that_is_no_integer_is_a_type_error(arena: ra.Arena, verb: str, size: Any) -> None:
    refuses(arena, TypeError, "size must be an integer, not", getattr(arena, verb), size)


@pytest.mark.parametrize("verb", SIZE_VERBS)
@pytest.mark.parametrize("size", WRONG_VALUES)
def test_a_size_out_of_range_is_a_value_error(arena: ra.Arena, verb: str, size: int) -> None:
    refuses(arena, ValueError, "size must be at", getattr(arena, verb), size)


@pytest.mark.parametrize("verb", SIZE_VERBS)
@pytest.mark.parametrize("size", [np.int64(100), np.uint8(100), Index(100), np.array(100)], ids=repr)
def test_anything_with_an_index_is_a_size(arena: ra.Arena, verb: str, size: Any) -> None:
    made = getattr(arena, verb)(size)
    assert len(getattr(made, "view", made)) in (100, PAGE)


@pytest.mark.parametrize("verb", SIZE_VERBS)
@pytest.mark.parametrize("size", [17 * MIB, 2**31, 2**32 + 1, 2**52, 2**62, 2**63 - PAGE, 2**63 - 1])
def test_more_than_there_is_is_out_of_memory(arena: ra.Arena, verb: str, size: int) -> None:
    text = refuses(arena, ra.OutOfMemory, "free", getattr(arena, verb), size)
    assert str(size) in text


@pytest.mark.parametrize("verb", ["vmalloc", "vzalloc", "alloc_pages_exact"])
def test_zero_pages_are_a_value_error(arena: ra.Arena, verb: str) -> None:
    refuses(arena, ValueError, "size must be at least 1", getattr(arena, verb), 0)


@pytest.mark.parametrize("bad", [True, 1.0, "3", None], ids=repr)
def test_orders_and_counts_are_integers_too(arena: ra.Arena, bad: Any) -> None:
    refuses(arena, TypeError, "order must be an integer", arena.alloc_pages, bad)
    refuses(arena, TypeError, "n must be an integer", arena.alloc_pages_bulk, bad)
    refuses(arena, TypeError, "n must be an integer", arena.kcalloc, bad, 8)
    refuses(arena, TypeError, "size must be an integer", arena.kcalloc, 8, bad)
    refuses(arena, TypeError, "size must be an integer", arena.krealloc, None, bad)
    refuses(arena, TypeError, "gfp must be an integer", arena.kmalloc, 8, bad)


@pytest.mark.parametrize("order", [-1, 11, 2**63, 2**64])
def test_an_order_out_of_range_is_a_value_error(arena: ra.Arena, order: int) -> None:
    refuses(arena, ValueError, "order must be at", arena.alloc_pages, order)


@pytest.mark.parametrize("verb", [*SIZE_VERBS, "alloc_pages", "alloc_pages_bulk"])
@pytest.mark.parametrize("gfp", [-1, 0x2, 1 << 40, ra.GFP_KERNEL | 0x10, 2**64])
def test_unknown_flags_are_a_value_error(arena: ra.Arena, verb: str, gfp: int) -> None:
    refuses(arena, ValueError, "gfp", getattr(arena, verb), 1, gfp)


@pytest.mark.parametrize(
    "gfp", [ra.GFP_NOWAIT, ra.GFP_ATOMIC, ra.GFP_NOIO, ra.GFP_NOFS, ra.GFP_KERNEL | ra.GFP_NORETRY, 0]
)
def test_every_set_of_flags_allocates_alike(arena: ra.Arena, gfp: int) -> None:
    for verb in (*SIZE_VERBS, "alloc_pages"):
        made = getattr(arena, verb)(1, gfp)
        assert len(getattr(made, "view", made)) >= 1


def test_calls_with_a_wrong_number_of_arguments_are_type_errors(arena: ra.Arena) -> None:
    with unchanged(arena):
        for call in (arena.kmalloc, lambda: arena.kmalloc(1, 2, 3), lambda: arena.kmalloc(1, colour=3)):
            with pytest.raises(TypeError):
                call()
    assert len(arena.kmalloc(size=3)) == len(arena.kmalloc(3, gfp=ra.GFP_ATOMIC)) == 3


# -- the kmalloc family ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [1, 8, 9, 64, 96, 128, 192, 200, 512, 4096, 8192, 8193, 1 << 16, 1 << 20, 4 << 20, 5 << 20]
)
def test_ksize_and_alignment_are_the_kernels(arena: ra.Arena, size: int) -> None:
    with arena.kmalloc(size) as buf:
        usable = arena.ksize(buf)
        classes = [c for c in layout.KMALLOC_SIZES if c >= size]
        if classes:
            assert usable == classes[0]
        elif size <= 4 << 20:
            assert usable == 1 << (size - 1).bit_length()
        else:
            assert usable == -(-size // PAGE) * PAGE
        assert address(buf) % min(usable & -usable, 4 << 20 if size <= 4 << 20 else PAGE) == 0


def test_kmalloc_of_zero_is_an_empty_buffer_that_costs_nothing(arena: ra.Arena) -> None:
    before = arena.stats().allocated
    buf = arena.kmalloc(0)
    assert (len(buf), buf.format, buf.readonly, arena.ksize(buf), arena.stats().allocated) == (0, "B", False, 0, before)
    with pytest.raises(IndexError):
        buf[0]
    arena.kfree(buf)
    assert len(arena.kzalloc(0)) == len(arena.kcalloc(0, 2**62)) == len(arena.kcalloc(5, 0)) == 0


@pytest.mark.parametrize("verb", ["kzalloc", "vzalloc", "kcalloc", "gfp", "pages", "exact", "cache"])
@pytest.mark.parametrize("size", [1, 8, 96, 1500, 8192, 8200, 70_000, (4 << 20) + 1])
def test_zeroing_verbs_zero_memory_that_was_dirty(arena: ra.Arena, verb: str, size: int) -> None:
    cache = arena.kmem_cache("zero", min(size, MIB))
    calls: dict[str, Callable[[], memoryview]] = {
        "kzalloc": lambda: arena.kzalloc(size),
        "vzalloc": lambda: arena.vzalloc(size),
        "kcalloc": lambda: arena.kcalloc(size, 1),
        "gfp": lambda: arena.kmalloc(size, ra.GFP_KERNEL | ra.GFP_ZERO),
        "pages": lambda: arena.alloc_pages(min(10, (size >> 12).bit_length()), ra.GFP_ZERO).view,
        "exact": lambda: arena.alloc_pages_exact(size, ra.GFP_ZERO).view,
        "cache": lambda: cache.alloc(ra.GFP_ZERO),
    }
    for _ in range(3):
        with calls[verb]() as buf:
            assert not np.frombuffer(buf, np.uint8).any()
            buf[:] = b"\xff" * len(buf)
    cache.destroy()


def test_kcalloc_multiplies_and_an_overflow_is_out_of_memory(arena: ra.Arena) -> None:
    with arena.kcalloc(7, 11) as buf:
        assert bytes(buf) == bytes(77)
    for n, size in ((2**32, 2**31), (2**62, 2), (2**63 - 1, 2**63 - 1)):
        text = refuses(arena, ra.OutOfMemory, "overflows", arena.kcalloc, n, size)
        assert f"kcalloc({n}, {size})" in text
    refuses(arena, ValueError, "n must be at least 0", arena.kcalloc, -1, 8)


def test_kvmalloc_falls_back_to_scattered_pages(small: ra.Arena) -> None:
    singles = exhaust(lambda: small.alloc_pages(0))
    singles = [p for p in singles if p.pfn % 2]
    assert small.stats().largest_free == PAGE
    refuses(small, ra.OutOfMemory, "kmalloc", small.kmalloc, 4 * PAGE)
    buf = small.kvmalloc(4 * PAGE)
    buf[:] = bytes(range(256)) * 64
    assert small.stats().live_areas == 1
    small.kvfree(buf)
    del singles


def test_vmalloc_blocks_are_page_aligned_and_hold_what_is_written(arena: ra.Arena) -> None:
    bufs = [arena.vmalloc(size) for size in (1, PAGE, PAGE + 1, 3 * PAGE, MIB, 5 * MIB)]
    for k, buf in enumerate(bufs):
        assert address(buf) % PAGE == 0 and arena.ksize(buf) == -(-len(buf) // PAGE) * PAGE
        buf[:] = bytes([k]) * len(buf)
    assert all(bytes(buf) == bytes([k]) * len(buf) for k, buf in enumerate(bufs))
    for buf in bufs:
        arena.vfree(buf)


def test_kfree_sensitive_wipes_before_it_frees(arena: ra.Arena) -> None:
    buf = arena.kmalloc(100)
    buf[:] = b"s" * 100
    part = np.frombuffer(buf, np.uint8)
    arena.kfree_sensitive(buf)
    assert not part.any()
    with pytest.raises(ValueError, match="released"):
        len(buf)


# -- krealloc --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 50, 64, 100, 5000, 9000, 100_000])
@pytest.mark.parametrize("second", [1, 63, 64, 65, 4096, 8193, 200_000, (4 << 20) + 3])
def test_krealloc_keeps_the_common_bytes_and_kills_the_old_handle(arena: ra.Arena, first: int, second: int) -> None:
    old = arena.kmalloc(first)
    pattern = np.random.default_rng(first).bytes(first)
    old[:] = pattern
    usable, where = arena.ksize(old), address(old)
    new = arena.krealloc(old, second)
    assert len(new) == second and bytes(new[: min(first, second)]) == pattern[:second]
    assert (address(new) == where) == (second <= usable)
    with pytest.raises(ValueError, match="released"):
        len(old)
    assert arena.stats().leases == 1 and arena.stats().lingering == 0
    new[-1] = 5
    arena.kfree(new)


@pytest.mark.parametrize("second", [80, 5000])
def test_krealloc_with_slices_alive_leaves_them_their_bytes(arena: ra.Arena, second: int) -> None:
    old = arena.kmalloc(70)
    old[:] = bytes(range(70))
    part, numbers = old[10:20], np.frombuffer(old, np.uint8)
    new = arena.krealloc(old, second)
    arena.validate()
    assert bytes(new[:70]) == bytes(range(70)) == numbers.tobytes()
    if second == 80:
        new[10] = 250
        assert part[0] == 250, "in place: the same bytes"
        assert arena.stats().lingering == 0
    else:
        new[10] = 250
        assert part[0] == 10, "moved: the old block lingers"
        assert arena.stats().lingering == 1
    del part, numbers
    assert (arena.stats().leases, arena.stats().lingering) == (1, 0)
    arena.kfree(new)


def test_krealloc_of_none_allocates_and_to_zero_frees(arena: ra.Arena) -> None:
    buf = arena.krealloc(None, 100)
    assert len(buf) == 100
    empty = arena.krealloc(buf, 0)
    assert len(empty) == 0 and arena.stats().live_objects == 0
    grown = arena.krealloc(empty, 10)
    assert len(grown) == 10
    arena.kfree(grown)


def test_krealloc_that_fails_leaves_the_old_buffer_whole(arena: ra.Arena) -> None:
    buf = arena.kmalloc(100)
    buf[:] = b"k" * 100
    refuses(arena, ra.OutOfMemory, "kmalloc", arena.krealloc, buf, 1 << 40)
    refuses(arena, ValueError, "size must be at least 0", arena.krealloc, buf, -1)
    refuses(arena, TypeError, "size must be an integer", arena.krealloc, buf, 9.0)
    for size in (110, 5000):
        refuses(arena, ValueError, "gfp has unknown bits", arena.krealloc, buf, size, 1 << 50)
        refuses(arena, TypeError, "gfp must be an integer", arena.krealloc, buf, size, "GFP_KERNEL")
    assert bytes(buf) == b"k" * 100
    arena.kfree(buf)


def test_krealloc_takes_no_slices_no_freed_buffers_and_nothing_of_others(arena: ra.Arena) -> None:
    buf = arena.kmalloc(100)
    refuses(arena, ra.InvalidFree, "slice", arena.krealloc, buf[1:], 50)
    refuses(arena, ra.InvalidFree, "foreign", arena.krealloc, memoryview(bytearray(100)), 50)
    refuses(arena, TypeError, "not bytearray", arena.krealloc, bytearray(100), 50)
    pages = arena.alloc_pages(0)
    refuses(arena, ra.InvalidFree, "another allocator", arena.krealloc, pages.view, 50)
    arena.kfree(buf)
    refuses(arena, ra.InvalidFree, "freed already", arena.krealloc, buf, 50)


def test_krealloc_with_gfp_zero_zeroes_the_growth(arena: ra.Arena) -> None:
    dirty = [arena.kmalloc(128) for _ in range(40)]
    for buf in dirty:
        buf[:] = b"\xff" * 128
    del buf
    dirty.clear()
    small = arena.kmalloc(100)
    small[:] = b"\xee" * 100
    for size in (120, 128, 5000):
        before = len(small)
        small = arena.krealloc(small, size, ra.GFP_KERNEL | ra.GFP_ZERO)
        assert bytes(small) == b"\xee" * 100 + bytes(size - 100), before
    arena.kfree(small)


def test_krealloc_of_a_vmalloc_area_shrinks_in_place_and_grows_by_moving(arena: ra.Arena) -> None:
    buf = arena.vmalloc(3 * PAGE)
    buf[:] = b"v" * len(buf)
    where = address(buf)
    buf = arena.krealloc(buf, 10)
    assert address(buf) == where
    buf = arena.krealloc(buf, 5 << 20)
    assert bytes(buf[:10]) == b"v" * 10
    arena.kvfree(buf)


# -- pages -----------------------------------------------------------------------------------------------------------


def test_free_pages_frees_once(arena: ra.Arena) -> None:
    pages = arena.alloc_pages(3)
    arena.free_pages(pages)
    refuses(arena, ra.InvalidFree, "freed already", arena.free_pages, pages)
    refuses(arena, TypeError, "takes Pages, not memoryview", arena.free_pages, arena.alloc_pages(0).view)


def test_exact_pages_take_no_page_more_even_beyond_the_largest_block(arena: ra.Arena) -> None:
    for size in (1, PAGE, 5 * PAGE, 5 * PAGE + 1, (4 << 20) + 7 * PAGE):
        before = arena.stats().allocated
        run = arena.alloc_pages_exact(size)
        wanted = -(-size // PAGE) * PAGE
        assert arena.stats().allocated - before == wanted == len(run.view)
        assert run.order is None
        run.view[-1] = 1
        arena.free_pages(run)


def test_bulk_pages_are_as_many_as_there_are(small: ra.Arena) -> None:
    total = small.stats().free // PAGE
    some_pages = small.alloc_pages_bulk(10)
    assert len(some_pages) == 10
    rest = small.alloc_pages_bulk(10**6)
    assert len(rest) == total - 10
    assert small.alloc_pages_bulk(5) == []
    assert len({p.pfn for p in some_pages + rest}) == total
    refuses(small, ValueError, "n must be at least 0", small.alloc_pages_bulk, -1)


# -- running out -----------------------------------------------------------------------------------------------------


def test_out_of_memory_says_what_was_asked_what_is_free_and_which_knob_to_turn(small: ra.Arena) -> None:
    free = small.stats().free
    with pytest.raises(ra.OutOfMemory) as info:
        small.kmalloc(2 * MIB, ra.GFP_KERNEL | ra.GFP_ZERO)
    text = str(info.value)
    assert isinstance(info.value, MemoryError)
    for part in (
        f"kmalloc({2 * MIB})",
        "GFP_KERNEL|__GFP_ZERO",
        f"{free // 1024} KiB of {free // 1024} KiB free in zone Normal",
        "largest block 64 KiB",
        "0 buffers leased",
        "raise the arena's size",
    ):
        assert part in text
    small.set_limit(10 * PAGE)
    with pytest.raises(ra.OutOfMemory, match=r"alloc_pages\(order=4\), GFP_ATOMIC: 40 KiB of 40 KiB .*set_limit"):
        small.alloc_pages(4, ra.GFP_ATOMIC)


def test_the_locked_zone_is_its_own_knob() -> None:
    with ra.Arena(MIB, lock=8 * PAGE) as arena:
        held = exhaust(lambda: arena.alloc_pages(0, ra.GFP_DMA))
        assert len(held) == 8
        text = refuses(arena, ra.OutOfMemory, "zone DMA", arena.kmalloc, 100, ra.GFP_KERNEL | ra.GFP_DMA)
        assert "0 B of 32 KiB free" in text and "raise lock=" in text and "__GFP_DMA" in text
        held.clear()
        arena.kfree(arena.kmalloc(100, ra.GFP_DMA))
    with ra.Arena(MIB) as arena:
        refuses(
            arena,
            ra.OutOfMemory,
            r"no locked zone; make it with Arena\(..., lock=bytes\)",
            arena.kmalloc,
            9,
            ra.GFP_DMA,
        )


def test_after_running_out_everything_comes_back(small: ra.Arena) -> None:
    free = small.stats().free
    for _ in range(2):
        held = eat_everything(small)
        assert small.stats().free == 0
        for verb in ("kmalloc", "kzalloc", "vmalloc", "kvmalloc"):
            refuses(small, ra.OutOfMemory, "0 B of .* free", getattr(small, verb), 8192)
        held.clear()
        small.trim()
        assert small.stats().free == free


def test_empty_slabs_are_reclaimed_before_memory_runs_out(small: ra.Arena) -> None:
    for size in layout.KMALLOC_SIZES:
        held = [small.kmalloc(size) for _ in range(10)]
        held.clear()
    assert small.stats().allocated > 0
    pages = small.alloc_pages_bulk(10**6)
    assert small.stats().slab == 0 or len(pages) < 256
    blocks = exhaust(lambda: small.alloc_pages(0))
    assert small.stats().free == 0 and small.stats().slab == 0
    del pages, blocks


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
