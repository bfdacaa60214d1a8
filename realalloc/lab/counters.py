"""What the system counted while something ran: page faults, context switches, migrations between processors.

Guarantees: a count that the system does not tell is None, never 0. All threads of the process are counted.
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import fields
from pathlib import Path
from typing import Any

from realalloc.lab.results import Counters

TASKS = Path("/proc/self/task")


def _migrations() -> int | None:
    """Sum ``nr_migrations`` of all threads; kernels without scheduler statistics have no such file."""
    total = None
    for task in TASKS.glob("*/sched"):
        with contextlib.suppress(OSError):  # the thread has ended
            for line in task.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "se.nr_migrations":
                    total = (total or 0) + int(value)
    return total


def now() -> Counters:
    """Read the totals of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Counters(used.ru_minflt, used.ru_majflt, used.ru_nvcsw, used.ru_nivcsw, _migrations())


def since(before: Counters, after: Counters | None = None) -> Counters:
    """Return what was counted since ``before``. Threads that ended meanwhile take their migrations with them: not below 0."""
    later = now() if after is None else after
    return _combined(later, before, -1)


def total(parts: list[Counters]) -> Counters:
    """Add up."""
    found = Counters(migrations=0) if all(part.migrations is not None for part in parts) else Counters()
    for part in parts:
        found = _combined(found, part, 1)
    return found


def _combined(first: Counters, second: Counters, sign: int) -> Counters:
    values: dict[str, Any] = {}
    for field in fields(Counters):
        a, b = getattr(first, field.name), getattr(second, field.name)
        values[field.name] = None if a is None or b is None else max(a + sign * b, 0)
    return Counters(**values)
