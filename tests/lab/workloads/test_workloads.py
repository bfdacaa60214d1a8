"""What every workload keeps: all peers do the same work, nothing is left behind, and a seed decides all of it."""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator

import pytest
from support import JIT

from realalloc.lab import pythons
from realalloc.lab.measure import Case, measure
from realalloc.lab.natives import find_natives
from realalloc.lab.peers import OURS, jitted_peers, nobody
from realalloc.lab.pythons import NOBODY, PythonPeer
from realalloc.lab.results import JITTED, PYTHON, Row
from realalloc.lab.workloads import (
    ALL,
    JITTED_WORKLOADS,
    PYTHON_WORKLOADS,
    QUICK_CASES,
    about,
    cases,
    fragments,
    jitted_cases,
)
from realalloc.lab.workloads.scope import QUICK, Scope

TINY = 0.0005
GLIBC, _ = find_natives("glibc")
MODULES = {workload.NAME: workload for workload in ALL}
HEAVY = {"large", "replay", "pages 16 MiB, touched", "pages 16 MiB, untouched", "arrays 16 x 16 MiB, touched"}
SEEDED = {
    case.name: case.workload for case in jitted_cases(Scope(TINY)) if "seed" in case.parameters and case.threads == 1
}
NAMES = [
    case.name
    for case in cases(Scope(TINY))
    if JIT or not (case.name in HEAVY or case.workload in HEAVY)  # every word is written: minutes in plain Python
]


@pytest.fixture(scope="module")
def scopes() -> Iterator[dict[int, Scope]]:
    made = {seed: Scope(TINY, 2, seed) for seed in (1, 2)}
    yield made
    for scope in made.values():
        scope.close()


@functools.cache
def _of(name: str) -> str:
    return next(case.workload for case in cases(Scope(TINY)) if case.name == name)


def _case(scopes: dict[int, Scope], name: str, seed: int = 1) -> Case:
    return next(case for case in cases(scopes[seed], {_of(name)}) if case.name == name)


def _row(case: Case, *, with_glibc: bool = True, rounds: int = 1) -> Row:
    if case.view == PYTHON:
        group = pythons.POOLS if case.workload == "pool" else pythons.BLOCKS
        found, _ = pythons.find(group, (OURS, "bytearray", "memoryview(bytearray)", "deque"))
        return measure(
            case, [PythonPeer(source) for source in found], rounds, harness=PythonPeer(NOBODY), latency=False
        )
    with jitted_peers(GLIBC if with_glibc else []) as peers:
        return measure(case, peers, rounds, harness=nobody(), latency=False)


@pytest.mark.parametrize("name", NAMES)
def test_all_do_the_same_work_and_leave_nothing(name: str, scopes: dict[int, Scope]) -> None:
    case = _case(scopes, name)
    row = _row(case)  # WorkDiffers if sums differ or anything is left in the arena
    assert len(row.entries) >= 2 and row.entries[0].peer == OURS
    assert len({entry.checksum for entry in row.entries}) == 1
    assert row.entries[0].checksum not in (None, 0)
    assert (row.harness_ns is not None) == case.harness
    assert row.view == (PYTHON if MODULES[case.workload] in PYTHON_WORKLOADS else JITTED)


@pytest.mark.parametrize(
    "name",
    sorted({next(n for n in NAMES if SEEDED.get(n) == w) for w in set(SEEDED.values())} - HEAVY)
    if JIT
    else ["burst 16..4096", "replacement 10k x 16..4096"],
)
def test_a_seed_decides_all_of_it(name: str, scopes: dict[int, Scope]) -> None:
    first, again, other = [_row(_case(scopes, name, seed), with_glibc=False).entries[0].checksum for seed in (1, 1, 2)]
    assert first == again != other


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_names_are_unique_and_say_what_is_run(threads: int) -> None:
    seen: collections.Counter[str] = collections.Counter()
    for case in cases(Scope(TINY, threads)):
        seen[case.name] += 1
        assert case.workload in MODULES and case.number >= 1
        assert case.parameters.get("seed", 1) == 1
        assert case.threads == 1 or threads > 1 or case.workload == "mleak"  # whose threads are what it is about
        if f"{case.threads} threads" in case.name:
            assert case.threads == threads
    assert set(seen.values()) == {1}
    assert any(case.threads == threads for case in cases(Scope(TINY, threads)))


@pytest.mark.parametrize("scale", [0.0005, 0.01, 0.2])
def test_a_larger_scale_is_more_work_and_the_same_rows(scale: float) -> None:
    small, full = list(cases(Scope(scale))), {case.name: case.number for case in cases(Scope(1.0))}
    assert [case.name for case in small] == list(full)
    assert all(case.number <= full[case.name] for case in small)
    assert sum(case.number for case in small) < sum(full.values()) * max(2 * scale, 0.02)


def test_quick_is_a_dozen_rows_that_exist() -> None:
    names = [case.name for case in cases(Scope(QUICK))]
    assert len(QUICK_CASES) == 12 and set(names) >= QUICK_CASES
    assert {case.view for case in cases(Scope(QUICK)) if case.name in QUICK_CASES} == {JITTED, PYTHON}


def test_choosing_workloads() -> None:
    assert {case.workload for case in cases(Scope(TINY), ("pair", "view"))} == {"pair", "view"}
    assert {case.workload for case in jitted_cases(Scope(TINY), ("pair", "view"))} == {"pair"}
    assert {case.workload for case in jitted_cases(Scope(TINY))} == {workload.NAME for workload in JITTED_WORKLOADS}
    assert list(cases(Scope(TINY), ("nothing",))) == []


@pytest.mark.parametrize("workload", [*ALL, fragments], ids=lambda workload: workload.NAME)
def test_every_workload_says_what_it_is(workload) -> None:
    said = about(workload)
    assert (workload.__doc__ or "").startswith(f"{workload.NAME}: ") and 20 < len(said) < 127
    assert len(MODULES) == len(ALL)
