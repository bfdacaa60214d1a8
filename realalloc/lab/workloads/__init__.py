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
    replacement,
    ring,
    rptest,
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
)


def about(workload: ModuleType) -> str:
    """Return what a workload is, in one line."""
    return (workload.__doc__ or "").partition("\n")[0].partition(": ")[2]


def jitted_cases(scope: Scope, only: Iterable[str] = ()) -> Iterator[Case]:
    """Give the cases of all workloads, or of those that are named."""
    names = set(only)
    for workload in JITTED_WORKLOADS:
        if not names or workload.NAME in names:
            yield from workload.cases(scope)
