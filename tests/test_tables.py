"""What an arena tells of itself: each method is its text or record of this very arena, and none on a closed one."""

from __future__ import annotations

import inspect

import pytest

import realalloc as ra
from realalloc import procfs, views
from realalloc.tables import TableMethods

TEXTS = (
    "buddyinfo",
    "pagetypeinfo",
    "extfrag_index",
    "unusable_index",
    "zoneinfo",
    "slabinfo",
    "vmallocinfo",
    "meminfo",
)
RECORDS = ("stats", "fragmentation")


def test_these_are_all() -> None:
    found = [name for name, thing in vars(TableMethods).items() if inspect.isfunction(thing) and name[0] != "_"]
    assert sorted(found) == sorted((*TEXTS, *RECORDS))
    assert issubclass(ra.Arena, TableMethods)


def test_each_is_of_this_arena(busy: ra.Arena) -> None:
    with ra.Arena("16MiB") as other:
        for name in TEXTS:
            text = getattr(busy, name)()
            assert text == getattr(procfs, name)(busy.words) and text.endswith("\n")
            assert text != getattr(other, name)() or name == "extfrag_index"  # nothing would fail in either
        assert busy.stats() == views.stats(busy.words, busy.size) != other.stats()
        assert busy.fragmentation() == views.report_fragmentation(busy.words) != other.fragmentation()


def test_looking_changes_nothing() -> None:
    with ra.Arena("16MiB", decay=None) as arena:  # nobody gives pages back meanwhile
        held = [arena.kmalloc(size) for size in (8, 96, 5000, 70_000)] + [arena.vmalloc(30_000)]
        arena.kfree(held.pop(0))
        before = arena.stats()
        for name in (*TEXTS, *RECORDS):
            assert getattr(arena, name)() == getattr(arena, name)()
        assert arena.stats() == before
        held.clear()


@pytest.mark.parametrize("name", [*TEXTS, *RECORDS])
def test_a_closed_arena_tells_nothing(name: str) -> None:
    arena = ra.Arena("1MiB")
    arena.close()
    with pytest.raises(ra.ArenaClosed):
        getattr(arena, name)()
