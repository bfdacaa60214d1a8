"""The tables of a report as text in cells: what a terminal, a page and a person read are the same numbers, spelled once.

A :class:`Grid` knows nothing of widths, colours or HTML. Cells may hold whatever a peer is called: who draws them escapes.
May not: compute; numbers come from ``results``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from realalloc.lab.intervals import Interval
from realalloc.lab.latencies import PERCENTILES, Latency, percentile_name
from realalloc.lab.results import JITTED, OURS, PYTHON, Entry, Report, Row, Standing, is_ours
from realalloc.sizes import format_bytes
from realalloc.text import Column

BEST: Final = "best"
TIED: Final = "tied"
VIEWS: Final = {JITTED: "inside jitted code", PYTHON: "as Python sees it"}
UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "us"))
NOTHING: Final = "-"
KEY: Final = (
    "* best of its row; ~ the rounds cannot tell it from the best (the 95 % interval of the ratio holds 1). x best: time by "
    "that of the best, round by round, with a bootstrap interval."
)
COUNTED: Final = (
    "Counted over all rounds of a peer, nothing where zero. faults: page faults, +n of them from disk; switches: context "
    "switches, waited/preempted; moves: to another CPU."
)


@dataclass(slots=True)
class Grid:
    """A table. ``marks`` has BEST, TIED or nothing for each row; the first column is names."""

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)

    def add(self, mark: str, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)
        self.marks.append(mark)

    def told(self) -> Grid:
        """Return the grid without the columns that may go (``rank``) and in which no row says anything."""
        kept = [k for k, column in enumerate(self.columns) if not column.rank or any(row[k] for row in self.rows)]
        rows = [tuple(row[k] for k in kept) for row in self.rows]
        return Grid(self.title, self.caption, tuple(self.columns[k] for k in kept), rows, self.marks)


def number(value: float, digits: int) -> str:
    """Spell a number with thousands separated; ``-`` for NaN."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else NOTHING


def digits_for(smallest: float) -> int:
    """Return how many decimals three significant digits of the smallest number of a column need."""
    return 2 if smallest < 10 else 1 if smallest < 100 else 0


def ratio(value: float) -> str:
    """Spell a ratio."""
    return number(value, digits_for(value))


def fine_ratio(value: float) -> str:
    """Spell a ratio that may be close to 1, where a verdict turns."""
    return number(value, 3) if value < 10 else ratio(value)


def between(interval: Interval, spell: Callable[[float], str]) -> str:
    """Spell the ends of an interval; nothing where one round gave it no width."""
    return f"{spell(interval.low)}-{spell(interval.high)}" if interval.low < interval.high else ""


def duration(ns: float) -> str:
    """Spell nanoseconds in at most six characters or so: ``4.1ns``, ``812ns``, ``1.23us``, ``45.6ms``."""
    for scale, unit in UNITS:
        if ns >= scale:
            value = ns / scale
            return f"{value:.{digits_for(value)}f}{unit}"
    return (f"{ns:.0f}ns" if ns >= 10 else f"{ns:.1f}ns") if math.isfinite(ns) else NOTHING


def count(value: int | None) -> str:
    """Spell a count in at most five characters or so; nothing for zero and for what the system does not tell."""
    if not value:
        return ""
    for scale, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if value >= scale:
            held = value / (1000 if unit == "k" else scale)
            return f"{held:.{1 if held < 100 else 0}f}{unit}"
    return str(value)


def label(report: Report, row: Row) -> str:
    """Return the name of a row within its report: with the view where both are there."""
    return f"{row.name}, {row.view}" if len({other.view for other in report.rows}) > 1 else row.name


def settings(values: dict[str, Any]) -> str:
    """Spell parameters and options: ``seed=1, threads=2``."""
    return ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)


def standings(row: Row) -> Grid:
    """Return everyone who took part in a row, the fastest first."""
    columns = (
        Column("peer", left=True),
        Column("ns"),
        Column("95 %", rank=3),
        Column("x best"),
        Column("95 %", rank=1),
        Column("faults", rank=1),
        Column("switches", rank=1),
        Column("moves", rank=1),
    )
    grid = Grid(f"{row.name}: ns per {row.operation}", _about(row), columns)
    stand = row.standings()
    digits = digits_for(stand[0].ns.value) if stand else 0

    def ns(value: float) -> str:
        return number(value, digits)

    for place in stand:
        grid.add(
            _mark(place),
            place.entry.peer,
            ns(place.ns.value),
            between(place.ns, ns),
            ratio(place.ratio.value),
            between(place.ratio, ratio),
            *counted(place.entry),
        )
    return grid


def _mark(place: Standing) -> str:
    return BEST if place.best else TIED if place.tied else ""


def _about(row: Row) -> str:
    """Say how a row was measured."""
    rounds = len(row.entries[0].rounds_ns) if row.entries else 0
    said = [VIEWS.get(row.view, row.view), f"{rounds} rounds of {row.operations:,}"]
    if row.harness_ns is not None:
        said.append(f"the loop alone {duration(row.harness_ns)}, in every number")
    if row.parameters:
        said.append(settings(row.parameters))
    return "; ".join(said)


def counted(entry: Entry) -> tuple[str, str, str]:
    """Spell what the system counted: faults, switches, moves."""
    seen = entry.counters
    faults = count(seen.minor_faults + seen.major_faults) + (
        f"+{count(seen.major_faults)}" if seen.major_faults else ""
    )
    waited, preempted = count(seen.voluntary_switches), count(seen.involuntary_switches)
    switches = f"{waited or 0}/{preempted or 0}" if waited or preempted else ""
    return faults, switches, count(seen.migrations)


def duels(report: Report) -> Grid | None:
    """Return one line a row: the best of ours against the best of the others; None where nobody is ours."""
    columns = (
        Column("row", left=True),
        Column("ns"),
        Column("of", left=True, rank=2),
        Column("best other", left=True),
        Column("its ns", rank=1),
        Column("ratio"),
        Column("95 %"),
    )
    title = f"{OURS} against the best other peer"
    caption = (
        f"ratio: ns of {OURS} by that of the other, below 1 is faster; * {OURS} is faster, ~ they cannot be told apart"
    )
    grid = Grid(title, caption, columns)
    several = sum(is_ours(peer) for peer in report.peers) > 1
    for row in report.rows:
        duel = row.duel()
        if duel is None:
            continue
        ours, other = duel.ours.median_ns, duel.other.median_ns
        mark = TIED if duel.ratio.low <= 1 <= duel.ratio.high else BEST if duel.ratio.high < 1 else ""
        grid.add(
            mark,
            label(report, row),
            number(ours, digits_for(ours)),
            duel.ours.peer if several else "",
            duel.other.peer,
            number(other, digits_for(other)),
            fine_ratio(duel.ratio.value),
            between(duel.ratio, fine_ratio),
        )
    return grid if grid.rows else None


def matrix(report: Report) -> Grid | None:
    """Return ns per operation with a column a peer, the best of a row with a star; None where there is nobody to compare."""
    peers = list(dict.fromkeys(peer for peer in report.peers if any(_has(row, peer) for row in report.rows)))
    if len(peers) < 2:
        return None
    columns = (Column("row", left=True), *(Column(peer) for peer in peers), Column("loop", rank=1))
    grid = Grid("ns per operation, everyone", "* best; loop: the loop alone", columns)
    for row in report.rows:
        if not row.entries:
            continue
        digits = digits_for(row.best.median_ns)
        best = row.best.peer
        cells = [
            f"{'*' if peer == best else ''}{number(row.entry(peer).median_ns, digits)}" if _has(row, peer) else ""
            for peer in peers
        ]
        loop = "" if row.harness_ns is None else number(row.harness_ns, digits)
        grid.add("", label(report, row), *cells, loop)
    return grid


def _has(row: Row, peer: str) -> bool:
    return any(entry.peer == peer for entry in row.entries)


def latencies(row: Row) -> Grid | None:
    """Return the percentiles of every operation that was timed in a row; None where none was. Best is who is at p99."""
    if not row.operations_timed:
        return None
    names = [percentile_name(p) for p in PERCENTILES]
    columns = (
        Column("peer", left=True),
        Column("", left=True, rank=1),
        *(Column(name, rank=2 * (name == "p90")) for name in names),
    )
    every = max((latency.in_every for entry in row.entries for latency in entry.latencies), default=1)
    which = "every operation" if every == 1 else f"one operation in {every}"
    overheads = [latency.overhead_ns for entry in row.entries for latency in entry.latencies]
    low, high = duration(min(overheads)), duration(max(overheads))
    spent = low if low == high else f"{low} to {high}"
    caption = f"{VIEWS.get(row.view, row.view)}; {which} timed: the clock adds {spent} to each, not subtracted"
    grid = Grid(f"{row.name}: latency", f"{caption}; * lowest p99", columns)
    for operation in row.operations_timed:
        timed = [(entry.peer, entry.latency(operation)) for entry in row.entries]
        found: list[tuple[str, Latency]] = [(peer, latency) for peer, latency in timed if latency is not None]
        lowest = min(latency.at(99) for _, latency in found)
        for peer, latency in found:
            spelled = [duration(ns) for ns in latency.percentiles().values()]
            grid.add(BEST if latency.at(99) == lowest else "", peer, operation, *spelled)
    return grid


def resident(report: Report) -> Grid | None:
    """Return what the resident set did in each workload; None where it was not watched."""
    columns = (
        Column("workload", left=True),
        Column("peer", left=True),
        Column("at first", rank=1),
        Column("peak"),
        Column("at last"),
    )
    grid = Grid("resident set", "of the whole process, sampled", columns)
    for name, series in report.resident.items():
        for column in series.columns:
            extent = series.extent(column)
            spelled = [spell(value, series.unit) for value in extent] if extent else [NOTHING] * 3
            grid.add("", name, column, *spelled)
    return grid if grid.rows else None


def footprints(report: Report) -> Grid | None:
    """Return what each peer needed for what was live; None where that was not looked at. Best is who needed least."""
    columns = (
        Column("workload", left=True),
        Column("peer", left=True),
        Column("live", rank=1),
        Column("peak"),
        Column("x live"),
        Column("unused"),
        Column("at last", rank=2),
    )
    caption = (
        "bytes at the peak, each peer in a process of its own, every byte written; unused: the share of the peak in which "
        "nothing lived; at last: still resident when all was freed"
    )
    grid = Grid("memory", caption, columns)
    least: dict[str, int] = {}
    for seen in report.footprints:
        least[seen.workload] = min(seen.peak_bytes, least.get(seen.workload, seen.peak_bytes))
    for seen in sorted(report.footprints, key=lambda each: (list(least).index(each.workload), each.peak_bytes)):
        amounts = [format_bytes(amount) for amount in (seen.live_bytes, seen.peak_bytes)]
        unused = f"{seen.fragmentation:.0%}" if math.isfinite(seen.fragmentation) else NOTHING
        mark = BEST if seen.peak_bytes == least[seen.workload] else ""
        grid.add(mark, seen.workload, seen.peer, *amounts, ratio(seen.over_live), unused, format_bytes(seen.left_bytes))
    return grid if grid.rows else None


def spell(value: float, unit: str) -> str:
    """Spell a number of a series."""
    return format_bytes(round(value)) if unit == "bytes" else f"{value:,.6g} {unit}".strip()
