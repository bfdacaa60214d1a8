"""Options of a pool: what is no pool is refused with a sentence, and nothing is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import address, refuses
from support import PAGE

import realalloc as ra


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "exactly one of size, cache, order, struct, alloc_fn; got none"),
        ({"size": 8, "pages": 1}, ValueError, "got size, order"),
        ({"size": 0}, ValueError, "size must be at least 1"),
        ({"size": 8.0}, TypeError, "size must be an integer"),
        ({"size": True}, TypeError, "not bool"),
        ({"order": 11}, ValueError, "order must be at most 10"),
        ({"order": -1}, ValueError, "order must be at least 0"),
        ({"order": 1.5}, TypeError, "order must be an integer"),
        ({"order": 1, "pages": 1}, ValueError, "order or pages, not both"),
        ({"order": "last", "size": 8}, ValueError, "order must be one of reserve-first, alloc-first"),
        ({"alloc_fn": len}, ValueError, "alloc_fn needs free_fn"),
        ({"free_fn": len, "size": 8}, ValueError, "free_fn needs alloc_fn"),
        ({"size": 8, "gfp": 2}, ValueError, "unknown bits"),
        ({"size": 8, "gfp": ra.GFP_DMA}, ValueError, "locked zone"),
        ({"size": 1 << 40}, ra.OutOfMemory, "reserve"),
        ({"size": 2**63}, ValueError, "size must be at most"),
    ],
)
def test_bad_options_are_refused(arena: ra.Arena, options: Any, error: type[Exception], words: str) -> None:
    refuses(arena, error, words, lambda: arena.mempool(2, **options))


@pytest.mark.parametrize("min_nr", [-1, True, 2.0, "3", None, 2**63])
def test_a_count_that_is_none_is_refused(arena: ra.Arena, min_nr: Any) -> None:
    refuses(arena, (ValueError if type(min_nr) is int else TypeError), "min_nr", lambda: arena.mempool(min_nr, size=8))


def test_an_order_is_given_by_an_integer_order_or_by_pages(arena: ra.Arena) -> None:
    for options in ({"order": 2}, {"pages": 2}, {"order": np.int64(2)}):
        pool = arena.mempool(1, **options)
        with pool.alloc() as buf:
            assert len(buf) == 4 * PAGE and address(buf) % (4 * PAGE) == 0
        pool.destroy()
