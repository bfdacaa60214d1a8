"""What is measured, one small file a workload: its module has a NAME, a docstring that says what it is, and ``cases(scope)``.

Guarantees: a case's streams come from the scope's seed, so that everybody asks for the same; a turn leaves nothing allocated
when it is closed. Most are ports of what allocators are measured with elsewhere; the docstrings name the origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Final

from realalloc.lab.measure import Case
from realalloc.lab.workloads import (
    alloc_test,
    arrays,
    batch,
    burst,
    cache_lines,
    handover,
    large,
    larson,
    mleak,
    mstress,
    pages,
    pair,
    pool,
    replacement,
    replay,
    ring,
    rptest,
    view,
    xmalloc,
)
from realalloc.lab.workloads.scope import Scope

JITTED_WORKLOADS: Final[tuple[ModuleType, ...]] = (
    pair,
    batch,
    replacement,
    ring,
    pages,
    large,
    burst,
    handover,
    larson,
    xmalloc,
    mstress,
    rptest,
    alloc_test,
    cache_lines,
    mleak,
    replay,
)


PYTHON_WORKLOADS: Final[tuple[ModuleType, ...]] = (view, pool, arrays)
ALL: Final = (*PYTHON_WORKLOADS, *JITTED_WORKLOADS)
# What ``--quick`` is made of: a case of each kind, of workloads whose loops compile in a moment.
QUICK_CASES: Final = frozenset(
    {
        "view 64 B",
        "view 4 KiB",
        "view 64 KiB",
        "pool 4 KiB",
        "arrays 16 x 1 MiB, touched",
        "pair 64 B",
        "pair 4 KiB",
        "pair 256 KiB",
        "batch LIFO 1000 x 64",
        "replacement 10k x 16..4096",
        "burst 16..4096",
        "handover producer/consumer 64",
    }
)


def about(workload: ModuleType) -> str:
    """Return what a workload is, in one line."""
    return (workload.__doc__ or "").partition("\n")[0].partition(": ")[2]


def cases(scope: Scope, only: Iterable[str] = (), workloads: Iterable[ModuleType] = ALL) -> Iterator[Case]:
    """Give the cases of all workloads, or of those that are named."""
    names = set(only)
    for workload in workloads:
        if not names or workload.NAME in names:
            yield from workload.cases(scope)


def jitted_cases(scope: Scope, only: Iterable[str] = ()) -> Iterator[Case]:
    """Give those whose allocator is called inside machine code."""
    yield from cases(scope, only, JITTED_WORKLOADS)
