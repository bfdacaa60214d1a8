"""replay: what three small real programs asked for, recorded: a JSON and CSV job, a NumPy pipeline, an HTTP server."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from realalloc.lab.measure import Case, Turn
from realalloc.lab.peers import Peer
from realalloc.lab.trace.format import read_facts
from realalloc.lab.trace.reading import Trace, find, load, shipped
from realalloc.lab.trace.rounds import NAME, case_of
from realalloc.lab.workloads.scope import Scope

__all__ = ["NAME", "cases"]


@functools.cache
def _case(name: str, number: int) -> Case:
    """Return the beginning of a trace as a case; what is live at its end is freed off the clock."""
    trace = load(name)
    return case_of(Trace(name, trace.events[:number], trace.facts))


def cases(scope: Scope) -> Iterator[Case]:
    """Give each trace that comes along; a trace is read when its row is measured. Threads are those that were recorded."""
    for name in shipped():
        facts = read_facts(find(name))
        if facts["threads"] > 1 and scope.threads == 1:
            continue
        number = scope.count(facts["events"])

        def make(peer: Peer, name: str = name, number: int = number) -> Turn:
            return _case(name, number).make(peer)

        parameters = {"domains": "+".join(facts["domains"])}
        yield Case(NAME, name, number, make, parameters, operation="event", threads=facts["threads"])
