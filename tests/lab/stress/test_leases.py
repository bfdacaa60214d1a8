"""Python's share of the work: every way to take and to let go, and that damage is noticed."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from checks import some

from realalloc.lab.stress import Options
from realalloc.lab.stress.kernels import COUNTS, FREED, FULL, LEASE, NUMPY, POOL, READ_WORDS, REALLOCS, TAKEN
from realalloc.lab.stress.leases import LeaseWork
from realalloc.lab.stress.site import Site
from realalloc.mm.jit import JIT

MIX = "lease=3,pool=2,numpy=1" if JIT else "lease=3,pool=2"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(Options(threads=2, arena=16 << 20, mix=MIX, sizes="log:1..8KiB"))
    yield made
    gc.collect()
    assert made.finish() == []
    made.close()


def lease_work(site: Site, slots: int = 16) -> LeaseWork:
    return LeaseWork(site, site.lease_kinds, 1, np.zeros(COUNTS, np.int64), slots)


def test_all_kinds_are_taken_read_and_let_go(site: Site) -> None:
    made = lease_work(site)
    for _ in range(some(3000, 300)):
        made.turn()
    assert any(made.held)
    made.clear()
    assert made.wrong == [] and not any(made.held)
    counts = made.counts
    for kind in (LEASE, POOL, NUMPY) if JIT else (LEASE, POOL):
        assert counts[TAKEN + kind] == counts[FREED + kind] > 0
    assert counts[READ_WORDS] > 0 and counts[REALLOCS] > 0


@pytest.mark.parametrize("where", [0, -1])
def test_a_wrong_byte_is_found(site: Site, where: int) -> None:
    made = lease_work(site)
    while not any(held is not None and held.kind != NUMPY for held in made.held):
        made.turn()
    held = next(held for held in made.held if held is not None and held.kind != NUMPY)
    held.block[where] ^= 0x10
    del held
    made.clear()
    assert len(made.wrong) == 1 and made.first_wrong_seconds is not None
    assert "block" in made.wrong[0]


def test_no_memory_is_counted_and_loses_nothing(site: Site) -> None:
    made = lease_work(site)
    held = []
    for order in range(10, -1, -1):
        try:
            while True:
                held.append(site.arena.alloc_pages(order))
        except MemoryError:
            pass
    for _ in range(some(2000, 200)):
        made.turn()
    assert made.counts[FULL + LEASE] > 0
    held.clear()
    made.clear()
    assert made.wrong == []
    assert made.counts[TAKEN + LEASE] == made.counts[FREED + LEASE]


def test_a_borrower_does_its_errand_while_it_holds_the_element(site: Site) -> None:
    seen = []
    counts = np.zeros(COUNTS, np.int64)
    kinds = np.full_like(site.lease_kinds, POOL)
    made = LeaseWork(site, kinds, 2, counts, 4, lambda: seen.append(site.bounded.stats().outstanding))
    while not seen:
        made.turn()
    made.clear()
    assert set(seen) == {1} and site.bounded.stats().outstanding == 0
