"""Blocks: what their verbs accept and refuse, what sizes and bytes they have, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import Index, address, eat_everything, exhaust, refuses, unchanged
from support import MIB, PAGE

import realalloc as ra
from realalloc.mm import layout

SIZE_VERBS = ["kmalloc", "kzalloc", "vmalloc", "vzalloc", "kvmalloc", "alloc_pages_exact"]
WRONG_TYPES: list[Any] = [True, False, np.True_, 1.0, np.float64(8), "8", b"8", None, [8], 8j, np.array([1, 2])]
WRONG_VALUES = [-1, -(2**63), -(2**64), 2**63, 2**64, 2**100]


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


@pytest.mark.parametrize("nbytes", [1, 5000, 600_000, 5 << 20])
def test_no_area_pretends_to_be_locked(nbytes: int) -> None:
    """vmalloc has no pages of the locked zone: what asks for them gets them in one piece, or nothing."""
    flags = ra.GFP_KERNEL | ra.GFP_DMA
    with ra.Arena("16MiB", lock="1MiB", decay=None) as arena:
        locked = range(arena.stats().metadata, arena.stats().metadata + MIB)
        for verb in (arena.vmalloc, arena.vzalloc):
            text = refuses(arena, ra.OutOfMemory, "zone DMA", verb, nbytes, flags)
            assert "free in zone DMA, where no vmalloc area can be, " in text and "raise lock=" in text
        if nbytes <= 5000:
            with arena.kvmalloc(nbytes, flags) as buf:
                assert buf.obj.offset in locked
        else:
            refuses(arena, ra.OutOfMemory, "where no vmalloc area can be", arena.kvmalloc, nbytes, flags)
        refuses(arena, ra.OutOfMemory, "zone DMA", arena.vmalloc, nbytes, flags | ra.GFP_NOFAIL)
    with ra.Arena("16MiB") as arena:
        refuses(arena, ra.OutOfMemory, "this arena has no locked zone", arena.vmalloc, nbytes, flags)
