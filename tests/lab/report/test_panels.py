"""Panels: what charts a report has, and the numbers of their lines."""

from __future__ import annotations

import math

import pytest
from reports import PEERS, SIZES, make_report

from realalloc.lab.report.panels import (
    LATENCY,
    THROUGHPUT,
    TIME,
    latency_panels,
    log_ticks,
    panels,
    series_panel,
    spell_ns,
    spell_rate,
    tail_ticks,
    throughput_panels,
)
from realalloc.lab.results import Report
from realalloc.lab.series import Series

REPORT = make_report(12, 5, 2000)


def test_panels_are_for_what_is_there() -> None:
    kinds = [panel.kind for panel in panels(REPORT)]
    assert kinds == [LATENCY] * 6 + [THROUGHPUT] + [TIME]
    assert panels(Report("bench", {}, {})) == []
    for panel in panels(REPORT):
        assert [curve.peer for curve in panel.curves] == list(PEERS)
        assert all(len(curve.xs) == len(curve.ys) for curve in panel.curves)


def test_ticks() -> None:
    assert [text for _, text in tail_ticks(5.0)] == ["0", "50", "90", "99", "99.9", "99.99", "99.999"]
    assert tail_ticks(0.0) == [(0.0, "0")]
    curve = panels(REPORT)[0].curves[0]
    curve.ys = [12.0, 3.0e6]
    assert log_ticks([curve], str) == [(value, str(value)) for value in (10.0, 100.0, 1e3, 1e4, 1e5, 1e6)]
    curve.ys = [30.0, 31.0]
    assert [tick for tick, _ in log_ticks([curve], str) or ()] == [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]
    curve.ys = [0.0]
    assert log_ticks([curve], str) is None


def test_bytes_are_drawn_in_mib_and_nothing_else_is_scaled() -> None:
    series = Series((0.0, 2.0), {"RSS": (2.0**20, 2.0**21), "_committed": (float("nan"), 2.0**20)})
    panel = series_panel(series, "stress")
    assert (panel.kind, panel.title, panel.x_label, panel.y_label) == (TIME, "stress", "seconds", "MiB")
    assert [(curve.peer, curve.xs) for curve in panel.curves] == [("RSS", [0.0, 2.0]), ("_committed", [0.0, 2.0])]
    assert panel.curves[0].ys == [1.0, 2.0] and math.isnan(panel.curves[1].ys[0])
    other = series_panel(Series((0.0,), {"a": (3.0,)}, "ops/s"), "t")
    assert other.curves[0].ys == [3.0] and other.y_label == "ops/s"


def test_latency_is_a_curve_that_rises() -> None:
    for panel in latency_panels(REPORT):
        assert panel.log_y and not panel.log_x and panel.y_ticks
        for curve in panel.curves:
            assert curve.xs == sorted(curve.xs) and curve.ys == sorted(curve.ys) and curve.low == []
        assert panel.ticks == tail_ticks(max(curve.xs[-1] for curve in panel.curves))


def test_throughput_has_its_interval_around_each_point() -> None:
    (panel,) = throughput_panels(REPORT)
    assert [place for place, _ in panel.ticks or ()] == list(SIZES)
    for curve in panel.curves:
        assert curve.xs == list(SIZES)
        assert all(low <= middle <= high for low, middle, high in zip(curve.low, curve.ys, curve.high, strict=True))


@pytest.mark.parametrize(
    ("value", "ns", "rate"),
    [(1.0, "1 ns", "1"), (999.0, "999 ns", "999"), (2000.0, "2 us", "2 k"), (5e6, "5 ms", "5 M"), (1e9, "1 s", "1 G")],
)
def test_ticks_are_spelled(value: float, ns: str, rate: str) -> None:
    assert (spell_ns(value), spell_rate(value)) == (ns, rate)
