"""What a demo found, as records of plain numbers; nothing is computed twice and nothing is rounded.

A :class:`Pass` is one reading of the whole tree in one way. A :class:`Report` is all of them with the checks; ``ok`` says
whether every check held.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the whole tree. Faults, CPU seconds and resident set are the whole process's."""

    way: str
    seconds: float
    nbytes: int
    reads: int  # buffers that were taken
    user_seconds: float
    system_seconds: float
    minor_faults: int
    major_faults: int
    rss_start: int
    rss_peak: int

    @property
    def mib_per_second(self) -> float:
        """Bytes hashed by wall-clock time."""
        return self.nbytes / MIB / self.seconds if self.seconds > 0 else 0.0

    @property
    def rss_growth(self) -> int:
        """Bytes by which the resident set grew in this pass, at its peak."""
        return self.rss_peak - self.rss_start


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the passes of one way."""

    way: str
    seconds: float
    mib_per_second: float
    user_seconds: float
    system_seconds: float
    minor_faults: float
    rss_growth: float
    reads: float
    buffer_ns: float  # one buffer taken and returned with nothing in between, one thread
    buffer_share: float  # of the CPU time of a pass: reads * buffer_ns


@dataclass(frozen=True, slots=True)
class Setup:
    """What making the arena and filling the pool cost, once."""

    seconds: float
    minor_faults: int
    rss_growth: int
    committed: int


@dataclass(frozen=True, slots=True)
class Checks:
    """What must hold; ``broken`` says in words what did not."""

    digests: bool  # every file that stood still has the digest of plain reading, in every pass
    aligned: bool  # every buffer of the pool begins on a page
    valid: bool  # Arena.validate() passed after the last pass
    whole: bool  # every block came back: nothing leased, nothing allocated, nothing committed after trim()
    broken: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all held."""
        return self.digests and self.aligned and self.valid and self.whole


@dataclass(slots=True)
class Report:
    """All of it."""

    options: dict[str, Any]
    root: str
    files: int  # read by plain reading, and then in every pass
    nbytes: int
    links: int
    special: int
    pruned: int
    unreadable: list[tuple[str, str]]  # files and directories, with the reason
    changed: list[str] = field(default_factory=list)  # not what they were, or gone: not compared
    disagreeing: list[str] = field(default_factory=list)
    setup: Setup | None = None
    passes: list[Pass] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    pool: dict[str, Any] = field(default_factory=dict)
    arena: dict[str, Any] = field(default_factory=dict)
    rss_peak: int = 0
    checks: Checks | None = None

    @property
    def ok(self) -> bool:
        """Whether every check was made and held."""
        return self.checks is not None and self.checks.ok

    @property
    def speed_ratio(self) -> float | None:
        """Throughput of the pool by that of fresh bytearrays; None where nothing was read."""
        pool, fresh = self.summaries
        return pool.mib_per_second / fresh.mib_per_second if fresh.mib_per_second > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        passes = [asdict(p) | {"mib_per_second": p.mib_per_second, "rss_growth": p.rss_growth} for p in self.passes]
        return asdict(self) | {"passes": passes, "speed_ratio": self.speed_ratio, "ok": self.ok}


def summarize(way: str, passes: list[Pass], buffer_ns: float) -> Summary:
    """Take the medians of the passes of one way."""
    mine = [p for p in passes if p.way == way]
    reads = statistics.median(p.reads for p in mine)
    cpu = statistics.median(p.user_seconds + p.system_seconds for p in mine)
    return Summary(
        way=way,
        seconds=statistics.median(p.seconds for p in mine),
        mib_per_second=statistics.median(p.mib_per_second for p in mine),
        user_seconds=statistics.median(p.user_seconds for p in mine),
        system_seconds=statistics.median(p.system_seconds for p in mine),
        minor_faults=statistics.median(p.minor_faults for p in mine),
        rss_growth=statistics.median(p.rss_growth for p in mine),
        reads=reads,
        buffer_ns=buffer_ns,
        buffer_share=reads * buffer_ns / 1e9 / cpu if cpu > 0 else 0.0,
    )
