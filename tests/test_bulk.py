"""``cache.alloc_bulk``: batches of leases, whatever the collector does between two views."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from checks import quiet_child, some
from support import JIT

import realalloc as ra
from realalloc.lease import exporter_of

jitted = pytest.mark.skipif(not JIT, reason="only machine code takes batches")
SIZE = 48


@pytest.fixture
def eager() -> Iterator[None]:
    """Have the collector run at nearly every view that is made."""
    before = gc.get_threshold()
    gc.freeze()  # the rest of the process, which would take its time each time
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def check(arena: ra.Arena, views: list[memoryview], others: int = 0) -> None:
    """Views of a bulk are of as many live blocks, each with a lease of its own."""
    where = [exporter_of(view).offset for view in views]
    assert len(set(where)) == len({id(exporter_of(view)) for view in views}) == len(views)
    assert {len(view) for view in views} <= {SIZE}
    assert arena.stats().leases == len(views) + others


@pytest.mark.parametrize("number", [1, 2, 31, 32, 33, 63, 64, 65, 500, 3000])
def test_a_bulk_is_as_many_blocks_with_a_lease_each(arena: ra.Arena, number: int) -> None:
    cache = arena.kmem_cache("c", SIZE)
    for _ in range(3):
        views = cache.alloc_bulk(number)
        assert len(views) == number
        check(arena, views)
        for k, view in enumerate(views):
            view[:] = bytes([k % 251]) * SIZE
        assert all(view == bytes([k % 251]) * SIZE for k, view in enumerate(views))
        del view
        kept = views[:: max(number // 7, 1)]  # each goes by itself
        del views
        check(arena, kept)
        assert sorted(exporter_of(view).offset for view in kept) == cache.live_objects()
        kept.clear()
    assert arena.stats().leases == 0
    cache.validate()
    arena.validate()
    cache.destroy()


def test_more_leases_die_than_exporters_are_kept(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", SIZE)
    for _ in range(2):
        views = cache.alloc_bulk(2500)
        single = [cache.alloc() for _ in range(50)]
        check(arena, views + single)
        del views
        check(arena, single)
        del single
    assert arena.stats().leases == 0
    arena.validate()


def test_a_bulk_of_a_cache_without_sheaves_or_with_a_constructor() -> None:
    with ra.Arena("4MiB", debug="F") as arena:
        cache = arena.kmem_cache("c", SIZE)
        check(arena, cache.alloc_bulk(100))
        made: list[int] = []
        other = arena.kmem_cache("d", SIZE, ctor=lambda view: made.append(len(view)))
        check(arena, other.alloc_bulk(100))
        assert len(made) >= 100
        assert arena.stats().leases == 0
        arena.validate()


def test_a_bulk_that_cannot_be_had_leaves_nothing(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", 8192)
    for _ in range(2):
        with pytest.raises(ra.OutOfMemory):
            cache.alloc_bulk(arena.size // 8192)
        assert arena.stats().leases == 0
        assert cache.live_objects() == []
    arena.validate()


@pytest.mark.usefixtures("eager")
def test_finalizers_lease_between_two_views(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", SIZE)
    kept: list[Any] = []
    ran: list[int] = []

    class Meddler:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            ran.append(1)
            if len(kept) > 100:
                del kept[::2]
            kept.extend(cache.alloc_bulk(len(ran) % 40 + 1))
            kept.append(cache.alloc())
            kept.append(arena.kmalloc(SIZE))
            cache.free(cache.alloc())

    for k in range(some(300, 30)):
        Meddler()
        views = cache.alloc_bulk(1 + k % 70)
        for view in views:
            view[:8] = b"12345678"
        gc.collect()
        check(arena, views + kept)
        assert all(view[:8] == b"12345678" for view in views)
        view = None
    assert len(ran) >= 30
    views.clear()
    kept.clear()
    gc.collect()
    assert arena.stats().leases == 0
    arena.validate()


CLOSER = """
import gc, sys, warnings, realalloc as ra
warnings.simplefilter("ignore")
class Closer:
    def __init__(self, arena):
        self.arena = arena
        self.me = self
    def __del__(self):
        self.arena.close()
done = set()
ra.Arena("4MiB").close()
gc.collect()
gc.freeze()
for number in (1, 33, 100):
    for count in range(0, 70, 3):
        lists = [[] for _ in range(200)]  # no list is left that could be used again: one more is told to the collector
        gc.disable()
        arena = ra.Arena("4MiB")
        bulk = arena.kmem_cache("c", 48).alloc_bulk
        bulk(number)
        gc.collect()
        Closer(arena)
        lists += [[] for _ in range(200)]
        before = gc.get_count()[0]
        gc.set_threshold(before + count, 1000, 1000)
        gc.enable()
        try:
            views = bulk(number)
        except ra.ArenaClosed:
            views = []
        gc.disable()
        gc.set_threshold(700, 10, 10)
        done.add((arena.closed, len(views)))
        for view in views:
            view[:] = b"x" * 48
        del views
        view = None
        gc.collect()
        assert arena.closed
inside = (True, 0) in done  # since 3.12 the collector waits for the end of the call
assert (False, 1) in done and (inside or sys.version_info >= (3, 12) and (True, 1) in done), done
print("whole")
"""


def test_an_arena_that_a_finalizer_closes_stays_mapped_for_the_views_of_a_bulk() -> None:
    quiet_child(CLOSER, expect="whole")


LOOKER = """
import gc, realalloc as ra
arena = ra.Arena("4MiB")
cache = arena.kmem_cache("c", 48)
cache.alloc_bulk(80)
lengths = []
class Looker:
    def __init__(self):
        self.me = self
    def __del__(self):
        for thing in gc.get_objects():
            if type(thing) is list and thing is not lengths:
                lengths.append(sum(1 for _ in thing))
gc.collect()
gc.freeze()
gc.set_threshold(1, 1, 1)
for _ in range(100):
    Looker()
    views = cache.alloc_bulk(70)
    assert gc.is_tracked(views)
gc.collect()
assert lengths
print("whole")
"""


def test_nobody_sees_a_list_that_is_not_full() -> None:
    quiet_child(LOOKER, expect="whole")


@jitted
def test_a_bulk_without_memory_for_a_view_leaves_nothing() -> None:
    pytest.importorskip("_testcapi")
    quiet_child(
        """
import _testcapi, realalloc as ra
arena = ra.Arena("4MiB")
cache = arena.kmem_cache("c", 48)
cache.alloc_bulk(80)
failed = 0
for fail in range(400):
    views = None
    _testcapi.set_nomemory(fail, fail + 1)
    try:
        views = cache.alloc_bulk(80)
    except MemoryError:
        failed += 1
    finally:
        _testcapi.remove_mem_hooks()
    assert arena.stats().leases == (0 if views is None else 80), fail
    del views
    assert cache.live_objects() == [], fail
assert failed > 100, failed
arena.validate()
arena.close()
print("whole")
""",
        expect="whole",
    )


@jitted
def test_exporters_of_a_batch_are_used_again(arena: ra.Arena) -> None:
    cache = arena.kmem_cache("c", SIZE)
    before = {id(exporter_of(view)) for view in cache.alloc_bulk(32)}
    assert {id(exporter_of(view)) for view in cache.alloc_bulk(32)} == before
