"""What a measurement leaves behind: plain records that every table, file and chart is made from.

Guarantees: a record keeps what was measured (the rounds, the buckets), and everything else is derived from it here, once.
``as_dict`` and ``from_dict`` are inverse to each other through JSON, so that a report can be drawn again later; a number
that JSON cannot say (NaN, infinity) is null there and NaN again here.
Invariant: the entries of a row have the same number of rounds, and round k of all of them was run side by side.
May not: measure, print, or import anything but the standard library and numpy.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np

from realalloc.lab.intervals import Interval
from realalloc.lab.latencies import Latency
from realalloc.lab.records import decode
from realalloc.lab.series import Series

JITTED: Final = "jitted"  # the allocator is called inside machine code
PYTHON: Final = "python"  # as a Python program sees it: a call, an object, a view
OURS: Final = "realalloc"  # ours are the peers of this name, and "realalloc pool", "realalloc kmalloc", ...
FORMAT: Final = "realalloc report 1"


def is_ours(peer: str) -> bool:
    """Say whether a peer is realalloc, in one of its ways."""
    return peer == OURS or peer.startswith(OURS + " ")


@dataclass(frozen=True, slots=True)
class Counters:
    """What the system counted while a peer ran; None where it does not tell."""

    minor_faults: int = 0
    major_faults: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    migrations: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One peer in one row."""

    peer: str
    rounds_ns: tuple[float, ...]  # ns per operation, of every round
    latencies: tuple[Latency, ...] = ()
    counters: Counters = Counters()
    checksum: int | None = None  # what it read; the same for every peer that did the same work

    @property
    def ns(self) -> Interval:
        """Nanoseconds of one operation."""
        return Interval.of(self.rounds_ns)

    @property
    def median_ns(self) -> float:
        """The middle of ``ns``, without its interval."""
        return float(np.median(self.rounds_ns))

    def latency(self, operation: str) -> Latency | None:
        """Return the latencies of one kind of operation, if they were measured."""
        return next((found for found in self.latencies if found.operation == operation), None)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an entry stands in its row."""

    entry: Entry
    ns: Interval
    ratio: Interval  # entry / best, round by round
    best: bool
    tied: bool  # not the best, and the interval of the ratio holds 1: the rounds cannot tell them apart


@dataclass(frozen=True, slots=True)
class Duel:
    """The best of ours against the best of the others; below 1 ours is faster."""

    ours: Entry
    other: Entry
    ratio: Interval  # ours / other, round by round


@dataclass(frozen=True, slots=True)
class Row:
    """One workload with one set of parameters, run on all peers side by side."""

    workload: str  # "pair"
    case: str  # "4 KiB"
    view: str  # JITTED or PYTHON
    operation: str  # what is counted: "alloc + free"
    operations: int  # in one round of one peer
    parameters: dict[str, Any]
    entries: tuple[Entry, ...]
    harness_ns: float | None = None  # what the loop costs without any allocator
    size_bytes: int | None = None  # where the row is of one size: throughput by size is drawn over it

    @property
    def name(self) -> str:
        """Workload and case."""
        return f"{self.workload} {self.case}".strip()

    def entry(self, peer: str) -> Entry:
        """Return a peer's entry; KeyError if it did not take part."""
        for found in self.entries:
            if found.peer == peer:
                return found
        raise KeyError(peer)

    @property
    def best(self) -> Entry:
        """The fastest one; ValueError in a row without entries."""
        return min(self.entries, key=lambda entry: entry.median_ns)

    @property
    def operations_timed(self) -> list[str]:
        """The kinds of operation that latencies were measured of."""
        return list(dict.fromkeys(latency.operation for entry in self.entries for latency in entry.latencies))

    def ratio(self, ours: str, other: str) -> Interval:
        """Return ours / other, round by round: a processor that changes its speed between rounds changes it for both."""
        return Interval.of(self._ratios(ours, other))

    def _ratios(self, ours: str, other: str) -> list[float]:
        pairs = zip(self.entry(ours).rounds_ns, self.entry(other).rounds_ns, strict=True)
        return [a / b if b else math.nan for a, b in pairs]

    def best_other(self, ours: str) -> str | None:
        """Return whom ``ours`` is judged against: the peer that is none of ours with the largest ours / peer."""
        others = [entry.peer for entry in self.entries if entry.peer != ours and not is_ours(entry.peer)]
        return max(others, key=lambda peer: float(np.median(self._ratios(ours, peer))), default=None)

    def standings(self) -> list[Standing]:
        """Return the entries with their ratio to the best, fastest first."""
        if not self.entries:
            return []
        best = self.best
        stand = []
        for entry in sorted(self.entries, key=lambda entry: entry.median_ns):
            ratio, first = self.ratio(entry.peer, best.peer), entry is best
            stand.append(Standing(entry, entry.ns, ratio, best=first, tied=not first and ratio.holds(1.0)))
        return stand

    def duel(self) -> Duel | None:
        """Return the best of ours against the best of the others; None where one of the two is missing."""
        mine = [entry for entry in self.entries if is_ours(entry.peer)]
        ours = min(mine, key=lambda entry: entry.median_ns, default=None)
        other = None if ours is None else self.best_other(ours.peer)
        if ours is None or other is None:
            return None
        return Duel(ours, self.entry(other), self.ratio(ours.peer, other))


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """Throughput of peers over the size of a block: rows that differ in nothing else."""

    title: str
    points: dict[str, list[tuple[int, Interval]]]  # peer -> (bytes, operations a second), ascending


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of one peer in one workload, alone in a process: bytes above what was resident before."""

    workload: str
    peer: str
    live_bytes: int  # that the workload had asked for, and not freed, at its peak
    peak_bytes: int  # resident, the system's own high-water mark
    left_bytes: int  # resident when everything was freed

    @property
    def over_live(self) -> float:
        """Resident bytes for each byte that was live."""
        return self.peak_bytes / self.live_bytes if self.live_bytes else math.nan

    @property
    def fragmentation(self) -> float:
        """The share of the peak that held nothing: free memory, rounding, what the allocator keeps for itself."""
        return max(1 - self.live_bytes / self.peak_bytes, 0.0) if self.peak_bytes else math.nan


@dataclass(slots=True)
class Report:
    """A whole run."""

    command: str
    machine: dict[str, str]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    resident: dict[str, Series] = field(default_factory=dict)  # workload -> RSS over time, one column a peer
    floors: dict[str, float] = field(default_factory=dict)  # ns that measuring itself costs, by what it is
    skipped: list[str] = field(default_factory=list)  # peers and rows that are not there, and why
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    started: str = ""  # date and time, as a person reads it
    footprints: list[Footprint] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        """Everyone who took part, ours first: a peer's place is its colour."""
        entries = [entry.peer for row in self.rows for entry in row.entries]
        entries += [footprint.peer for footprint in self.footprints]
        names = dict.fromkeys([*entries, *(name for series in self.resident.values() for name in series.columns)])
        return sorted(names, key=lambda peer: not is_ours(peer))

    def size_curves(self) -> list[SizeCurve]:
        """Return throughput by size, wherever rows differ in nothing but their size."""
        families: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.size_bytes is not None:
                rest = {key: value for key, value in row.parameters.items() if value != row.size_bytes}
                family = json.dumps([row.workload, row.view, row.operation, rest], sort_keys=True, default=str)
                families.setdefault(family, []).append(row)
        curves = []
        for rows in families.values():
            rows.sort(key=lambda row: row.size_bytes or 0)
            if len({row.size_bytes for row in rows}) < 2:
                continue
            points: dict[str, list[tuple[int, Interval]]] = {}
            for row in rows:
                for entry in row.entries:
                    points.setdefault(entry.peer, []).append((row.size_bytes or 0, entry.ns.per_second))
            curves.append(SizeCurve(f"{rows[0].workload}, {rows[0].view}: {rows[0].operation}", points))
        return curves

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can say."""
        said: dict[str, Any] = _sayable({"format": FORMAT, **asdict(self)})
        return said

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Make a report of what :meth:`as_dict` said, also after it went through JSON.

        ValueError for anything else says what is wrong and where: ``rows[3].entries[0].peer is missing``.
        """
        if not isinstance(data, dict) or "format" not in data:
            raise ValueError("not a report of realalloc: it has no 'format'")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, and this version reads {FORMAT!r}")
        made: Self = decode(cls, {key: value for key, value in data.items() if key != "format"}, "")
        for number, row in enumerate(made.rows):
            _check_row(row, f"rows[{number}]")
        for name, series in made.resident.items():
            for column, values in series.columns.items():
                if len(values) != len(series.seconds):
                    where = f"resident[{name!r}].columns[{column!r}]"
                    raise ValueError(f"{where} has {len(values)} numbers for {len(series.seconds)} seconds")
        return made


def _sayable(value: Any) -> Any:
    """Return what JSON can say of a value: NaN and infinity are null, what it does not know is text."""
    if isinstance(value, dict):
        return {str(key): _sayable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sayable(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, np.generic):
        return _sayable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _check_row(row: Row, where: str) -> None:
    """Refuse what a runner cannot have measured."""
    peers = [entry.peer for entry in row.entries]
    if len(set(peers)) < len(peers):
        raise ValueError(f"{where} names a peer twice")
    for number, entry in enumerate(row.entries):
        rounds = entry.rounds_ns
        if not rounds or len(rounds) != len(row.entries[0].rounds_ns):
            raise ValueError(f"{where}.entries[{number}] has {len(rounds)} rounds: the same number for all, at least 1")
        if not all(math.isfinite(ns) and ns >= 0 for ns in rounds):
            raise ValueError(f"{where}.entries[{number}].rounds_ns: a number of at least 0 is missing")
        for latency in entry.latencies:
            tops = [ns for ns, _ in latency.buckets]
            if not all(a < b for a, b in pairwise(tops)) or any(n < 1 for _, n in latency.buckets):
                raise ValueError(f"{where}.entries[{number}]: buckets of {latency.operation!r} must ascend, none empty")
