"""Growing blocks without copying: into free buddies, into free addresses, by moving page-table entries."""

from __future__ import annotations

import random

import pytest
from support import MIB, PAGE, RawArena

from realalloc.mm import layout
from realalloc.mm.kmalloc import kfree, kmalloc, ksize, vmalloc
from realalloc.mm.resize import krealloc_in_place


@pytest.fixture
def raw() -> RawArena:
    return RawArena(8 * MIB, max_order=6, sheaves=False)


def fill(raw: RawArena, offset: int, nbytes: int, mark: int) -> None:
    raw.words[offset // 8 : (offset + nbytes) // 8] = mark


def holds(raw: RawArena, offset: int, nbytes: int, mark: int) -> bool:
    return bool((raw.words[offset // 8 : (offset + nbytes) // 8] == mark).all())


def test_a_block_grows_into_its_buddies(raw: RawArena) -> None:
    offset = kmalloc(raw.words, 16 * PAGE, 0)
    assert offset % (64 * PAGE) == 0 or offset > 0
    while offset % (64 * PAGE) != 0:
        offset = kmalloc(raw.words, 16 * PAGE, 0)
    fill(raw, offset, 16 * PAGE, 7)
    assert krealloc_in_place(raw.words, offset, 40 * PAGE) == offset
    assert ksize(raw.words, offset) == 64 * PAGE
    assert holds(raw, offset, 16 * PAGE, 7)
    raw.validate()
    assert kfree(raw.words, offset) == 0
    raw.validate()


def test_a_block_with_a_neighbour_in_use_does_not_grow(raw: RawArena) -> None:
    made = [kmalloc(raw.words, 16 * PAGE, 0) for _ in range(16)]
    lower = next(a for a in made if a % (32 * PAGE) == 0 and a + 16 * PAGE in made)
    before = raw.words[layout.H_ALLOCATED_PAGES]
    assert krealloc_in_place(raw.words, lower, 17 * PAGE) == layout.ENOMEM
    assert krealloc_in_place(raw.words, lower + 16 * PAGE, 17 * PAGE) == layout.ENOMEM  # the upper half
    assert raw.words[layout.H_ALLOCATED_PAGES] == before
    raw.validate()
    assert kfree(raw.words, lower + 16 * PAGE) == 0
    assert krealloc_in_place(raw.words, lower, 17 * PAGE) == lower
    raw.validate()


def test_an_area_grows_where_it_is_or_moves(raw: RawArena) -> None:
    first = vmalloc(raw.words, 20 * PAGE, 0)
    fill(raw, first, 20 * PAGE, 1)
    assert krealloc_in_place(raw.words, first, 100 * PAGE) == first  # nothing behind it
    second = vmalloc(raw.words, 20 * PAGE, 0)
    fill(raw, second, 20 * PAGE, 2)
    fill(raw, first + 20 * PAGE, 80 * PAGE, 3)
    raw.validate()
    moved = krealloc_in_place(raw.words, first, 200 * PAGE)
    assert moved > second
    raw.validate()
    assert holds(raw, moved, 20 * PAGE, 1)
    assert holds(raw, moved + 20 * PAGE, 80 * PAGE, 3)
    assert holds(raw, second, 20 * PAGE, 2)
    fill(raw, moved + 100 * PAGE, 100 * PAGE, 4)
    assert kfree(raw.words, first) == layout.EINVAL  # nothing lives there any more
    assert krealloc_in_place(raw.words, second, 2 * MIB // PAGE * PAGE) > 0  # from 2 MiB on aligned to that
    raw.validate()
    assert kfree(raw.words, moved) == 0
    raw.validate()


def test_what_cannot_be_changes_nothing(raw: RawArena) -> None:
    small = kmalloc(raw.words, 100, 0)
    area = vmalloc(raw.words, 20 * PAGE, 0)
    assert krealloc_in_place(raw.words, small, 128) == small
    assert krealloc_in_place(raw.words, small, 129) == layout.ENOMEM
    assert krealloc_in_place(raw.words, small + 8, 129) == layout.EINVAL
    assert krealloc_in_place(raw.words, area, 0) == layout.EINVAL
    assert krealloc_in_place(raw.words, area, 64 * MIB) == layout.ENOMEM
    assert ksize(raw.words, area) == 20 * PAGE
    raw.validate()
    raw.words[layout.H_CLOSED] = 1
    assert krealloc_in_place(raw.words, area, 30 * PAGE) == layout.ENOMEM
    raw.words[layout.H_CLOSED] = 0


@pytest.mark.parametrize("seed", range(3))
def test_at_random_nothing_is_lost(seed: int, raw: RawArena) -> None:
    rng = random.Random(seed)
    live: dict[int, tuple[int, int]] = {}
    for step in range(150):
        if live and rng.random() < 0.55:
            offset = rng.choice(list(live))
            nbytes, mark = live.pop(offset)
            assert holds(raw, offset, nbytes, mark)
            more = nbytes + rng.randrange(1, 60) * PAGE
            moved = krealloc_in_place(raw.words, offset, more)
            if moved > 0:
                assert holds(raw, moved, nbytes, mark)
                fill(raw, moved, more, step)
                live[moved] = (more, step)
            elif rng.random() < 0.5:
                assert kfree(raw.words, offset) == 0
            else:
                live[offset] = (nbytes, mark)
        else:
            nbytes = rng.randrange(3, 80) * PAGE
            offset = kmalloc(raw.words, nbytes, 0)
            if offset > 0:
                fill(raw, offset, nbytes, step)
                live[offset] = (nbytes, step)
        raw.validate()
    for offset, (nbytes, mark) in live.items():
        assert holds(raw, offset, nbytes, mark)
        assert kfree(raw.words, offset) == 0
    raw.validate()
