"""What an arena says about itself in records: they add up, remember peaks, and cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from support import MIB

import realalloc as ra
from realalloc import views, zones
from realalloc.mm.drain import cached_objects
from realalloc.mm.reclaim import reclaim


def test_stats_add_up(busy: ra.Arena) -> None:
    s = busy.stats()
    start = s.size - s.metadata
    dma = MIB if "DMA" in busy.buddyinfo() else 0
    assert s.free + s.allocated == s.limit + dma
    assert s.limit + dma <= start
    assert s.allocated <= s.peak_allocated and s.committed <= s.peak_committed
    assert s.slab_used <= s.slab <= s.allocated
    assert s.live_areas == 1 and s.live_blocks == 4
    assert s.leases == 32 and s.lingering == 0
    busy.trim()  # what was freed is in the thread's sheaves until then
    trimmed = busy.stats()
    assert trimmed.page_allocs > trimmed.page_frees > 0 and trimmed.live_blocks == 4 and trimmed.free > s.free
    assert s.as_dict()["allocated"] == s.allocated and set(s.as_dict()) == set(type(s).__dataclass_fields__)
    with pytest.raises(FrozenInstanceError):
        s.size = 1  # type: ignore[misc]


def test_peaks_remember() -> None:
    with ra.Arena(MIB) as arena:
        with arena.kmalloc(100_000):
            pass
        s = arena.stats()
        assert s.allocated == 0 and s.peak_allocated == 128 << 10 and s.peak_committed >= 128 << 10


def test_what_is_in_use_is_told_exactly_though_kswapd_drains_sheaves_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with ra.Arena("16MiB") as arena:
        cache = arena.kmem_cache("c", 48)
        drains: list[int] = []

        def count_amid_a_drain(words: object, index: int) -> int:
            if drains:
                reclaim(words)
                drains.pop()
            return int(cached_objects(words, index))

        for module in (views, zones):
            monkeypatch.setattr(module, "cached_objects", count_amid_a_drain)
        held = [*cache.alloc_bulk(5), arena.kmalloc(100_000)]
        for counts in ("objects", "blocks"):
            freed = [*cache.alloc_bulk(200), *[arena.kmalloc(50_000) for _ in range(3)]]
            freed.clear()
            assert arena.stats().cached > 0
            drains.append(1)
            found = cache.stats().active_objects if counts == "objects" else zones.live_blocks(arena.words)
            assert (found, drains) == (5 if counts == "objects" else 1, [])
        held.clear()
