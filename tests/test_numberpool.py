"""What pools of objects and pools over machine code have in common, tried on the first; the second are in test_callpool."""

from __future__ import annotations

from typing import Any

import pytest

import realalloc as ra


def make(arena: ra.Arena, min_nr: int, freed: list[Any], **options: Any) -> Any:
    return arena.mempool(min_nr, alloc_fn=lambda data, gfp: [data], free_fn=freed.append, **options)


def test_a_descriptor_that_finds_no_room_is_out_of_memory_and_calls_nobody(arena: ra.Arena) -> None:
    freed: list[Any] = []
    with pytest.raises(ra.OutOfMemory, match="a reserve of 100000000 elements"):
        make(arena, 100_000_000, freed)
    pool = make(arena, 1, freed)
    with pytest.raises(ra.OutOfMemory, match="a reserve of 100000000 elements"):
        pool.resize(100_000_000)
    pool.destroy()
    assert len(freed) == 1


def test_every_surplus_element_is_freed_although_some_frees_raise(arena: ra.Arena) -> None:
    seen: list[Any] = []

    def free(element: Any) -> None:
        seen.append(element)
        raise RuntimeError("no")

    pool: Any = arena.mempool(4, alloc_fn=lambda data, gfp: [data], free_fn=free)
    with pytest.raises(ExceptionGroup, match="free_fn failed") as caught:
        pool.resize(1)
    assert len(caught.value.exceptions) == len(seen) == 3
    assert (pool.min_nr, pool.curr_nr) == (1, 1)
    pool.validate()
    with pytest.raises(RuntimeError, match="no"):
        pool.destroy()
    assert len(seen) == 4 and repr(pool) == "<ObjectPool gone>"


@pytest.mark.parametrize("target", [-1, 4, 1.5, "2"])
def test_refill_checks_its_target(arena: ra.Arena, target: Any) -> None:
    freed: list[Any] = []
    pool = make(arena, 3, freed)
    with pytest.raises((ValueError, TypeError)):
        pool.refill(target)
    held = [pool.alloc(), pool.alloc()]
    assert pool.refill(2) == 2 and pool.refill(1) == 2
    pool.free_bulk(held)
    pool.destroy()
    assert len(freed) == 4
