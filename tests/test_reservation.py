"""The range of an arena: what is advised, locked and resident when it is made, and nothing kept where that is refused."""

from __future__ import annotations

import ctypes
import gc

import pytest
from support import MIB, PAGE

import realalloc as ra
from realalloc import reservation
from realalloc.memory import Memory
from realalloc.mm import geometry
from realalloc.mm.layout import (
    H_COMMITTED_PAGES,
    HUGE_ALWAYS,
    HUGE_NEVER,
    KMALLOC_SIZES,
    Z_FRONTIER_PFN,
    Z_START_PFN,
    ZONE_DMA,
    ZONE_NORMAL,
    ZONE_WORDS,
    ZONES,
)
from realalloc.reservation import reserve_range

SHAPES = [
    (size, order, dma, limit)
    for size in (MIB, 3 * MIB + 5 * PAGE, 16 * MIB)
    for order in (0, 4, 10)
    for dma in (0, 3 * PAGE, 256 << 10)
    for limit in (None, MIB)
]


class Told(Memory):
    """Memory that writes down what it is asked for; ``refuse`` names the verb that the system has no room for."""

    calls: list[tuple[str, int, int]]
    refuse = ""

    def _say(self, verb: str, offset: int, nbytes: int) -> None:
        self.calls.append((verb, offset, nbytes))
        if verb == self.refuse:
            raise OSError(12, "Cannot allocate memory")

    def __init__(self, *how: int) -> None:
        type(self).calls = []
        self._say("reserve", 0, how[0])
        super().__init__(*how)

    def lock(self, offset: int, nbytes: int) -> None:
        self._say("lock", offset, nbytes)

    def commit(self, offset: int, nbytes: int) -> None:
        self._say("commit", offset, nbytes)

    def advise_huge(self, offset: int, nbytes: int, *, wanted: bool) -> None:
        self._say("huge" if wanted else "small", offset, nbytes)
        super().advise_huge(offset, nbytes, wanted=wanted)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    monkeypatch.setattr(reservation, "Memory", Told)
    monkeypatch.setattr(Told, "refuse", "")
    return Told


def frontiers(words: object, zone: int) -> int:
    at = ZONES + zone * ZONE_WORDS
    return int(words[at + Z_FRONTIER_PFN]) - int(words[at + Z_START_PFN])  # type: ignore[index]


@pytest.mark.parametrize("prefault", [False, True])
@pytest.mark.parametrize("huge", [HUGE_NEVER, HUGE_ALWAYS])
def test_exactly_what_was_asked_for_is_locked_and_resident(told: type[Told], huge: int, prefault: bool) -> None:
    for size, order, dma, limit in SHAPES:
        plan = geometry.plan(size, order, dma, limit)
        memory = reserve_range(plan, huge, KMALLOC_SIZES, prefault=prefault)
        asked = {verb: (offset, nbytes) for verb, offset, nbytes in told.calls if verb in ("lock", "commit")}
        first, locked = plan.meta_pages * PAGE, plan.dma_end_pfn - plan.meta_pages
        assert asked.get("lock") == ((first, locked * PAGE) if dma else None)
        normal = plan.end_pfn - plan.dma_end_pfn
        wanted = min(normal, plan.limit_pages)
        if huge == HUGE_ALWAYS and wanted < normal:  # up to a border of a unit of 2 MiB, no unit is half resident
            wanted = max(0, (plan.dma_end_pfn + wanted) // 512 * 512 - plan.dma_end_pfn)
        assert asked.get("commit") == ((plan.dma_end_pfn * PAGE, wanted * PAGE) if prefault and wanted else None)
        assert frontiers(memory.words, ZONE_DMA) == locked
        frontier = frontiers(memory.words, ZONE_NORMAL)  # moves by whole blocks
        assert wanted <= frontier < wanted + (1 << order) if prefault and wanted else frontier == 0
        committed = locked + (wanted if prefault else 0)
        assert memory.words[H_COMMITTED_PAGES] == committed
        covered = [call for call in told.calls if call[0] == "small"]
        assert ("small", 0, first) in covered  # metadata is touched a page at a time
        assert told.calls[0] == ("reserve", 0, plan.total_bytes)
        assert told.calls[1] == ("huge" if huge == HUGE_ALWAYS else "small", 0, plan.window_start_bytes)


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        ("reserve", r"raise the address space \(ulimit -v, vm.overcommit_memory\)$"),
        ("lock", r"raise RLIMIT_MEMLOCK \(ulimit -l\) for lock=65536$"),
        ("commit", "raise memory for prefault=True, or lower limit=$"),
    ],
)
def test_what_the_system_refuses_names_its_knob_and_keeps_nothing(told: type[Told], verb: str, says: str) -> None:
    told.refuse = verb
    gc.collect()
    before = mapped()
    for _ in range(20):
        with pytest.raises(ra.OutOfMemory, match=says) as info:
            ra.Arena("64MiB", lock="64KiB", prefault=True)
        assert str(info.value).startswith("cannot reserve ") and "Cannot allocate memory" in str(info.value)
        assert info.value.__cause__ is None and info.value.__suppress_context__
        del info
    gc.collect()
    assert mapped() - before < 64 * MIB
    told.refuse = ""
    with ra.Arena("1MiB", lock="64KiB") as arena:
        arena.validate()


def mapped() -> int:
    """Return the bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * PAGE


def test_what_is_prefaulted_is_there_and_zero() -> None:
    plan = geometry.plan(4 * MIB, 10, 0, 2 * MIB)
    memory = reserve_range(plan, HUGE_NEVER, KMALLOC_SIZES, prefault=True)
    first = plan.dma_end_pfn * PAGE
    assert memory.resident_pages(first, 2 * MIB) == 512
    assert memory.resident_pages(first + 2 * MIB, MIB) == 0
    assert not any(ctypes.string_at(memory.address + first, 2 * MIB))
