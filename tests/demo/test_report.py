"""The report: medians of the passes."""

from __future__ import annotations

import pytest

from realalloc.demo.report import Pass, summarize


def test_summary_is_of_medians() -> None:
    def one(way: str, seconds: float, faults: int) -> Pass:
        return Pass(way, seconds, 10 << 20, 100, 0.5, 0.5, faults, 0, 1000, 3000)

    passes = [one("pool", 1, 5), one("pool", 2, 7), one("pool", 100, 6), one("bytearray", 9, 9)]
    found = summarize("pool", passes, 1e6)
    assert (found.seconds, found.mib_per_second, found.minor_faults, found.rss_growth) == (2, 5.0, 6, 2000)
    assert found.buffer_share == pytest.approx(0.1)
