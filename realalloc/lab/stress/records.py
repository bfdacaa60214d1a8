"""What a stress run leaves behind: what one process measured, what was checked, and the verdict.

Guarantees: plain records, made from and into JSON; a run has passed only if every check of every process held.
May not: judge (``checks.py`` does), run or import anything but the standard library and the lab's records.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from realalloc.lab.stress.options import Options

if TYPE_CHECKING:
    from realalloc.lab.series import Series


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that had to hold; ``judged`` is False where the run was too short to say, which is no failure."""

    name: str
    held: bool
    detail: str
    judged: bool = True

    @property
    def mark(self) -> str:
        """A word for a table."""
        return "FAIL" if not self.held else "ok" if self.judged else "-"


@dataclass(frozen=True, slots=True)
class Waits:
    """How long threads waited for an element of a pool that had none for them."""

    count: int = 0
    mean_seconds: float = 0.0
    longest_seconds: float = 0.0


@dataclass(slots=True)
class ProcessResult:
    """What one process did, saw and noted. ``taken``, ``freed`` and ``full`` are counts by kind of work.

    Invariant: ``taken[kind] = freed[kind]`` when nothing was lost; a block is in ``freed`` only after it was read in full.
    """

    name: str
    seed: int
    seconds: float = 0.0
    taken: dict[str, int] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    full: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    reallocs: int = 0
    abuses: dict[str, int] = field(default_factory=dict)
    pelted: int = 0  # signals that raised in the middle of the main thread's work
    injected: int = 0  # requests of pools that were made to fail
    by_thread: list[int] = field(default_factory=list)  # verified blocks of each thread
    waits: Waits = field(default_factory=Waits)
    wrong: list[str] = field(default_factory=list)  # contents: what was read and what was expected
    first_wrong_seconds: float | None = None
    books: list[str] = field(default_factory=list)  # accounting: walkers, what was left, what was refused
    children: list[str] = field(default_factory=list)  # forked children that did not end well
    hung: list[str] = field(default_factory=list)  # threads that did not end
    rss_start: int = 0
    rss_peak: int = 0
    rss_end: int = 0
    arena: dict[str, int] = field(default_factory=dict)  # its numbers when it was full, before all was freed
    series: dict[str, Series] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def verified(self) -> int:
        """Blocks that were filled, and read in full before they were freed."""
        return sum(self.freed.values())

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.held for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can say."""
        return {**asdict(self), "verified": self.verified, "ok": self.ok}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a result of what :meth:`as_dict` said."""
        from realalloc.lab.series import Series  # numpy, which --help has no use for

        given = {name: value for name, value in data.items() if name not in ("verified", "ok")}
        given["waits"] = Waits(**given["waits"])
        given["checks"] = [Check(**check) for check in given["checks"]]
        given["series"] = {
            name: Series(tuple(series["seconds"]), {k: tuple(v) for k, v in series["columns"].items()}, series["unit"])
            for name, series in given["series"].items()
        }
        return cls(**given)


@dataclass(slots=True)
class Verdict:
    """The whole run: all processes, and whether all was right."""

    options: Options
    machine: dict[str, str]
    processes: list[ProcessResult] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # processes that gave no result
    interrupted: bool = False
    reproduce: str = ""

    @property
    def verified(self) -> int:
        """Blocks that were filled, and read in full before they were freed, of all processes."""
        return sum(process.verified for process in self.processes)

    @property
    def ok(self) -> bool:
        """Whether every check of every process held, and every process answered."""
        return not self.lost and bool(self.processes) and all(process.ok for process in self.processes)

    def failed(self) -> list[tuple[str, Check]]:
        """Return what did not hold, with the name of the process."""
        return [(process.name, check) for process in self.processes for check in process.checks if not check.held]

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can say."""
        return {
            "ok": self.ok,
            "interrupted": self.interrupted,
            "verified": self.verified,
            "options": self.options.as_dict(),
            "machine": self.machine,
            "lost": self.lost,
            "reproduce": self.reproduce,
            "processes": [process.as_dict() for process in self.processes],
        }


@dataclass(frozen=True, slots=True)
class Tick:
    """How a run stands; for a live view."""

    seconds: float
    total_seconds: float
    verified: int
    per_second: float
    rss: int
    committed: int
    allocated: int
    fragmentation: float
    waiters: int
    processes: int
    wrong: int
