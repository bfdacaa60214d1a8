"""A lane of work."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from checks import some

from realalloc.lab.stress import Options
from realalloc.lab.stress.kernels import FREED, FULL, NUMBER, OFFSET, RECORD, TAKEN
from realalloc.lab.stress.site import Site
from realalloc.lab.stress.worker import Worker


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(Options(threads=1, arena=8 << 20, sizes="log:8..2KiB", operations=some(20_000, 60)))
    yield made
    gc.collect()  # leases that are in cycles
    assert made.finish() == []
    made.close()


def test_a_worker_does_its_quota_and_frees_everything(site: Site) -> None:
    worker = Worker(site, 0)
    worker.start()
    assert worker.ended.wait(120)
    assert worker.verified >= site.options.operations and worker.error is None
    assert not worker.table[OFFSET::RECORD].any() and not any(worker.leases.held)
    assert worker.findings() == []
    taken, freed = worker.counts[TAKEN:FREED].sum(), worker.counts[FREED:FULL].sum()
    shared = int((site.shared[OFFSET::RECORD] != 0).sum())
    assert taken - freed == shared


def test_a_worker_can_be_reborn(site: Site) -> None:
    threads = set()

    def watch(worker: Worker) -> None:
        threads.add(worker.native_id)
        worker.reborn = len(threads) < 3

    worker = Worker(site, 0, watch)
    worker.start()
    assert worker.ended.wait(120) and worker.error is None
    assert worker.births == len(threads) == 3


def test_stop_ends_it(site: Site) -> None:
    worker = Worker(site, 0)
    site.stop[0] = 1
    worker.start()
    assert worker.ended.wait(60) and worker.verified == 0
    site.stop[0] = 0


def test_what_raises_is_kept(site: Site) -> None:
    def fail(_worker: Worker) -> None:
        raise KeyError("why")

    worker = Worker(site, 0, fail)
    worker.start()
    assert worker.ended.wait(60)
    assert worker.error is not None and "KeyError: 'why'" in worker.error
    worker.leases.clear()
    worker.error = None
    worker._on_round = None
    site.stop[0] = 1
    worker.start()  # frees what it held
    while worker.table[OFFSET::RECORD].any():
        worker.ended.wait(0.01)
    site.stop[0] = 0


def test_sequence_numbers_of_threads_are_apart(site: Site) -> None:
    first, second = Worker(site, 0), Worker(site, 1)
    assert second.state[NUMBER] - first.state[NUMBER] == 1 << 40
