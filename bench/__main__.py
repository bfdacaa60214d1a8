"""``python -m bench [--smoke] [--json FILE]``: run everything; the smoke sizes run in CI, so that nothing here rots."""

from __future__ import annotations

import argparse

from bench.blocks import big, small
from bench.measure import machine, report
from bench.pairs import pairs
from bench.startup import startup


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--smoke", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--json", metavar="FILE", help="write results and the machine there")
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    smoke = options.smoke
    report(
        [small(smoke=smoke), big(smoke=smoke), *pairs(smoke=smoke), *startup(smoke=smoke)],
        options.json,
        judge=not smoke,
    )


if __name__ == "__main__":
    main()
