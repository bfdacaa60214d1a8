"""``realalloc replay``: what recorded programs asked for, asked again of every allocator that is there; or what is in a trace.

Contract: that of :mod:`realalloc.cli.measuring`; traces are read before anything is measured, too, and one that is damaged is
one line that says where, and exit code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from realalloc.cli.again import start_again
from realalloc.cli.measuring import add_files, carry_out
from realalloc.cli.output import print_json
from realalloc.cli.problems import count_of, refusing
from realalloc.cli.report import STDOUT
from realalloc.sizes import format_bytes
from realalloc.text import print_table

if TYPE_CHECKING:
    from realalloc.lab.trace.reading import Trace
    from realalloc.lab.trace.statistics import Statistics

MEANT = {
    "unknown_frees": "frees of blocks from before",
    "adopted": "blocks first seen when reallocated",
    "overwritten": "allocations where a block was live",
    "failed_reallocations": "failed reallocations",
    "small": "reallocations below the least size",
    "torn": "unfinished events",
    "refused": "events after the limit",
}


class ReplayCommand:
    """Replay recorded traces against every allocator that is there."""

    name = "replay"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add options."""
        add = parser.add_argument
        add("traces", metavar="TRACE", nargs="*", help="files, or names of traces that come along; see --list")
        add("--info", action="store_true", help="say what is in the traces, and replay nothing")
        add("--list", action="store_true", help="name the traces that come along, and the peers")
        add("--peer", metavar="NAME", action="append", default=[], help="only these allocators; may be repeated")
        add("--rounds", metavar="N", type=count_of("--rounds", 1000), default=7, help="turns of every peer")
        add("--speed", choices=("max",), default="max", help="max: pauses of the program are left out")
        add("--latency", action=argparse.BooleanOptionalAction, default=True, help="time single operations, too")
        add("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory, a process a peer")
        add_files(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Read, then tell or measure."""
        from realalloc.cli.problems import BadInput

        if args.list:
            return _list()
        if not args.traces:
            raise BadInput("no trace is given; those that come along are named by --list")
        if getattr(args, "own_process", False) and not args.info:
            start_again()
        traces = _load(args.traces)
        return _info(traces, args.json) if args.info else _replay(args, traces)


def _load(names: list[str]) -> list[Trace]:
    from realalloc.lab.trace.reading import load

    with refusing():
        return [load(name) for name in names]


def _replay(args: argparse.Namespace, traces: list[Trace]) -> int:
    from realalloc.lab.trace.reading import find
    from realalloc.lab.trace.replay import Options, Replay

    def make() -> Replay:
        options = Options(tuple(args.peer), args.rounds, args.latency, args.memory)
        return Replay(traces, options, [str(find(name)) for name in args.traces])

    return carry_out(args, "steps", make)


def _list() -> int:
    from realalloc.lab.natives import find_natives
    from realalloc.lab.trace.reading import load, shipped
    from realalloc.lab.trace.replay import peer_names

    rows = []
    for name in shipped():
        trace = load(name)
        rows.append(
            (name, f"{len(trace.events):,} events, {trace.threads} threads, {'+'.join(trace.facts['domains'])}")
        )
    print_table("traces", ("", ""), rows)
    missing = {line.partition(":")[0]: line.partition(": ")[2] for line in find_natives()[1]}
    print()
    print_table("peers", ("", ""), [(name, missing.get(name, "here")) for name in peer_names()])
    return 0


def _info(traces: list[Trace], json: str | None) -> int:
    from realalloc.lab.report.files import write_bytes
    from realalloc.lab.trace.statistics import statistics

    found = {trace.name: statistics(trace) for trace in traces}
    if json is not None:
        facts: dict[str, Any] = {name: seen.as_dict() for name, seen in found.items()}
        if json == STDOUT:
            print_json(facts)
            return 0
        import json as text

        write_bytes(json, (text.dumps(facts, indent=1) + "\n").encode())
    for number, (name, seen) in enumerate(found.items()):
        if number:
            print()
        for line in _tables(name, seen):
            print_table(*line)
    return 0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _tables(name: str, seen: Statistics) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Give the tables of one trace."""
    least, most = min(seen.events_by_thread, default=0), max(seen.events_by_thread, default=0)
    frees = sum(counts["free"] for counts in seen.operations.values())
    facts = [
        ("program", seen.program),
        ("events", f"{seen.events:,}" + (f" in {seen.seconds:.3f} s" if seen.seconds else "")),
        ("threads", f"{seen.threads}, of {least:,} to {most:,} events"),
        ("frees by another thread", f"{seen.remote_frees:,} ({_share(seen.remote_frees, frees)})"),
        ("live at the peak", f"{format_bytes(seen.peak_bytes)}, at event {seen.peak_at_event:,}"),
        ("most blocks at once", f"{seen.peak_blocks:,}"),
        ("live at the end", f"{format_bytes(seen.left_bytes)} in {seen.left_blocks:,} blocks"),
        *((f"left out: {MEANT[what]}", f"{count:,}") for what, count in seen.missing.items() if what in MEANT),
    ]
    yield f"trace {name}", ("", ""), facts
    operations = ("malloc", "calloc", "realloc", "free")
    by_domain = [(domain, *(f"{counts[op]:,}" for op in operations)) for domain, counts in seen.operations.items()]
    yield "events by domain", ("domain", *operations), by_domain
    count, amount = sum(n for _, n, _ in seen.sizes), sum(b for _, _, b in seen.sizes)
    sizes = [
        (f"to {format_bytes(top)}", f"{n:,}", _share(n, count), format_bytes(part), _share(part, amount))
        for top, n, part in seen.sizes
    ]
    yield "sizes asked for", ("size", "count", "share", "bytes", "share of bytes"), sizes
    if seen.lifetimes:
        freed = sum(n for _, n in seen.lifetimes)
        lived = [(f"< {_spelled(top)}" if top else "at once", f"{n:,}", _share(n, freed)) for top, n in seen.lifetimes]
        yield "lifetimes of blocks that were freed", ("time", "count", "share"), lived


def _spelled(ns: int) -> str:
    for scale, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns} ns"
