"""What charts a report has, and the numbers of their lines: drawn by matplotlib (charts.py) and by plotly (plots.py).

A :class:`Panel` is one pair of axes. Kinds: latency by percentile on a scale of the tail (0, 90, 99, 99.9 % are as far apart
from each other), operations a second by size, a number over time. There is no panel for what was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from realalloc.lab.report.grids import UNITS, label
from realalloc.lab.results import Report
from realalloc.lab.series import Series
from realalloc.sizes import format_bytes

LATENCY: Final = "latency"
THROUGHPUT: Final = "throughput"
TIME: Final = "time"
MIB: Final = 1 << 20


@dataclass(slots=True)
class Curve:
    """A line of one peer; ``low`` and ``high`` where it has an interval."""

    peer: str
    xs: list[float]
    ys: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Panel:
    """Axes with lines. ``ticks`` and ``y_ticks`` are (place, text); None leaves them to whoever draws."""

    kind: str
    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    log_x: bool = False
    log_y: bool = False
    ticks: list[tuple[float, str]] | None = None
    y_ticks: list[tuple[float, str]] | None = None


def panels(report: Report) -> list[Panel]:
    """Return all panels of a report, in the order of its tables."""
    found = latency_panels(report) + throughput_panels(report)
    return found + [series_panel(series, f"{name}: resident set") for name, series in report.resident.items()]


def latency_panels(report: Report) -> list[Panel]:
    """Return one panel for each row and kind of operation that was timed."""
    found = []
    for row in report.rows:
        for operation in row.operations_timed:
            timed = [(entry.peer, entry.latency(operation)) for entry in row.entries]
            curves = [Curve(peer, *latency.curve()) for peer, latency in timed if latency is not None and latency.count]
            if curves:
                title = f"{label(report, row)}: latency of {operation}"
                last = max(curve.xs[-1] for curve in curves)
                ticks = tail_ticks(last)
                panel = Panel(LATENCY, title, "percentile", "latency", curves, log_y=True, ticks=ticks)
                panel.y_ticks = log_ticks(curves, spell_ns)
                found.append(panel)
    return found


def tail_ticks(last: float) -> list[tuple[float, str]]:
    """Return (tail, percentile) up to a tail: 0, 50, 90, 99, 99.9, ..."""
    nines = [(float(n), f"{100 - 10.0 ** (2 - n):.{max(0, n - 2)}f}") for n in range(1, math.floor(last + 1e-9) + 1)]
    return [(0.0, "0"), *([(math.log10(2), "50")] if last >= math.log10(2) else []), *nines]


def throughput_panels(report: Report) -> list[Panel]:
    """Return one panel for each family of rows that differ in their size only."""
    found = []
    for family in report.size_curves():
        curves = []
        for peer, points in family.points.items():
            rates = [rate for _, rate in points]
            sizes, middle = [float(size) for size, _ in points], [rate.value for rate in rates]
            curves.append(Curve(peer, sizes, middle, [rate.low for rate in rates], [rate.high for rate in rates]))
        sizes = sorted({size for curve in curves for size in curve.xs})
        title, ticks = f"{family.title}, throughput by size", [(size, format_bytes(int(size))) for size in sizes]
        panel = Panel(THROUGHPUT, title, "size", "operations a second", curves, log_x=True, log_y=True, ticks=ticks)
        panel.y_ticks = log_ticks(curves, spell_rate)
        found.append(panel)
    return found


def series_panel(series: Series, title: str) -> Panel:
    """Return the panel of numbers over time; bytes are drawn in MiB."""
    scale, unit = (MIB, "MiB") if series.unit == "bytes" else (1, series.unit)
    curves = []
    for name in series.columns:
        seconds, values = series.line(name)
        curves.append(Curve(name, seconds, [value / scale for value in values]))
    return Panel(TIME, title, "seconds", unit, curves)


def log_ticks(curves: Sequence[Curve], spell: Callable[[float], str]) -> list[tuple[float, str]] | None:
    """Return ticks of a log axis: its decades, or 1, 2, 5 where there are few; None where nothing is above zero."""
    seen = [value for curve in curves for value in curve.ys if value > 0 and math.isfinite(value)]
    if not seen:
        return None
    low, high = min(seen), max(seen)
    steps = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low * 0.8 <= tick <= high * 1.25]
    return [(tick, spell(tick)) for tick in (inside if len(inside) > 1 else ticks)]


def spell_ns(ns: float) -> str:
    """Spell the time of a tick."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if ns >= scale), (1.0, "ns"))
    return f"{ns / scale:g} {unit}"


def spell_rate(rate: float) -> str:
    """Spell the rate of a tick."""
    scale, unit = next(
        ((scale, unit) for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if rate >= scale), (1, "")
    )
    return f"{rate / scale:g}{unit}"
