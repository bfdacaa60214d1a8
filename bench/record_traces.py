"""``python -m bench.record_traces``: what recording costs the three programs that are recorded, and their traces again.

Each program runs with and without recording, in turns; the slowdown is the median over rounds of their ratio, of wall clock
and of CPU time. The target: at most 2. ``--write`` also records the traces that come with the package, small ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from realalloc.lab import machine
from realalloc.lab.trace import programs, raw
from realalloc.lab.trace.reading import RECORDED, SUFFIX
from realalloc.lab.trace.recorder import Options, new_log, record, run
from realalloc.text import print_table

MOST = 2.0
PROGRAMS = Path(programs.__file__).parent


class Recorded(NamedTuple):
    """A program: how much work it does when it is measured and when it is shipped, and what is shipped."""

    name: str
    measured: int
    shipped: int
    domains: tuple[str, ...]


RECORDINGS = (
    Recorded("json_csv", 350, 3, raw.DOMAINS),
    Recorded("numpy_pipeline", 70, 8, ("raw", "numpy")),  # its import alone would be most of all domains
    Recorded("http_server", 200, 1, raw.DOMAINS),
)


def _spent(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall clock and CPU seconds of the children that a call starts."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call()
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextlib.contextmanager
def _silent():
    """Send what children say to nowhere."""
    sys.stdout.flush()
    saved = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _round(command: list[str], domains: tuple[str, ...], directory: Path) -> tuple[tuple[float, float], int]:
    options = Options(domains, events=raw.MAX_EVENTS // 16)
    with new_log(directory, "bench", options) as log:
        spent = _spent(lambda: run(command, log, options))
        places = raw.reserved(log)
        log.unlink()
    return spent, places


def slowdowns(rounds: int, scale: float) -> list[tuple[str, ...]]:
    """Measure every program with NumPy's domain and with all of them."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for program in RECORDINGS:
            command = [str(PROGRAMS / f"{program.name}.py"), str(max(1, int(program.measured * scale)))]
            plain, recorded = [], {domains: [] for domains in (("numpy",), raw.DOMAINS)}
            places = {}
            for _ in range(rounds):
                with _silent():
                    plain.append(_spent(lambda command=command: subprocess.run([sys.executable, *command], check=True)))
                    for domains, found in recorded.items():
                        spent, places[domains] = _round(command, domains, Path(directory))
                        found.append(spent)
            for domains, found in recorded.items():
                wall, cpu = (
                    statistics.median(with_[k] / without[k] for with_, without in zip(found, plain, strict=True))
                    for k in (0, 1)
                )
                seconds = statistics.median(spent[0] for spent in plain)
                what = "all" if len(domains) > 1 else domains[0]
                verdict = "met" if wall <= MOST else "MISSED"
                rows.append(
                    (program.name, what, f"{places[domains]:,}", f"{seconds:.2f}", f"{wall:.2f}", f"{cpu:.2f}", verdict)
                )
    return rows


def write() -> None:
    """Record the traces that come with the package."""
    RECORDED.mkdir(exist_ok=True)
    for program in RECORDINGS:
        target = RECORDED / f"{program.name}{SUFFIX}"
        made = record([str(PROGRAMS / f"{program.name}.py"), str(program.shipped)], target, Options(program.domains))
        print(f"{target}: {made.events:,} events, {target.stat().st_size:,} bytes; {'; '.join(made.remarks)}")


def main() -> None:
    """Measure, or write."""
    parser = argparse.ArgumentParser(prog="bench.record_traces", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="record the shipped traces again")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="sizes that mean nothing")
    options = parser.parse_args()
    if options.write:
        write()
        return
    rows = slowdowns(1 if options.smoke else options.rounds, 0.01 if options.smoke else 1.0)
    print(f"machine: {machine.describe()}")
    columns = ("program", "domains", "places", "plain, s", "slowdown", "of CPU time", "at most 2")
    print_table(f"recording, medians of {options.rounds} rounds", columns, rows)


if __name__ == "__main__":
    main()
