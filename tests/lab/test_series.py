"""Numbers over time: their extent, and a line that is short enough to draw."""

from __future__ import annotations

import math

import numpy as np

from realalloc.lab.series import Series


def test_extents_and_lines_of_a_series() -> None:
    nan = math.nan
    series = Series((0.0, 1.0, 2.0, 3.0), {"a": (nan, 5.0, 9.0, 7.0), "b": (nan,) * 4})
    assert series.extent("a") == (5.0, 9.0, 7.0)
    assert series.extent("b") is None
    assert series.line("a")[0] == [0.0, 1.0, 2.0, 3.0]


def test_a_long_line_keeps_its_peaks() -> None:
    values = np.sin(np.arange(50_000) / 900)
    values[31_234], values[77], values[5000:9000] = 5.0, -5.0, math.nan
    series = Series(tuple(np.arange(50_000.0).tolist()), {"a": tuple(values.tolist())})
    seconds, kept = series.line("a", 1000)
    assert len(seconds) == len(kept) <= 1000
    assert seconds == sorted(seconds)
    assert kept[seconds.index(31_234.0)] == 5.0 and kept[seconds.index(77.0)] == -5.0
    assert any(math.isnan(value) for value in kept)
