"""What an arena says about itself in records: they add up, remember peaks, and cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from support import MIB

import realalloc as ra


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
