"""Samples of the system and the arena, on one time axis."""

from __future__ import annotations

import math

import pytest
from stressed import rows

from realalloc.lab.stress import Options
from realalloc.lab.stress.sampling import arena_numbers, as_series
from realalloc.lab.stress.site import Site
from realalloc.rss import ProcessSampler


def test_series_have_one_time_axis() -> None:
    found = as_series(rows(4.0))
    assert {series.seconds for series in found.values()} == {found["memory"].seconds}
    assert [series.unit for series in found.values()] == ["bytes", "share", "count", "per second"]
    for series in found.values():
        assert all(len(values) == len(series.seconds) for values in series.columns.values())
    verified = found["rates"].columns["verified"]
    assert math.isnan(verified[0]) and verified[1:] == pytest.approx([1e5] * (len(verified) - 1))


def test_nothing_was_sampled() -> None:
    assert as_series([])["memory"].seconds == ()


def test_a_real_sampler_gives_every_column() -> None:
    site = Site(Options(threads=1, arena=4 << 20))
    held = site.arena.kmalloc(100_000)
    with ProcessSampler(0.02, arena_numbers(site, lambda: 7)) as sampler:
        pass
    found = as_series(sampler.rows)
    memory, counts = found["memory"].columns, found["counts"].columns
    assert memory["allocated"][0] >= 100_000 and memory["rss"][0] >= memory["uss"][0] > 0
    assert counts["leases"][0] == 1 and counts["fds"][0] > 2 and counts["threads"][0] >= 2
    assert 0 <= found["fragmentation"].columns["fragmentation"][0] <= 1
    del held
    assert site.finish() == []
    site.close()
