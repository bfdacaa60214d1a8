"""What a measurement leaves behind: plain records that every table, file and chart is made from.

Guarantees: a record keeps what was measured (the rounds, the buckets), and everything else is derived from it here, once.
``as_dict`` and ``from_dict`` are inverse to each other through JSON, so that a report can be drawn again later; a number
that JSON cannot say (NaN, infinity) is null there and NaN again here.
Invariant: the entries of a row have the same number of rounds, and round k of all of them was run side by side.
May not: measure, print, or import anything but the standard library and numpy.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np

from realalloc.lab.records import decode

JITTED: Final = "jitted"  # the allocator is called inside machine code
PYTHON: Final = "python"  # as a Python program sees it: a call, an object, a view
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
OURS: Final = "realalloc"  # ours are the peers of this name, and "realalloc pool", "realalloc kmalloc", ...
FORMAT: Final = "realalloc report 1"
POINTS_A_DECADE: Final = 24  # of a curve of latencies, a decade being 90 to 99 %
MOST_SAMPLES: Final = 2000  # of a line over time: more than a chart has pixels


def percentile_name(percentile: float) -> str:
    """Spell a percentile: ``p99.9``, ``max``."""
    return "max" if percentile >= 100 else f"p{percentile:g}"


def is_ours(peer: str) -> bool:
    """Say whether a peer is realalloc, in one of its ways."""
    return peer == OURS or peer.startswith(OURS + " ")


@functools.lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of rounds, with a bootstrap confidence interval (95 %) of it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Any, seed: int = 1) -> Self:
        """Resample rounds with replacement and take the medians' percentiles (Efron); one round has no width.

        ValueError without any round; a round that is no finite number makes all three NaN.
        """
        values = np.asarray(rounds, np.float64)
        if not len(values):
            raise ValueError("no rounds, no median")
        if not np.isfinite(values).all():
            return cls(math.nan, math.nan, math.nan)
        tail = (1 - CONFIDENCE) / 2 * 100
        low, high = np.percentile(np.median(values[_draws(len(values), seed)], axis=1), (tail, 100 - tail))
        return cls(float(np.median(values)), float(low), float(high))

    def holds(self, value: float) -> bool:
        """Say whether ``value`` lies within the interval."""
        return self.low <= value <= self.high

    @property
    def per_second(self) -> Self:
        """What nanoseconds of one operation are in operations a second."""
        low, middle, high = (1e9 / ns if ns > 0 else math.nan for ns in (self.high, self.value, self.low))
        return type(self)(middle, low, high)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one kind of operation took, each time it was timed.

    ``buckets``: (largest ns that falls into it, how many), ascending, none empty. ``overhead_ns``: what one reading of the
    clock adds to every operation, not subtracted from the buckets. One operation ``in_every`` was timed.
    """

    operation: str  # "alloc", "free", "step"
    buckets: tuple[tuple[float, int], ...]
    overhead_ns: float
    in_every: int = 1

    @property
    def count(self) -> int:
        """How many operations were timed."""
        return sum(count for _, count in self.buckets)

    def at(self, percentile: float) -> float:
        """Return the ns that so many percent of all operations did not exceed."""
        if not self.buckets:
            return 0.0
        wanted, seen = max(1, int(np.ceil(self.count * percentile / 100))), 0
        for nanoseconds, count in self.buckets:
            seen += count
            if seen >= wanted:
                return nanoseconds
        return self.buckets[-1][0]

    def percentiles(self) -> dict[str, float]:
        """Return the usual ones by name."""
        return {percentile_name(p): self.at(p) for p in PERCENTILES}

    def curve(self) -> tuple[list[float], list[float]]:
        """Return (tails, ns) of the distribution, where tail = -log10(1 - share): 0 is 0 %, 1 is 90 %, 2 is 99 %.

        The last point is the slowest operation, at the share of all but itself: 1 - 1 / count.
        """
        if not self.buckets:
            return [], []
        last = math.log10(self.count)
        tails = np.unique(np.append(np.arange(0, last, 1 / POINTS_A_DECADE), last))
        ends = np.cumsum([count for _, count in self.buckets])  # bucket k holds the ranks in (ends[k - 1], ends[k]]
        ranks = np.maximum(1, np.ceil((1 - 10.0**-tails) * self.count - 1e-6))
        ranks[-1] = self.count
        found = np.searchsorted(ends, ranks)
        return tails.tolist(), [self.buckets[k][0] for k in found]


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
class Series:
    """Numbers over one time axis, all columns of its length; NaN where nothing was seen."""

    seconds: tuple[float, ...]
    columns: dict[str, tuple[float, ...]]
    unit: str = "bytes"

    def extent(self, column: str) -> tuple[float, float, float] | None:
        """Return the first, the largest and the last number of a column; None where nothing was seen."""
        seen = [value for value in self.columns[column] if math.isfinite(value)]
        return (seen[0], max(seen), seen[-1]) if seen else None

    def line(self, column: str, most: int = MOST_SAMPLES) -> tuple[list[float], list[float]]:
        """Return (seconds, values) to draw: all of them, or of equal stretches the smallest and the largest each."""
        values = np.asarray(self.columns[column], np.float64)
        if len(values) <= most:
            return list(self.seconds), values.tolist()
        kept: list[int] = []
        for part in np.array_split(np.arange(len(values)), max(most // 2, 1)):
            piece = values[part]
            ends = {0} if np.isnan(piece).all() else {int(np.nanargmin(piece)), int(np.nanargmax(piece))}
            kept += sorted(int(part[end]) for end in ends)
        return [self.seconds[k] for k in kept], values[kept].tolist()


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
    footprints: list[Footprint] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)  # ns that measuring itself costs, by what it is
    skipped: list[str] = field(default_factory=list)  # peers and rows that are not there, and why
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    started: str = ""  # date and time, as a person reads it

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
