"""``python -m bench.numpy_suite [--part NAME]... [--keep EXPRESSION]``: tests of NumPy and others with and without an arena.

Each part runs twice, in a process of its own: as it is, and with ``realalloc.numpy.install``. Outcomes are compared test by
test; it exits with 1 where one differs. The arena is validated at the end, and must have served arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PARTS = ("numpy._core", "numpy.lib", "numpy.ma", "numpy.linalg", "numpy.fft")
OTHERS = ("scipy.fft", "scipy.ndimage", "pandas.tests.groupby", "pandas.tests.reshape")  # run when named
ARENA = "8GiB"  # reserved, not used
AVAILABLE = "1GB"  # some tests of numpy._core want up to 19 GB: they skip themselves, or the system ends the child


class Outcomes:
    """A plugin of pytest that keeps the outcome of every test."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the call's outcome, or that of a setup or teardown that went wrong."""
        if report.when == "call" or report.outcome != "passed":
            self.seen[report.nodeid] = report.outcome


def child(part: str, keep: str, file: str, *, arena: bool) -> None:
    """Run one part in this process and write the outcomes."""
    import pytest

    import realalloc as ra
    import realalloc.numpy

    os.chdir(Path(file).parent)  # away from this project's own settings of pytest
    plugin = Outcomes()
    given = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore"]
    given += [
        "--continue-on-collection-errors",
        "--pyargs",
        part,
        "-m",
        "not slow",
        *(["-k", keep] if keep else []),
    ]
    if not arena:
        pytest.main(given, plugins=[plugin])
        served = 0
    else:
        with ra.Arena(ARENA) as made:
            handler = realalloc.numpy.install(made)
            pytest.main(given, plugins=[plugin])
            realalloc.numpy.uninstall()
            made.validate()
            served = handler.stats().allocations
    Path(file).write_text(json.dumps({"outcomes": plugin.seen, "served": served}))


def run(part: str, keep: str, *, arena: bool) -> dict[str, Any]:
    """Run one part in a child; RuntimeError if that did not end well."""
    with tempfile.TemporaryDirectory() as directory:
        file = str(Path(directory) / "outcomes.json")
        command = [sys.executable, "-m", "bench.numpy_suite", "--child", file, "--part", part, "--keep", keep]
        environment = os.environ | {"PYTEST_ADDOPTS": "", "NPY_AVAILABLE_MEM": AVAILABLE}
        done = subprocess.run(
            [*command, *(["--arena"] if arena else [])], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{part} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(Path(file).read_text())
        return found


def compare(part: str, keep: str) -> bool:
    """Run one part both ways and print what differs."""
    without, within = run(part, keep, arena=False), run(part, keep, arena=True)
    before, after = without["outcomes"], within["outcomes"]
    counts = {outcome: list(after.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
    print(f"{part}: {len(after)} tests, {counts}, {within['served']} arrays from the arena", flush=True)
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        print(f"    {name}: {before.get(name)} without, {after.get(name)} within")
    return not different and len(after) > 0 and within["served"] > 0


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(prog="bench.numpy_suite")
    parser.add_argument("--part", action="append", choices=PARTS + OTHERS, help="all of NumPy's without")
    parser.add_argument("--keep", default="", help="run only tests that match this expression (pytest -k)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arena", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.part[0], options.keep, options.child, arena=options.arena)
        return
    same = [compare(part, options.keep) for part in options.part or PARTS]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
