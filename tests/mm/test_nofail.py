"""GFP_NOFAIL in machine code: what is asked for until it is there, what never can be, and who is told so at once."""

from __future__ import annotations

import threading

import pytest
from checks import Worker
from kernels import class_cache, make_cache
from support import MIB, PAGE, RawArena

from realalloc import gfp as flags
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import ENOMEM, GFP_DMA_BIT, H_CLOSED, ZONE_NORMAL
from realalloc.mm.nofail import ASK_KMALLOC, ASK_OBJECT, ASK_PAGES, ASK_RUN, ASK_VMALLOC, could_serve, insist
from realalloc.mm.page_alloc import alloc_pages, free_pages
from realalloc.mm.watermark import set_marks

NOFAIL = flags.GFP_KERNEL | flags.GFP_NOFAIL


def full(raw: RawArena) -> list[int]:
    taken = []
    while (pfn := int(alloc_pages(raw.words, 0, flags.GFP_KERNEL | flags.GFP_HIGH))) > 0:
        taken.append(pfn)
    return taken


def test_what_could_never_be_served() -> None:
    raw = RawArena(MIB, 4)
    c = make_cache(raw, 4000)
    pages = raw.pages
    yes = [(ASK_KMALLOC, 8), (ASK_KMALLOC, 16 * PAGE), (ASK_KMALLOC, pages * PAGE), (ASK_VMALLOC, pages * PAGE)]
    yes += [(ASK_PAGES, 4), (ASK_RUN, pages), (ASK_OBJECT, c), (ASK_OBJECT, class_cache(raw, 8192))]
    no = [(ASK_KMALLOC, 0), (ASK_KMALLOC, -1), (ASK_KMALLOC, pages * PAGE + 1), (ASK_KMALLOC, 1 << 62)]
    no += [(ASK_VMALLOC, pages * PAGE + 1), (ASK_VMALLOC, 0), (ASK_PAGES, 5), (ASK_PAGES, -1), (ASK_RUN, pages + 1)]
    assert all(could_serve(raw.words, *asked, NOFAIL) for asked in yes)
    assert not any(could_serve(raw.words, *asked, NOFAIL) for asked in no)
    assert all(insist(raw.words, *asked, NOFAIL) == ENOMEM for asked in no), "at once"
    assert not could_serve(raw.words, ASK_KMALLOC, 8, NOFAIL | GFP_DMA_BIT), "there is no such zone"
    set_marks(raw.words, ZONE_NORMAL, 10, 12, 14)
    assert could_serve(raw.words, ASK_RUN, pages - 10, NOFAIL) and not could_serve(
        raw.words, ASK_RUN, pages - 9, NOFAIL
    )


def test_it_waits_only_where_the_caller_may() -> None:
    raw = RawArena(MIB, 4)
    full(raw)
    assert insist(raw.words, ASK_PAGES, 0, flags.GFP_NOWAIT | flags.GFP_NOFAIL) == ENOMEM


@pytest.mark.parametrize("what", [ASK_KMALLOC, ASK_VMALLOC, ASK_PAGES, ASK_RUN, ASK_OBJECT])
def test_it_is_served_as_soon_as_another_thread_frees(what: int) -> None:
    raw = RawArena(MIB, 4)
    set_marks(raw.words, ZONE_NORMAL, 8, 9, 10)
    argument = {ASK_KMALLOC: 3000, ASK_VMALLOC: PAGE, ASK_PAGES: 0, ASK_RUN: 1, ASK_OBJECT: make_cache(raw, 4000)}[what]
    taken = full(raw)
    begun = threading.Event()

    def wait() -> int:
        begun.set()
        return int(insist(raw.words, what, argument, NOFAIL))

    waiter = Worker(wait)
    begun.wait(60)
    waiter.join(0.05)
    assert waiter.is_alive()
    for _ in range(4):
        free_pages(raw.words, taken.pop(), 0)
    assert waiter.result() > 0
    raw.validate()


def test_who_waits_may_use_half_of_the_reserve() -> None:
    raw = RawArena(MIB, 4)
    set_marks(raw.words, ZONE_NORMAL, 8, 9, 10)
    while alloc_pages(raw.words, 0, flags.GFP_KERNEL) > 0:
        pass
    assert [insist(raw.words, ASK_PAGES, 0, NOFAIL) > 0 for _ in range(4)] == [True] * 4
    assert alloc_pages(raw.words, 0, flags.GFP_KERNEL | flags.GFP_HIGH) == ENOMEM


def test_an_arena_that_closes_ends_the_wait() -> None:
    raw = RawArena(MIB, 4)
    full(raw)
    waiter = Worker(lambda: insist(raw.words, ASK_PAGES, 0, NOFAIL))
    waiter.join(0.05)
    assert waiter.is_alive()
    raw.words[H_CLOSED] = 1
    assert waiter.result() == ENOMEM


def test_a_block_that_was_there_is_not_waited_for() -> None:
    raw = RawArena(MIB, 4)
    offset = int(insist(raw.words, ASK_KMALLOC, 100, NOFAIL))
    assert offset > 0 and kfree(raw.words, offset) == 0
    assert kmalloc(raw.words, 100, flags.GFP_KERNEL) > 0
