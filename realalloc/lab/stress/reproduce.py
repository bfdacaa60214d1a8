"""The shortest command that runs a failure again.

Soundly shortened: an arena belongs to one process, so that a failure in one needs only that one, with its seed; contents
were found wrong after so many seconds, so that twice as many (at least two) are enough to look for it again. A check of the
resident set over time, or of fairness, needs the whole time. Nothing else is left out: what threads do at once is no
function of the seed.
"""

from __future__ import annotations

import math
import shlex

from realalloc.lab.stress.options import Options
from realalloc.lab.stress.records import ProcessResult, Verdict

WHOLE_TIME = ("rss bound", "rss back", "no growth", "fairness")
LEAST_SECONDS = 2.0


def shortest(verdict: Verdict) -> Options:
    """Return the least options that do again what went wrong; the run's own if nothing did, or if a process was lost."""
    failing = [process for process in verdict.processes if not process.ok]
    if verdict.lost or len(failing) != 1:
        return verdict.options
    found = failing[0]
    options = verdict.options.but(processes=0, seed=found.seed)
    if not options.operations and found.first_wrong_seconds is not None and not _needs_time(found):
        wanted = max(LEAST_SECONDS, math.ceil(2 * found.first_wrong_seconds))
        options = options.but(seconds=min(options.seconds, wanted))
    return options


def _needs_time(found: ProcessResult) -> bool:
    return any(check.name in WHOLE_TIME for check in found.checks if not check.held)


def command(options: Options) -> str:
    """Spell a command line; only what differs from the defaults."""
    return shlex.join(["realalloc", "stress", *options.as_arguments()])
