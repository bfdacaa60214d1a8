"""Shared by the tests of the stress: records of runs that never were, and ways to damage one that is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import zygote

from realalloc import jit
from realalloc.lab.stress import Options, ProcessResult, Verdict, children
from realalloc.lab.stress.checks import judge
from realalloc.lab.stress.engine import Engine
from realalloc.lab.stress.kernels import BYTES, OFFSET, RECORD
from realalloc.lab.stress.records import Waits
from realalloc.lab.stress.sampling import as_series
from realalloc.lab.stress.worker import Worker

if TYPE_CHECKING:  # children have no use for it
    import pytest

MIB = 1 << 20


COMPILED = "import stressed; stressed.compiled()"  # for the parent of forks


def compiled() -> None:
    """Compile what every run needs: as much as all else that a short run does."""
    made = Engine(Options(seconds=0.05, threads=1, arena=8 << 20, sizes="log:8..1KiB", abuse="none"))
    try:
        made.prepare()
        made.run()
        made.finish()
    finally:
        made.close()


def fork_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the extra processes of a run be forks, which have compiled all."""

    def popen(command: list[str], env: dict[str, str], **options: Any) -> Any:
        return zygote.launch(*command[1:], first=COMPILED, frozen=True, **options)

    monkeypatch.setattr(children, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))


def rows(seconds: float = 20.0, per_second: float = 0.0) -> list[tuple[float, dict[str, float]]]:
    """Make samples whose resident set grows by so many bytes a second."""
    rng = np.random.default_rng(2)
    found = []
    for at in np.arange(0.0, seconds, 0.2):
        rss = 200 * MIB + per_second * at + float(rng.normal()) * MIB
        memory = {"rss": rss, "uss": rss - MIB, "pss": rss, "committed": 30e6, "allocated": 2e7, "free": 3e7}
        more = {"largest_free": 4e6, "fragmentation": 0.8, "threads": 6, "fds": 9, "waiters": 1, "leases": 70}
        found.append((float(at), {**memory, **more, "verified": 1e5 * at, "minor_faults": 10 * at, "major_faults": 0}))
    return found


def result(
    name: str = "main", per_second: float = 0.0, options: Options | None = None, **changes: Any
) -> ProcessResult:
    """Make a result that passed, but for changes; judged."""
    made = ProcessResult(name, 1, seconds=20.0, taken={"kmalloc": 100}, freed={"kmalloc": 100}, full={"kmalloc": 3})
    made.by_thread, made.waits = [50, 50], Waits(10, 0.001, 0.01)
    made.rss_start, made.rss_peak, made.rss_end = 200 * MIB, 220 * MIB, 201 * MIB
    made.abuses = {"fork": 7}
    made.series = as_series(rows(per_second=per_second))
    for field, value in changes.items():
        setattr(made, field, value)
    made.checks = judge(made, options or Options())
    return made


def verdict(*processes: ProcessResult, options: Options | None = None) -> Verdict:
    """Put results together."""
    return Verdict(options or Options(), {"cpus": "2"}, list(processes))


def failing(found: ProcessResult) -> list[str]:
    """Name the checks that did not hold."""
    return [check.name for check in found.checks if not check.held]


def once(act: Callable[[Worker], bool]) -> Callable[[Worker], None]:
    """Act after one round of the first thread, when it could."""
    done = [False]

    def on_round(worker: Worker) -> None:
        if worker.number == 0 and not done[0]:
            done[0] = act(worker)

    return on_round


def flip(worker: Worker) -> bool:
    """Write into a live block, as a program with a stray pointer would."""
    live = [at for at in range(0, len(worker.table), RECORD) if worker.table[at + OFFSET]]
    if not live:
        return False
    offset, nbytes = (int(worker.table[live[0] + field]) for field in (OFFSET, BYTES))
    worker.site.words[(offset + nbytes // 2) >> 3] ^= 1 << 17
    return True


def leak(worker: Worker) -> bool:
    """Take a block and forget it."""
    return bool(jit.kmalloc(worker.site.words, 100))
