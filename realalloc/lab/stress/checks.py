"""What must hold for a process to have passed, each with its threshold and its numbers.

contents    every block read as it was written, when it was freed and when a neighbour was; no free was refused
accounting  walkers found nothing; what was taken was freed; at the end the arena was whole and, after a trim, empty
rss bound   no sample of the resident set was above ``--rss-limit``
rss back    at the end the resident set was at most ``BACK_BYTES`` above the start
no growth   fails if RSS rose by more than ``GROWTH_BYTES`` over the run, its first fifth not counted, with 97.5 % confidence:
            the lower end of the slope's 95 % interval is above that
fairness    no thread did less than ``LEAST_SHARE`` of the mean; no wait for a pool was longer than both
            ``LONGEST_WAIT_SECONDS`` and ``LONGEST_TO_MEAN`` times the mean wait
children    every forked child found the arena whole and left; every thread ended

Guarantees: judges a record and nothing else, so that a record can be judged again. A check that the run was too short for says
so, and counts as held.
"""

from __future__ import annotations

from typing import Final

from realalloc.lab.stress.growth import LEAST_POINTS, slope_of
from realalloc.lab.stress.options import Options
from realalloc.lab.stress.records import Check, ProcessResult
from realalloc.sizes import format_bytes

MIB: Final = 1 << 20
BACK_BYTES: Final = 16 * MIB
GROWTH_BYTES: Final = 8 * MIB
WARM_UP_SHARE: Final = 0.2
JUDGED_SECONDS: Final = 5.0  # shorter runs have no slope and no fairness
LEAST_SHARE: Final = 0.25
LONGEST_WAIT_SECONDS: Final = 2.5  # half of the slice after which a lost wake-up would be noticed
LONGEST_TO_MEAN: Final = 100
NAMED: Final = 3


def judge(result: ProcessResult, options: Options) -> list[Check]:
    """Return all checks of a process."""
    return [
        _contents(result),
        _accounting(result),
        _rss_bound(result, options.rss_limit),
        _rss_back(result),
        _growth(result),
        _fairness(result),
        _children(result),
    ]


def _first(texts: list[str]) -> str:
    more = f"; and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return "; ".join(texts[:NAMED]) + more


def _contents(result: ProcessResult) -> Check:
    fine = f"{result.verified:,} blocks re-read in full, {format_bytes(result.read_bytes)}"
    return Check("contents", not result.wrong, _first(result.wrong) or fine)


def _accounting(result: ProcessResult) -> Check:
    broken = list(result.books)
    for kind, taken in result.taken.items():
        if taken != result.freed.get(kind, 0):
            broken.append(f"{kind}: {taken:,} taken, {result.freed.get(kind, 0):,} freed")
    return Check(
        "accounting", not broken, _first(broken) or "the arena is whole and empty, all that was taken was freed"
    )


def _rss_bound(result: ProcessResult, limit: int) -> Check:
    peak = f"peak {format_bytes(result.rss_peak)}"
    if not limit:
        return Check("rss bound", held=True, detail=f"{peak}; no --rss-limit", judged=False)
    return Check("rss bound", result.rss_peak <= limit, f"{peak} of {format_bytes(limit)}")


def _rss_back(result: ProcessResult) -> Check:
    more = result.rss_end - result.rss_start
    detail = f"{format_bytes(more)} above the start at the end; at most {format_bytes(BACK_BYTES)}"
    return Check("rss back", more <= BACK_BYTES, detail)


def _growth(result: ProcessResult) -> Check:
    name = "no growth"
    memory = result.series.get("memory")
    seconds = memory.seconds if memory is not None else ()
    begin = seconds[0] + WARM_UP_SHARE * (seconds[-1] - seconds[0]) if seconds else 0.0
    kept = [k for k, at in enumerate(seconds) if at >= begin]
    if memory is None or len(kept) < LEAST_POINTS or seconds[-1] - seconds[0] < JUDGED_SECONDS:
        return Check(name, held=True, detail=f"not judged: shorter than {JUDGED_SECONDS:g} s", judged=False)
    span = seconds[-1] - begin
    slope = slope_of([seconds[k] for k in kept], [memory.columns["rss"][k] for k in kept])
    low, high = slope.low * span, slope.high * span
    detail = (
        f"RSS {slope.value * 60 / MIB:+.2f} MiB a minute, over {span:.0f} s {low / MIB:+.2f} to {high / MIB:+.2f} MiB "
        f"with 95 % confidence; fails if all of it is above {GROWTH_BYTES / MIB:g}"
    )
    return Check(name, low <= GROWTH_BYTES, detail)


def _fairness(result: ProcessResult) -> Check:
    waits = result.waits
    longest = max(LONGEST_WAIT_SECONDS, LONGEST_TO_MEAN * waits.mean_seconds)
    patient = waits.longest_seconds <= longest
    mean_ms, longest_ms = waits.mean_seconds * 1e3, waits.longest_seconds * 1e3
    said = f"{waits.count:,} waits for a pool, mean {mean_ms:.2f} ms, longest {longest_ms:.1f} ms"
    mean = sum(result.by_thread) / max(1, len(result.by_thread))
    least, most = min(result.by_thread, default=0), max(result.by_thread, default=0)
    judged = result.seconds >= JUDGED_SECONDS and len(result.by_thread) > 1 and mean > 0
    spread = f"threads did {least / mean:.2f} to {most / mean:.2f} of their mean" if mean else "nothing was done"
    equal = not judged or least >= LEAST_SHARE * mean
    return Check("fairness", patient and equal, f"{spread}; {said}", judged=judged or not patient)


def _children(result: ProcessResult) -> Check:
    broken = [*result.children, *result.hung]
    forks = result.abuses.get("fork", 0)
    return Check("children", not broken, _first(broken) or f"{forks} forks, every child found the arena whole")
