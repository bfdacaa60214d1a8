"""Which descriptors may be followed: live blocks that are large enough, in lists that end."""

from __future__ import annotations

import numba
import pytest
from support import MIB, RawArena

from realalloc.mm import layout as at
from realalloc.mm.descriptors import bad_chain, holds, is_descriptor
from realalloc.mm.jit import bare
from realalloc.mm.kmalloc import kfree, kmalloc, vmalloc


@numba.njit
def may_hold(words, offset, nbytes):
    return holds(bare(words), offset, nbytes)


@numba.njit
def may_follow(words, where, count):
    return is_descriptor(bare(words), where, count)


@numba.njit
def is_bad(words, where, link, count):
    return bad_chain(bare(words), where, link, count)


@pytest.mark.parametrize("nbytes", [100, 3000, 20_000, 300_000])
def test_a_live_block_holds_what_it_has_room_for(raw: RawArena, nbytes: int) -> None:
    offset = int(kmalloc(raw.words, nbytes, 0))
    assert may_hold(raw.words, offset, nbytes) == 1
    assert may_hold(raw.words, offset, -1) == may_hold(raw.words, offset, 1 << 62) == 0
    assert may_hold(raw.words, offset, 2 * nbytes + at.PAGE_BYTES) == 0
    assert may_hold(raw.words, offset + 8, nbytes) == 0
    kfree(raw.words, offset)
    assert may_hold(raw.words, offset, nbytes) == 0


@pytest.mark.parametrize("offset", [0, -8, 8, -1 << 63, (1 << 63) - 8, 1 << 40])
def test_where_no_block_is_nothing_is_held(raw: RawArena, offset: int) -> None:
    assert may_hold(raw.words, offset, 8) == 0
    assert may_follow(raw.words, offset, 1) == may_follow(raw.words, offset // 8, 1) == 0


def test_an_area_whose_blocks_are_damaged_is_not_read(raw: RawArena) -> None:
    offset = int(vmalloc(raw.words, 50_000, 0))
    assert may_hold(raw.words, offset, 50_000) == 1
    granule = offset - int(raw.words[at.H_VM_START_BYTES]) >> at.GRANULE_SHIFT
    where = int(raw.words[at.H_VMAP]) + granule * at.AREA_WORDS + at.V_PAGES
    raw.words[where] += 100  # pages that are not mapped there
    assert may_hold(raw.words, offset, 60_000) == 0
    raw.words[where] -= 100


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9])
def test_a_list_that_ends_is_whole_and_one_that_goes_round_is_not(length: int) -> None:
    raw = RawArena(MIB, 4)
    nodes = [int(kmalloc(raw.words, 64, 0)) // 8 for _ in range(length)]
    for k in range(length):
        raw.words[nodes[k] + 3] = nodes[k + 1] if k + 1 < length else 0
    head = nodes[0] if nodes else 0
    assert is_bad(raw.words, head, 3, 8) == 0
    assert is_bad(raw.words, head, 3, 9) == (1 if nodes else 0)  # too small
    for k in range(length):
        raw.words[nodes[-1] + 3] = nodes[k]
        assert is_bad(raw.words, head, 3, 8) == 1
        raw.words[nodes[-1] + 3] = nodes[k] + 1
        assert is_bad(raw.words, head, 3, 8) == 1
