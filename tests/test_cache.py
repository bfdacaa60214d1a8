"""Caches: objects of one size, constructed once a slab, freed to their own cache only, gone when asked."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
from checks import NOT_MEMORYVIEWS, Worker, address, exhaust, refuses, some, unchanged
from support import MIB, PAGE

import realalloc as ra


@pytest.mark.parametrize("size", [1, 8, 24, 100, 700, 2048, 5000, 70_000, MIB])
@pytest.mark.parametrize("align", [1, 8, 64, 4096])
def test_objects_have_the_size_asked_the_alignment_asked_and_do_not_overlap(
    arena: ra.Arena, size: int, align: int
) -> None:
    cache = arena.kmem_cache("things", size, align=align)
    objs = [cache.alloc() for _ in range(5)]
    for k, obj in enumerate(objs):
        assert len(obj) == size and address(obj) % align == 0
        obj[:] = bytes([k]) * size
    assert all(bytes(obj) == bytes([k]) * size for k, obj in enumerate(objs))
    cache.validate()
    assert arena.ksize(objs[0]) >= size
    for obj in objs:
        cache.free(obj)
    del obj, objs
    cache.destroy()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("", 8), ValueError, "name"),
        (("two words", 8), ValueError, "name"),
        (("nul\0", 8), ValueError, "name"),
        (("x" * 65, 8), ValueError, "name"),
        ((b"bytes", 8), TypeError, "name must be a str, not bytes"),
        (("c", 0), ValueError, "size must be at least 1"),
        (("c", -8), ValueError, "size must be at least 1"),
        (("c", 8.0), TypeError, "size must be an integer"),
        (("c", True), TypeError, "size must be an integer, not bool"),
        (("c", (4 << 20) + 1), ValueError, "size must be at most 4194304"),
        (("c", 2**63), ValueError, "size must be at most"),
        (("kmalloc-64", 8), ValueError, "exists"),
    ],
)
def test_bad_names_and_sizes_are_refused(arena: ra.Arena, arguments: Any, error: type[Exception], words: str) -> None:
    refuses(arena, error, words, arena.kmem_cache, *arguments)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"align": 3}, ValueError, "power of two"),
        ({"align": 0}, ValueError, "align must be at least 1"),
        ({"align": 8192}, ValueError, "at most a page"),
        ({"align": 8.0}, TypeError, "align must be an integer"),
        ({"ctor": 5}, TypeError, "ctor must be callable"),
        ({"gfp": ra.GFP_DMA}, ValueError, "locked zone"),
        ({"gfp": 2}, ValueError, "unknown bits"),
    ],
)
def test_bad_options_are_refused(arena: ra.Arena, options: Any, error: type[Exception], words: str) -> None:
    refuses(arena, error, words, lambda: arena.kmem_cache("c", 64, **options))
    arena.kmem_cache("c", 64).destroy()


def test_a_name_is_unique_until_its_cache_is_destroyed(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("größe", 64)
    refuses(arena, ValueError, "a cache named 'größe' exists", arena.kmem_cache, "größe", 8)
    assert cache.stats().name == "größe" and "größe" in arena.slabinfo()
    cache.destroy()
    assert "größe" not in arena.slabinfo()
    arena.kmem_cache("größe", 8).destroy()


def test_the_table_of_caches_can_be_filled_and_emptied(arena: ra.Arena) -> None:
    made: list[Any] = []
    with pytest.raises(ValueError, match="table of 128 caches is full"):
        while True:
            made.append(arena.kmem_cache(f"c{len(made)}", 16))
    arena.validate()
    assert len(made) > 100
    made.pop(50).destroy()
    made.append(arena.kmem_cache("again", 99))
    for cache in made:
        cache.destroy()


def test_free_takes_this_caches_live_objects_only(arena: ra.Arena) -> None:
    cache, other = arena.kmem_cache("one", 64), arena.kmem_cache("two", 64)
    obj, foreign = cache.alloc(), other.alloc()
    for thing in NOT_MEMORYVIEWS:
        refuses(arena, TypeError, f"not {type(thing).__name__}", cache.free, thing)
    refuses(arena, TypeError, "not NoneType", cache.free, None)
    refuses(arena, ra.InvalidFree, "another cache", cache.free, foreign)
    refuses(arena, ra.InvalidFree, "another cache", cache.free, arena.kmalloc(64))
    refuses(arena, ra.InvalidFree, "foreign", cache.free, memoryview(bytearray(64)))
    refuses(arena, ra.InvalidFree, "slice", cache.free, obj[1:])
    refuses(arena, ra.InvalidFree, "slice", cache.free, obj.cast("Q"))
    cache.free(obj)
    refuses(arena, ra.InvalidFree, "freed already", cache.free, obj)
    other.free(foreign)
    cache.destroy()
    other.destroy()


def test_kfree_takes_a_caches_object_as_in_the_kernel(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 64)
    arena.kfree(cache.alloc())
    assert cache.stats().active_objects == 0
    cache.destroy()


def test_an_object_with_a_slice_alive_is_not_handed_out_again(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 64)
    obj = cache.alloc()
    obj[:] = b"s" * 64
    part = np.frombuffer(obj, np.uint8)[5:]
    cache.free(obj)
    assert arena.stats().lingering == 1
    others = cache.alloc_bulk(some(500, 100))
    for other in others:
        other[:] = bytes(64)
    assert part.tobytes() == b"s" * 59
    del part, other
    others.clear()
    cache.destroy()


def test_bulk_is_all_or_nothing() -> None:
    with ra.Arena(MIB, max_order=3) as arena:
        cache = arena.kmem_cache("c", 4096)
        objs = cache.alloc_bulk(20)
        assert len({address(obj) for obj in objs}) == 20
        refuses(arena, ra.OutOfMemory, r"alloc from cache 'c' \(4096 bytes\)", cache.alloc_bulk, 10_000)
        refuses(arena, ValueError, "n must be at least 0", cache.alloc_bulk, -1)
        refuses(arena, TypeError, "n must be an integer", cache.alloc_bulk, 2.0)
        assert cache.alloc_bulk(0) == []
        refuses(arena, ra.InvalidFree, "named twice", cache.free_bulk, [*objs, objs[0]])
        refuses(arena, ra.InvalidFree, "foreign", cache.free_bulk, [*objs, memoryview(b"x")])
        cache.free_bulk(objs)
        refuses(arena, ra.InvalidFree, "freed already", cache.free_bulk, objs)
        cache.free_bulk(iter(cache.alloc_bulk(3)))
        cache.destroy()
        arena.validate()


def test_destroy_is_refused_while_objects_are_out_and_names_them(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 64)
    objs = cache.alloc_bulk(10)
    text = refuses(arena, BufferError, "cache 'c' still has 10 objects in use", cache.destroy)
    assert hex(address(objs[0]) - arena.address) in text and "and 2 more" in text
    assert sorted(cache.live_objects()) == sorted(address(obj) - arena.address for obj in objs)
    part = objs[0][3:]
    cache.free_bulk(objs)
    refuses(arena, BufferError, "1 objects in use", cache.destroy)
    del part
    cache.destroy()
    for call in (cache.alloc, cache.stats, cache.destroy, cache.shrink, cache.validate, lambda: cache.alloc_bulk(1)):
        refuses(arena, ValueError, "was destroyed", call)


def test_shrink_gives_empty_slabs_back_in_bytes(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 512)
    objs = cache.alloc_bulk(200)
    before = arena.stats().allocated
    assert cache.shrink() == 0
    objs.clear()
    kept = cache.stats()
    assert kept.active_objects == 0 and kept.slabs > 0
    assert cache.shrink() == (kept.slabs << kept.order) * PAGE
    assert cache.stats().slabs == 0 and arena.stats().allocated < before
    cache.destroy()


def test_stats_count_objects_slabs_allocations_and_frees(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 100, align=32)
    objs = cache.alloc_bulk(50)
    cache.free_bulk(objs[:20])
    s = cache.stats()
    assert (s.name, s.object_bytes, s.stride_bytes, s.align_bytes) == ("c", 100, 128, 32)
    assert s.active_objects == 30
    cache.shrink()  # what the thread keeps is allocated, for the slabs
    s = cache.stats()
    assert s.active_objects == s.allocs - s.frees == 30
    assert s.total_objects == s.slabs * s.objects_per_slab >= 50
    assert s.as_dict()["slabs"] == s.slabs and s.slab_allocs - s.slab_frees == s.slabs
    with pytest.raises(AttributeError):
        s.slabs = 3  # type: ignore[misc]
    assert repr(cache) == f"<KmemCache 'c' 30/{s.total_objects} objects of 100 bytes>"
    del objs
    cache.destroy()


def test_gfp_zero_gives_zeros_and_gfp_dma_the_locked_zone() -> None:
    with ra.Arena(4 * MIB, lock=MIB) as arena:
        cache = arena.kmem_cache("dma", 3000, gfp=ra.GFP_DMA)
        with cache.alloc() as obj:
            obj[:] = b"\xff" * 3000
            assert address(obj) - arena.address - arena.stats().metadata < MIB
        with cache.alloc(ra.GFP_KERNEL | ra.GFP_ZERO) as obj:
            assert bytes(obj) == bytes(3000)
        cache.destroy()


# -- constructors ----------------------------------------------------------------------------------------------------


def test_the_constructor_runs_once_for_each_object_of_a_slab_and_its_state_survives(arena: ra.Arena) -> None:
    calls: list[int] = []

    def construct(view: memoryview) -> None:
        assert len(view) == 200 and not view.readonly
        view[:8] = len(calls).to_bytes(8, "little")
        calls.append(address(view))

    cache = arena.kmem_cache("c", 200, ctor=construct)
    assert calls == [], "nothing is allocated yet"
    for _ in range(3):
        objs = cache.alloc_bulk(some(300, 60))
        for obj in objs:
            assert calls[int.from_bytes(obj[:8], "little")] == address(obj)
            obj[8:] = b"u" * 192
        del obj
        objs.clear()
    s = cache.stats()
    assert len(calls) == s.slab_allocs * s.objects_per_slab
    cache.shrink()
    calls.clear()
    cache.alloc()
    assert len(calls) == s.objects_per_slab, "a new slab is constructed anew"
    cache.destroy()


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_a_constructor_that_raises_loses_nothing_and_the_next_one_works(arena: ra.Arena, fails_at: int) -> None:
    calls: list[int] = []

    def construct(view: memoryview) -> None:
        calls.append(1)
        if len(calls) == fails_at + 1:
            raise KeyError("not today")

    cache = arena.kmem_cache("c", 100, ctor=construct)
    with unchanged(arena):
        with pytest.raises(KeyError, match="not today") as info:
            cache.alloc()
        del info
        gc.collect()
    assert cache.stats().slabs == 0
    assert len(cache.alloc()) == 100
    cache.destroy()


def test_the_traceback_of_a_failed_constructor_keeps_no_object_but_its_own(arena: ra.Arena) -> None:
    def construct(view: memoryview) -> None:
        if len(seen) == 5:
            raise ValueError("five")
        seen.append(1)

    seen: list[int] = []
    cache = arena.kmem_cache("c", 100, ctor=construct)
    try:
        cache.alloc()
    except ValueError as error:
        assert arena.stats().leases == 1, "the view that the failed call still names"
        del error
    gc.collect()
    assert arena.stats().leases == 0
    cache.destroy()


def test_a_constructor_that_keeps_a_slice_keeps_its_slab_from_being_used(arena: ra.Arena) -> None:
    kept: list[Any] = []

    def construct(view: memoryview) -> None:
        view[:] = b"c" * 64
        if not kept:
            kept.append(view[4:9])

    cache = arena.kmem_cache("c", 64, ctor=construct)
    refuses_to_serve = pytest.raises(RuntimeError, match="keeps views of the objects")
    with refuses_to_serve:
        cache.alloc()
    objs = cache.alloc_bulk(100)
    for obj in objs:
        obj[:] = bytes(64)
    assert bytes(kept[0]) == b"c" * 5
    arena.validate()
    with pytest.raises(BufferError):
        cache.destroy()
    del obj
    objs.clear()
    kept.clear()
    kept.append(None)
    gc.collect()
    arena.validate()
    cache.destroy()


def test_a_constructor_may_use_the_arena_itself(arena: ra.Arena) -> None:
    held: list[memoryview] = []
    cache = arena.kmem_cache("c", 64, ctor=lambda view: held.append(arena.kmalloc(10)))
    with cache.alloc():
        assert len(held) == cache.stats().total_objects
    held.clear()
    cache.destroy()


def test_gfp_zero_and_a_constructor_contradict_each_other(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 64, ctor=lambda view: None)
    refuses(arena, ValueError, "constructed state", cache.alloc, ra.GFP_ZERO)
    cache.destroy()


def test_running_out_while_constructing_is_out_of_memory() -> None:
    with ra.Arena(MIB, max_order=3) as arena:
        cache = arena.kmem_cache("c", 2048, ctor=lambda view: None)
        objs = exhaust(cache.alloc)
        assert len(objs) > 300
        refuses(arena, ra.OutOfMemory, "cache 'c'", cache.alloc)
        objs.clear()
        cache.destroy()
        arena.validate()


@pytest.mark.parametrize("constructed", [False, True])
def test_threads_share_a_cache_and_no_object_is_with_two_of_them(arena: ra.Arena, constructed: bool) -> None:
    cache = arena.kmem_cache("c", 128, ctor=(lambda view: None) if constructed else None)
    ready = threading.Barrier(4)

    def work(me: int) -> int:
        ready.wait()
        held: list[memoryview] = []
        for k in range(some(2000, 100)):
            obj = cache.alloc()
            obj[:] = bytes([me]) * 128
            held.append(obj)
            if k % 3:
                obj = held.pop(k % len(held))
                assert bytes(obj) == bytes([me]) * 128
                cache.free(obj)
        return me

    workers = [Worker(lambda me=me: work(me)) for me in range(4)]
    assert [worker.result() for worker in workers] == [0, 1, 2, 3]
    cache.validate()
    cache.destroy()


def test_without_sheaves_every_allocation_and_free_is_counted_at_once() -> None:
    with ra.Arena(4 * MIB, debug="F") as arena:
        cache = arena.kmem_cache("c", 512)
        objs = cache.alloc_bulk(50)
        cache.free_bulk(objs[:20])
        s = cache.stats()
        assert (s.active_objects, s.allocs, s.frees) == (30, 50, 20)
        objs.clear()
        s = cache.stats()
        assert (s.active_objects, s.allocs, s.frees) == (0, 50, 50) and s.empty_slabs > 0
        cache.destroy()
