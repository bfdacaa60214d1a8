"""The memory that a trace needs, each peer in a process of its own, as in :mod:`realalloc.lab.resident`.

``python -m realalloc.lab.trace.resident`` is such a process. Every byte of every object is written.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Final

from realalloc.lab import resident
from realalloc.lab.measure import check
from realalloc.lab.resident import Answer, only_peer, run_steps
from realalloc.lab.trace.reading import load
from realalloc.lab.trace.replay import Rounds, reserve_bytes
from realalloc.lab.trace.schedule import schedule

REPLAYED: Final = "replayed"
FREED: Final = "freed"


@dataclass(frozen=True, slots=True)
class Request:
    """What a child shall do: replay ``path``."""

    workload: str
    case: str
    peer: str
    path: str


def serve(request: Request) -> Answer:
    """Replay once in this process, which should be a fresh one; what is resident at the end, and when all is freed."""
    trace = load(request.path)
    with only_peer(request.peer, reserve_bytes(trace)) as (peer, _):
        rounds = Rounds(peer, schedule(trace), "replay_whole")
        return run_steps([(REPLAYED, lambda: check(rounds.run(0))), (FREED, rounds.finish)])


def ask(request: Request) -> Answer:
    """Have a child do it; RuntimeError if it fails."""
    return resident.ask(request, __name__)


def main() -> None:
    """Answer one request."""
    json.dump(asdict(serve(Request(**json.load(sys.stdin)))), sys.stdout)


if __name__ == "__main__":
    main()
