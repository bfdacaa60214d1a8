"""Resident memory of a workload, each peer in a process of its own, as memory of one process cannot be told apart.

``python -m realalloc.lab.resident`` is such a process; it reads a request as JSON from stdin and answers in JSON.
Guarantees: everything is compiled and every array of the harness is touched before the baseline, and the C heap's free pages
are given back; the peak is the system's own high-water mark, not a sample. A child that fails is a RuntimeError that names it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from realalloc.arena import Arena
from realalloc.lab import workloads
from realalloc.lab.natives import find_natives
from realalloc.lab.peers import OURS, OURS_FINE, RESERVE, Peer, jitted_peers, ours
from realalloc.lab.series import Series
from realalloc.lab.workloads import fragments
from realalloc.lab.workloads.scope import Scope
from realalloc.rss import RssSampler, trim_heap

STATUS: Final = Path("/proc/self/status")
CLEAR_REFS: Final = Path("/proc/self/clear_refs")
TRIMMED: Final = "trimmed"  # ours only: natives have no verb for it that all of them share


@dataclass(frozen=True, slots=True)
class Request:
    """What a child shall do: a case of a jitted workload, or of ``fragments``."""

    workload: str
    case: str
    peer: str
    scale: float = 1.0
    seed: int = 1
    threads: int = 2


class Asked(Protocol):
    """A request, a dataclass: also of another module that answers as this one does."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def workload(self) -> str:
        """What is run."""

    @property
    def case(self) -> str:
        """Which case of it."""

    @property
    def peer(self) -> str:
        """On whom."""


@dataclass(slots=True)
class Answer:
    """Bytes above the baseline: at the peak, after each step, and over time."""

    peak_bytes: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)


def status_bytes(name: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"{STATUS} has no {name}")


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    CLEAR_REFS.write_text("5", encoding="utf-8")


@contextmanager
def only_peer(name: str, reserve: str | int = RESERVE) -> Iterator[tuple[Peer, Callable[[], int] | None]]:
    """Give a peer that has the process for itself, and what trims it, if it can be trimmed."""
    if name in (OURS, OURS_FINE):
        with Arena(reserve, classes="fine" if name == OURS_FINE else "kernel") as arena:
            arena.trim()  # loads its machine code, before anybody looks at memory
            yield ours(arena.words), arena.trim
            arena.validate()
        return
    found, missing = find_natives(name)
    if not found:
        raise RuntimeError("; ".join(missing) or f"unknown peer {name}")
    with jitted_peers(found, with_ours=False) as peers:
        yield peers[0], None


def run_steps(todo: list[tuple[str, Callable[[], object]]]) -> Answer:
    """Do one step after the other, and watch."""
    answer = Answer()
    trim_heap()
    forget_peak()
    base = status_bytes("VmRSS")
    with RssSampler(keep=True) as sampler:
        for name, work in todo:
            work()
            answer.steps[name] = max(status_bytes("VmRSS") - base, 0)
    answer.peak_bytes = max(status_bytes("VmHWM") - base, 0)
    answer.seconds = [seconds for seconds, _ in sampler.seen]
    answer.rss_bytes = [max(rss - base, 0) for _, rss in sampler.seen]
    return answer


def serve(request: Request) -> Answer:
    """Do a request in this process, which should be a fresh one."""
    scope = Scope(request.scale, request.threads, request.seed)
    with only_peer(request.peer) as (peer, trim):
        if request.workload == fragments.NAME:
            todo = [(step.name, step.run) for step in fragments.steps(peer, request.case, scope)]
            return run_steps([*todo, *([(TRIMMED, trim)] if trim else [])])
        found = [case for case in workloads.jitted_cases(scope, {request.workload}) if case.case == request.case]
        if not found:
            raise RuntimeError("there is no such case")
        case = found[0]
        turn = case.make(peer)
        answer = run_steps([("prepared", turn.prepare), ("run", lambda: turn.run(case.number))])
        turn.teardown()
        turn.close()
        scope.close()
        return answer


def ask(request: Asked, module: str = __name__) -> Answer:
    """Have a child do it."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", module], input=json.dumps(asdict(request)), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"{request.workload} {request.case} with {request.peer}: exit {done.returncode}: {reason}")
    return Answer(**json.loads(done.stdout))


def series(answers: dict[str, Answer]) -> Series:
    """Put the curves of several peers on one time axis: what was seen last is what is."""
    seconds = sorted({at for answer in answers.values() for at in answer.seconds})
    columns: dict[str, tuple[float, ...]] = {}
    for peer, answer in answers.items():
        column: list[float] = []
        place = -1
        for at in seconds:
            while place + 1 < len(answer.seconds) and answer.seconds[place + 1] <= at:
                place += 1
            outside = place < 0 or at > answer.seconds[-1]
            column.append(float("nan") if outside else float(answer.rss_bytes[place]))
        columns[peer] = tuple(column)
    return Series(tuple(seconds), columns)


def main() -> None:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    answer = serve(Request(**request))
    json.dump(asdict(answer), sys.stdout)


if __name__ == "__main__":
    main()
