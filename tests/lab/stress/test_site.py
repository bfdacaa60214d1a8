"""What the threads share, and the last look at it."""

from __future__ import annotations

import pytest

import realalloc as ra
from realalloc import jit
from realalloc.lab.stress import Options
from realalloc.lab.stress.site import Site, fragmentation
from realalloc.mm.jit import JIT

OPTIONS = Options(threads=2, arena=8 << 20)


def test_a_site_that_nobody_used_is_whole() -> None:
    site = Site(OPTIONS.but(mix="kmalloc=3,lease=1"))
    assert site.lease_share == pytest.approx(0.25) and site.bounded.min_nr == 1
    assert 0 <= site.fragmentation() <= 1 and site.waiters() == 0
    assert site.finish() == []
    site.close()
    site.close()


def test_what_was_lost_is_found() -> None:
    site = Site(OPTIONS)
    lost = jit.kmalloc(site.words, 100)
    view = site.arena.kmalloc(10_000)
    found = site.finish()
    assert "1 leases left when everything was freed" in found and "1 objects left when everything was freed" in found
    assert any(text.endswith("frees") for text in found)
    view.release()
    assert jit.kfree(site.words, lost) == 0
    site.close()


def test_an_element_that_is_out_is_found() -> None:
    site = Site(OPTIONS)
    element = site.reserve.alloc()
    assert "still has 1 elements out" in site.finish()[0]
    element.release()
    site.close()


def test_a_broken_invariant_is_found() -> None:
    site = Site(OPTIONS)
    site.arena.words[ra.mm.layout.H_BAD_FREES] += 1
    assert "the header is damaged" in site.finish()[0]
    site.close()


def test_faults_are_injected_into_the_pool() -> None:
    site = Site(OPTIONS.but(faults=1.0))
    held = [site.reserve.alloc() for _ in range(site.reserve.min_nr)]
    with pytest.raises(ra.OutOfMemory):
        site.reserve.alloc(ra.GFP_NOWAIT)
    assert site.reserve.stats().injected_failures > 0
    del held
    assert site.finish() == []
    site.close()


def test_numpy_without_machine_code() -> None:
    if JIT:
        pytest.skip("there is machine code")
    with pytest.raises(ValueError, match="numpy needs machine code"):
        Site(OPTIONS.but(mix="numpy=1"))


def test_an_arena_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least"):
        Site(OPTIONS.but(arena=100_000, sizes="fixed:8"))
    with pytest.raises(ra.OutOfMemory):
        Site(OPTIONS.but(limit=8192))


def test_fragmentation() -> None:
    assert (fragmentation(0, 0), fragmentation(100, 25), fragmentation(8, 8)) == (0.0, 0.75, 0.0)
