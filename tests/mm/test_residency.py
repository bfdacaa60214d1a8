"""The books against mincore(2): blocks, runs, areas, objects, in all modes of huge pages; and what nobody may have written."""

from __future__ import annotations

import random

import numpy as np
import pytest
from kernels import octets, trim
from support import JIT, MIB, PAGE, RawArena

from realalloc.mm.commit import purge
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import H_COMMITTED_PAGES, H_VM_START_BYTES, HUGE_ALWAYS, HUGE_AUTO
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.residency import (
    RES_COMMITTED,
    RES_METADATA,
    RES_PAGES,
    RES_STRAY,
    RES_WINDOW,
    RESIDENCY_WORDS,
    VECTOR_PAGES,
    residency,
)


def look(raw: RawArena) -> dict[str, int]:
    """Return the answer in pages."""
    out = np.zeros(RESIDENCY_WORDS, np.int64)
    assert residency(raw.words, out) == 0
    named = {"metadata": RES_METADATA, "pages": RES_PAGES, "window": RES_WINDOW, "committed": RES_COMMITTED}
    return {name: int(out[word]) for name, word in (named | {"stray": RES_STRAY}).items()}


def agrees(raw: RawArena) -> None:
    """Everything that may hold memory does, and nothing else."""
    seen = look(raw)
    assert seen["stray"] == 0
    assert seen["committed"] == raw.words[H_COMMITTED_PAGES]
    assert seen["pages"] + seen["window"] == seen["committed"]
    assert seen["pages"] + seen["metadata"] == raw.memory.resident_pages(0, int(raw.words[H_VM_START_BYTES]))


@pytest.mark.parametrize("huge", [0, HUGE_AUTO, HUGE_ALWAYS])
def test_books_and_system_agree_to_the_page(huge: int) -> None:
    rng = random.Random(huge)
    raw = RawArena(40 * MIB, 10, huge=huge)
    raw.memory.advise_huge(0, raw.plan.window_start_bytes, wanted=huge == HUGE_ALWAYS)
    raw.memory.advise_huge(0, raw.plan.meta_pages * PAGE, wanted=False)
    live: dict[int, int] = {}
    used = 0
    for step in range(1500 if JIT else 150):
        if rng.random() < 0.55 and used < 30 * MIB:
            size = int(rng.choice((100, 3000, 20_000, 300_000, 3_000_000, 6_000_000)) * rng.uniform(0.3, 1))
            offset = int(kmalloc(raw.words, size, 0))
            if offset > 0:
                octets(raw, offset, size)[:] = 1
                live[offset] = size
                used += size
        elif live:
            offset = rng.choice(sorted(live))
            assert kfree(raw.words, offset) == 0
            used -= live.pop(offset)
        if step % 100 == 0:
            purge(raw.words, rng.randrange(2000), 4, step % 200 == 0)
            look_at_all(raw)
    for offset in live:
        kfree(raw.words, offset)
    trim(raw)
    agrees(raw)


def look_at_all(raw: RawArena) -> None:
    """Nothing is resident that the books do not have; pages of large blocks that were never written may be absent."""
    seen = look(raw)
    assert seen["stray"] == 0
    assert seen["pages"] + seen["window"] <= seen["committed"]


def test_small_pages_are_counted_one_by_one() -> None:
    raw = RawArena(8 * MIB, 4, sheaves=False)
    agrees(raw)
    taken = []
    for k in range(300):
        taken.append(int(alloc_pages(raw.words, 0, 0)))
        if k % 3:
            octets(raw, taken[-1] * PAGE, 1)[:] = 1
    seen = look(raw)
    assert seen["committed"] - seen["pages"] == 100
    for pfn in taken:
        octets(raw, pfn * PAGE, 1)[:] = 1
    agrees(raw)
    for pfn in taken:
        free_pages(raw.words, pfn, 0)
    agrees(raw)
    trim(raw)
    agrees(raw)
    assert look(raw)["pages"] == 0


def test_more_pages_than_a_vector_has() -> None:
    raw = RawArena(3 * VECTOR_PAGES * PAGE, 10)
    blocks = [int(alloc_pages(raw.words, 10, 0)) for _ in range(10)]
    for pfn in blocks:
        octets(raw, pfn * PAGE, 1024 * PAGE)[:] = 1
    agrees(raw)
    assert look(raw)["pages"] >= 10 * 1024


def test_a_page_that_was_written_behind_the_books_is_stray() -> None:
    raw = RawArena(8 * MIB, 4, sheaves=False)
    pfn = int(alloc_pages(raw.words, 4, 0))
    keep = int(alloc_pages(raw.words, 4, 0))
    octets(raw, pfn * PAGE, 16 * PAGE)[:] = 1
    free_pages(raw.words, pfn, 4)
    trim(raw)
    assert look(raw)["stray"] == 0
    octets(raw, (pfn + 3) * PAGE, 1)[:] = 1  # used after it was freed
    assert (look(raw)["stray"], look(raw)["pages"]) == (1, 1)
    free_pages(raw.words, keep, 4)
