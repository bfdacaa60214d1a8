"""What a measurement leaves behind: plain records that every table, file and chart is made from.

Guarantees: a record keeps what was measured (the rounds, the buckets), and everything else is derived from it here, once.
``as_dict`` and ``from_dict`` are inverse to each other through JSON, so that a report can be drawn again later.
Invariant: the entries of a row have the same number of rounds, and round k of all of them was run side by side.
May not: measure, print, or import anything but the standard library and numpy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import numpy as np

JITTED: Final = "jitted"  # the allocator is called inside machine code
PYTHON: Final = "python"  # as a Python program sees it: a call, an object, a view
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000


def percentile_name(percentile: float) -> str:
    """Spell a percentile: ``p99.9``, ``max``."""
    return "max" if percentile >= 100 else f"p{percentile:g}"


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of rounds, with a bootstrap confidence interval (95 %) of it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Any, seed: int = 1) -> Self:
        """Resample rounds with replacement and take the medians' percentiles (Efron); one round has no width."""
        values = np.asarray(rounds, np.float64)
        drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
        tail = (1 - CONFIDENCE) / 2 * 100
        low, high = np.percentile(np.median(drawn, axis=1), (tail, 100 - tail))
        return cls(float(np.median(values)), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one kind of operation took, each time it was done.

    ``buckets``: (largest ns that falls into it, how many), ascending, none empty. ``overhead_ns``: what one reading of the
    clock adds to every operation, not subtracted from the buckets. ``slack_ns``: buckets are no wider than that at p50.
    """

    operation: str  # "alloc", "free", "step"
    buckets: tuple[tuple[float, int], ...]
    overhead_ns: float

    @property
    def count(self) -> int:
        """How many operations there were."""
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
        """The fastest one."""
        return min(self.entries, key=lambda entry: entry.ns.value)

    def ratio(self, ours: str, other: str) -> Interval:
        """Return ours / other, round by round: a processor that changes its speed between rounds changes it for both."""
        pairs = zip(self.entry(ours).rounds_ns, self.entry(other).rounds_ns, strict=True)
        return Interval.of([a / b for a, b in pairs])

    def best_other(self, ours: str) -> str | None:
        """Return whom ``ours`` is judged against: the peer with the largest ours / peer."""
        others = [entry.peer for entry in self.entries if entry.peer != ours]
        return max(others, key=lambda peer: self.ratio(ours, peer).value, default=None)


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers over one time axis, all columns of its length; NaN where nothing was seen."""

    seconds: tuple[float, ...]
    columns: dict[str, tuple[float, ...]]
    unit: str = "bytes"


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

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can say."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a report of what :meth:`as_dict` said, also after it went through JSON."""
        made = cls(**{**data, "rows": [_row(row) for row in data["rows"]]})
        made.resident = {name: _series(series) for name, series in data["resident"].items()}
        return made


def _row(data: dict[str, Any]) -> Row:
    return Row(**{**data, "entries": tuple(_entry(entry) for entry in data["entries"])})


def _entry(data: dict[str, Any]) -> Entry:
    latencies = tuple(
        Latency(**{**latency, "buckets": tuple((float(ns), int(n)) for ns, n in latency["buckets"])})
        for latency in data["latencies"]
    )
    changed = {"rounds_ns": tuple(data["rounds_ns"]), "latencies": latencies, "counters": Counters(**data["counters"])}
    return Entry(**{**data, **changed})


def _series(data: dict[str, Any]) -> Series:
    columns = {name: tuple(values) for name, values in data["columns"].items()}
    return Series(tuple(data["seconds"]), columns, data["unit"])
