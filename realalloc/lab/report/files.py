"""Reports as files: JSON to read again, CSV to compute with, and how any file is written: whole or not at all.

Guarantees: ``check_writable`` says before a long run what ``write_bytes`` would only say after it, and leaves nothing behind.
A file appears under its name when it is complete; until then, and after a failure, what was there before stays.
``-`` is stdout. What is not a regular file (``/dev/null``, a pipe) is written to, never replaced.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import stat
import sys
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any, Final

from realalloc.lab.intervals import Interval
from realalloc.lab.latencies import Latency
from realalloc.lab.results import Entry, Report, Row
from realalloc.text import shown

PathLike = str | os.PathLike[str]
STDOUT: Final = "-"

# One line per row and peer. Times are nanoseconds of one operation, medians over rounds; _low and _high are the ends of their
# 95 % bootstrap interval. After these, for every kind of operation that was timed anywhere in the report:
# KIND_count, KIND_clock_ns (what reading the clock adds to each, not subtracted), KIND_p50_ns, ..., KIND_max_ns.
COLUMNS: Final = (
    "workload",
    "case",
    "view",  # jitted or python
    "operation",  # what is counted
    "size_bytes",
    "parameters",  # JSON
    "operations",  # in a round
    "rounds",
    "peer",
    "best",  # 1 for the fastest of the row, else 0
    "ns",
    "ns_low",
    "ns_high",
    "ratio",  # by the best of the row, round by round
    "ratio_low",
    "ratio_high",
    "operations_per_second",
    "harness_ns",  # the loop alone, contained in ns
    "minor_faults",  # these five are sums over the rounds of a peer
    "major_faults",
    "voluntary_switches",
    "involuntary_switches",
    "migrations",
    "checksum",
)


def check_writable(path: PathLike) -> None:
    """Raise the OSError that writing ``path`` would raise: no such directory, no permission, a directory."""
    if path == STDOUT:
        return
    mode = _mode(path)
    if mode is not None and (stat.S_ISDIR(mode) or not os.access(path, os.W_OK)):
        code = EISDIR if stat.S_ISDIR(mode) else EACCES
        raise OSError(code, os.strerror(code), os.fspath(path))
    if mode is None or stat.S_ISREG(mode):
        beside = _beside(path)
        _create(beside, b"")
        beside.unlink()


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file whole, or leave what was there."""
    mode = None if path == STDOUT else _mode(path)
    if path == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif mode is not None and not stat.S_ISREG(mode):
        Path(path).write_bytes(data)
    else:
        check_writable(path)
        _replace(path, data, mode)


def _replace(path: PathLike, data: bytes, mode: int | None) -> None:
    beside = _beside(path)
    try:
        _create(beside, data)
        if mode is not None:
            beside.chmod(stat.S_IMODE(mode))
        beside.replace(os.path.realpath(path))  # a link stays, what it points to is replaced
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _beside(path: PathLike) -> Path:
    """Return an unused name in the directory of the file; short, as a name may be 255 bytes."""
    return Path(os.path.realpath(path)).parent / f".realalloc-{secrets.token_hex(8)}"


def _create(beside: Path, data: bytes) -> None:
    try:
        with beside.open("xb") as file:
            file.write(data)
    except OSError as error:  # the user knows the directory, not the temporary name
        error.filename = os.fspath(beside.parent)
        raise


def _mode(path: PathLike) -> int | None:
    try:
        return Path(path).stat().st_mode
    except FileNotFoundError:
        return None


def json_bytes(report: Report) -> bytes:
    """Return a report as JSON that :func:`read_json` reads."""
    return (json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def write_json(report: Report, path: PathLike) -> None:
    """Write a report for :func:`read_json`."""
    write_bytes(path, json_bytes(report))


def read_json(path: PathLike) -> Report:
    """Read what :func:`write_json` wrote; OSError, or ValueError that says what is wrong and where."""
    data = Path(path).read_bytes()
    name = shown(os.fspath(path))
    try:
        return Report.from_dict(json.loads(data))
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not JSON: no text at byte {error.start}") from None
    except RecursionError:
        raise ValueError(f"{name}: not a report of realalloc: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def csv_bytes(report: Report) -> bytes:
    """Return ``COLUMNS`` and the latencies of every row and peer."""
    kinds = list(dict.fromkeys(kind for row in report.rows for kind in row.operations_timed))
    percentiles = list(Latency("", (), 0.0).percentiles())
    heads = [f"{kind}_{what}" for kind in kinds for what in ("count", "clock_ns", *(f"{p}_ns" for p in percentiles))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *map(shown, heads)])
    for row in report.rows:
        about = _about(row)
        for place in row.standings():
            entry, peer = place.entry, shown(place.entry.peer)
            measured = [
                int(place.best),
                *_ends(place.ns),
                *_ends(place.ratio),
                place.ns.per_second.value,
                row.harness_ns,
            ]
            times = [cell for kind in kinds for cell in _latency(entry.latency(kind), len(percentiles))]
            writer.writerow([*about, peer, *measured, *_counters(entry), entry.checksum, *times])
    return out.getvalue().encode("utf-8", "backslashreplace")


def _about(row: Row) -> list[Any]:
    names = (shown(text) for text in (row.workload, row.case, row.view, row.operation))
    rounds = len(row.entries[0].rounds_ns) if row.entries else 0
    return [*names, row.size_bytes, json.dumps(row.parameters, default=str), row.operations, rounds]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _counters(entry: Entry) -> list[int | None]:
    seen = entry.counters
    faults = [seen.minor_faults, seen.major_faults]
    return [*faults, seen.voluntary_switches, seen.involuntary_switches, seen.migrations]


def _latency(latency: Latency | None, percentiles: int) -> list[Any]:
    if latency is None:
        return [None] * (2 + percentiles)
    return [latency.count, latency.overhead_ns, *latency.percentiles().values()]


def write_csv(report: Report, path: PathLike) -> None:
    """Write one line per row and peer; what the columns are is said at ``COLUMNS``."""
    write_bytes(path, csv_bytes(report))
