"""How peers look: told apart by colour, by dash and by marker; ours stands out, and a look hangs on the place alone."""

from __future__ import annotations

from itertools import combinations

import pytest
from reports import PEERS

from realalloc.lab.report.palette import COLOURS, DASHES, MARKERS, looks


@pytest.mark.parametrize("count", range(len(MARKERS) + 1))
def test_as_many_peers_as_there_are_look_different_twice_over(count: int) -> None:
    look = looks([f"peer {k}" for k in range(count)])
    assert list(look) == [f"peer {k}" for k in range(count)]
    for one, other in combinations(look.values(), 2):
        assert (one.colour, one.dash) != (other.colour, other.dash)
        assert one.marker != other.marker


def test_the_first_has_its_colour_alone_however_many_there_are() -> None:
    look = looks([f"peer {k}" for k in range(40)])
    assert [peer for peer in look if look[peer].colour == COLOURS[0]] == ["peer 0"]
    assert len({(one.colour, one.dash) for one in list(look.values())[1:]}) == (len(COLOURS) - 1) * len(DASHES)


def test_ours_is_thicker() -> None:
    look = looks(PEERS)
    assert [peer for peer in PEERS if look[peer].width == look["realalloc"].width] == ["realalloc"]
    assert look["realalloc"].width > look["glibc"].width


def test_a_peer_that_comes_behind_changes_nobody() -> None:
    assert looks(PEERS[:5]) == {peer: looks(PEERS)[peer] for peer in PEERS[:5]}
    assert looks([]) == {}


def test_both_libraries_are_given_a_name_for_all() -> None:
    for pairs in (DASHES, MARKERS):
        for k in (0, 1):
            assert len({pair[k] for pair in pairs}) == len(pairs)
    assert len(set(COLOURS)) == len(COLOURS)
