"""How large a run is: numbers scale, and are neither more than the full one nor less than what a workload needs."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.lab.workloads.scope import Scope, size_name, threads_name


@given(st.integers(1, 10**7), st.integers(1, 10**4), st.floats(0.0001, 1.0))
def test_count(full: int, least: int, scale: float) -> None:
    count = Scope(scale).count(full, least)
    assert min(full, least) <= count <= full
    assert count == full or count in (least, int(full * scale))
    assert Scope(1.0).count(full, least) == full


def test_crowds() -> None:
    assert list(Scope(threads=1).crowds()) == [1]
    assert list(Scope(threads=4).crowds()) == [1, 4]


def test_workers_are_made_when_asked_for_and_end() -> None:
    before = threading.active_count()
    scope = Scope(threads=3)
    scope.close()
    workers = scope.workers
    assert scope.workers is workers and len(workers.pools) == 3
    assert workers.run(lambda: 1, lambda: 2, lambda: 3) == [1, 2, 3]
    scope.close()
    scope.close()
    assert threading.active_count() == before
    assert len(Scope(threads=1).workers.pools) == 2  # a producer and a consumer need two


@pytest.mark.parametrize(
    ("nbytes", "name"),
    [(8, "8 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1536 B"), (1 << 20, "1 MiB"), (3 << 20, "3 MiB")],
)
def test_size_name(nbytes: int, name: str) -> None:
    assert size_name(nbytes) == name


def test_threads_name() -> None:
    assert [threads_name(threads) for threads in (1, 2, 8)] == ["1 thread", "2 threads", "8 threads"]
