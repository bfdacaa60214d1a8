"""The shortest command."""

from __future__ import annotations

import shlex

from stressed import result, verdict

from realalloc.cli import make_parser
from realalloc.lab.stress import Options
from realalloc.lab.stress.reproduce import command, shortest

LONG = Options(seconds=60.0, processes=2, seed=5)


def test_a_failure_of_one_process_needs_only_that_one() -> None:
    bad = result("process 2", wrong=["x"], first_wrong_seconds=3.2, seed=77)
    found = shortest(verdict(result(), result("process 1"), bad, options=LONG))
    assert (found.processes, found.seed, found.seconds) == (0, 77, 7.0)
    assert command(found) == "realalloc stress --seconds 7 --seed 77"


def test_checks_over_time_need_the_time() -> None:
    bad = result(per_second=2e6, wrong=["x"], first_wrong_seconds=1.0, seed=5)
    assert shortest(verdict(bad, options=LONG)).seconds == 60


def test_two_failures_or_a_lost_process_are_not_shortened() -> None:
    bad = [result(wrong=["x"], first_wrong_seconds=1.0), result("process 1", wrong=["y"])]
    assert shortest(verdict(*bad, options=LONG)) == LONG
    lost = verdict(bad[0], options=LONG)
    lost.lost = ["process 1: exit -9"]
    assert shortest(lost) == LONG


def test_the_command_says_the_same_options() -> None:
    made = Options(seconds=2.5, threads=3, mix="pool=2,lease=1", arena=8 << 20, rss_limit=1 << 30, hold="fifo:9")
    argv = shlex.split(command(made))
    args = vars(make_parser().parse_args(argv[1:]))
    assert Options(**{name: args[name] for name in made.as_dict()}) == made
