"""kswapd's run up to the high mark, step by step: in the kernel's order, as far as needed, and its end."""

from __future__ import annotations

from kernels import give_objects, make_cache, take_objects, zone_word
from support import MIB, PAGE, RawArena

from realalloc import gfp as flags
from realalloc.mm.balance import balance_tick
from realalloc.mm.decay import IDLE_NS, serve
from realalloc.mm.kmalloc import kfree, vmalloc
from realalloc.mm.layout import (
    C_NR_EMPTY,
    H_CLOSED,
    H_NR_RECORDS,
    H_VM_LAZY_PAGES,
    STAGE_AREAS,
    STAGE_IDLE,
    STAGE_SHEAVES,
    STAGE_SLABS,
    Z_FAILURES,
    Z_STAGE,
    Z_WAKES,
    ZONE_NORMAL,
)
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.watermark import MAX_FAILURES, set_marks
from realalloc.zones import zone_free_pages

LOW, HIGH = 400, 480


def free(raw: RawArena) -> int:
    return zone_free_pages(raw.words, ZONE_NORMAL)


def stage(raw: RawArena) -> int:
    return zone_word(raw, ZONE_NORMAL, Z_STAGE)


def below_low(areas: int = 4, lowest: int = 320) -> tuple[RawArena, int]:
    """Make an arena in which everything is kept that can be, and wake kswapd by an allocation; return a cache of it, too."""
    raw = RawArena(8 * MIB)
    c = make_cache(raw, 4000)
    give_objects(raw, c, take_objects(raw, c, 200))
    for offset in [int(vmalloc(raw.words, 30 * PAGE, 0)) for _ in range(areas)]:
        assert kfree(raw.words, offset) == 0
    set_marks(raw.words, ZONE_NORMAL, lowest, LOW, HIGH)
    serve(raw.words, 1, 0)
    while stage(raw) == STAGE_IDLE:
        assert alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0
    assert lowest < free(raw) < LOW
    return raw, c


def test_a_run_takes_sheaves_then_slabs_then_areas_and_stops_at_high() -> None:
    raw, c = below_low()
    seen = []
    while stage(raw) != STAGE_IDLE:
        seen.append(stage(raw))
        assert balance_tick(raw.words) == (0 if stage(raw) != STAGE_IDLE else IDLE_NS)
        if seen[-1] == STAGE_SHEAVES:
            assert raw.words[H_NR_RECORDS] == 0
        if seen[-1] == STAGE_SLABS:
            assert raw.words[c + C_NR_EMPTY] == 0
        raw.validate()
    assert seen[:2] == [STAGE_SHEAVES, STAGE_SLABS] and set(seen[2:]) <= {STAGE_AREAS}
    assert HIGH <= free(raw) and zone_word(raw, ZONE_NORMAL, Z_WAKES) == 1
    assert raw.words[H_VM_LAZY_PAGES] in (0, 30, 60, 90, 120) and zone_word(raw, ZONE_NORMAL, Z_FAILURES) == 0
    assert balance_tick(raw.words) == IDLE_NS, "nothing to do"


def test_the_oldest_areas_go_first_and_no_more_of_them_than_needed() -> None:
    raw, _ = below_low(areas=10)
    give = 10 * 30
    while stage(raw) != STAGE_IDLE:
        left = int(raw.words[H_VM_LAZY_PAGES])
        balance_tick(raw.words)
        assert left - int(raw.words[H_VM_LAZY_PAGES]) in (0, 30), "one area a step"
    assert 0 < int(raw.words[H_VM_LAZY_PAGES]) < give
    assert HIGH <= free(raw) < HIGH + 200
    raw.validate()


def test_runs_that_bring_nothing_are_counted_and_end() -> None:
    raw, _ = below_low(areas=0)
    taken = []
    while (pfn := int(alloc_pages(raw.words, 0, flags.GFP_DIRECT_RECLAIM))) > 0:
        taken.append(pfn)  # nothing is kept now, in this thread or for it
    for run in range(1, MAX_FAILURES + 1):
        while stage(raw) != STAGE_IDLE:
            balance_tick(raw.words)
        assert zone_word(raw, ZONE_NORMAL, Z_FAILURES) == run
        alloc_pages(raw.words, 0, flags.GFP_NOWAIT)
        assert stage(raw) == (STAGE_SHEAVES if run < MAX_FAILURES else STAGE_IDLE)
    for pfn in taken:
        assert free_pages(raw.words, pfn, 0) == 0
    raw.validate()


def test_a_closed_arena_and_one_that_was_not_woken_are_let_alone() -> None:
    raw, _ = below_low()
    raw.words[H_CLOSED] = 1
    assert balance_tick(raw.words) == IDLE_NS and stage(raw) == STAGE_SHEAVES
    raw.words[H_CLOSED] = 0
    serve(raw.words, 0, 0)
    assert balance_tick(raw.words) == IDLE_NS and stage(raw) == STAGE_SHEAVES, "it does not serve this one"
    other = RawArena(MIB)
    assert balance_tick(other.words) == IDLE_NS
