"""Who takes part inside jitted code: a state for each thread, and an arena that must be empty and sound at the end."""

from __future__ import annotations

import numpy as np
import pytest
from checks import some
from support import MIB

import realalloc as ra
from realalloc.lab.crowd import crowd
from realalloc.lab.loops import kinds
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.measure import WorkDiffers
from realalloc.lab.natives import find_natives
from realalloc.lab.peers import HARNESS, OURS, jitted_peers, native, nobody, ours
from realalloc.mm import layout

GLIBC, _ = find_natives("glibc")


def test_everybody_in_order() -> None:
    with jitted_peers(GLIBC) as peers:
        assert [peer.name for peer in peers] == [OURS, "glibc"]
        sums = {int(peer.loops.pairs(peer.how(), 64, 100, True)) for peer in peers}
    assert sums == {6400}
    with jitted_peers(GLIBC, with_ours=False) as peers:
        assert [peer.name for peer in peers] == ["glibc"]
    with jitted_peers([]) as peers:
        assert [peer.name for peer in peers] == [OURS]


def test_native_loops_allocate_for_real() -> None:
    with jitted_peers(GLIBC, with_ours=False) as (peer,):
        blocks = np.zeros(64, np.int64)
        every, sizes = np.arange(64, dtype=np.int32), np.full(64, 400, np.int32)
        peer.loops.replace(peer.how(), blocks, every, sizes, 0, 64)
        assert (np.diff(np.sort(blocks)) >= 400).all()
        assert peer.loops.drain(peer.how(), blocks) == sum(range(64))


@pytest.mark.parametrize("nbytes", [8, 64, 8192, 8193, 40_000, 5 * MIB])
def test_a_workload_that_leaves_an_object_behind_is_no_result(nbytes: int) -> None:
    with pytest.raises(WorkDiffers, match="left behind"), jitted_peers([]) as (peer,):
        blocks = np.zeros(1, np.int64)
        peer.loops.replace(peer.how(), blocks, np.zeros(1, np.int32), np.full(1, nbytes, np.int32), 0, 1)


def test_an_arena_that_is_damaged_is_no_result() -> None:
    with pytest.raises(WorkDiffers, match="damaged: arena: .* freed that was not in use"), jitted_peers([]) as (peer,):
        peer.how()[layout.H_BAD_FREES] += 1


def test_an_error_of_the_workload_is_not_hidden_by_what_it_left() -> None:
    with pytest.raises(ZeroDivisionError), jitted_peers(GLIBC) as peers:
        peers[0].loops.replace(
            peers[0].how(), np.zeros(1, np.int64), np.zeros(1, np.int32), np.full(1, 64, np.int32), 0, 1
        )
        _ = 1 // 0


@pytest.mark.parametrize("layer", [PLAIN, CHECKED, TIMED])
def test_a_thread_has_one_how_for_ever(layer: str, arena: ra.Arena) -> None:
    for made in (ours(arena.words), native(GLIBC[0]), nobody()):
        peer = made.layered(layer)
        assert (peer.name, peer.layer) == (made.name, layer)
        first, second = peer.how(0), peer.how(1)
        assert peer.how(0) is first and peer.how(1) is second and peer.how() is first
        if layer != PLAIN:
            assert first[1] is not second[1]
        assert peer.layered(PLAIN).layer == PLAIN


def test_states_of_all_threads_are_summed() -> None:
    peer = native(GLIBC[0]).layered(CHECKED)
    alone = native(GLIBC[0]).layered(CHECKED)
    peer.loops.pairs(peer.how(), 16, 0, True)
    crowd([lambda k=k: peer.loops.pairs(peer.how(k), 64, 100, True) for k in range(2)])
    for _ in range(2):
        alone.loops.pairs(alone.how(), 64, 100, True)
    assert peer.checksum() == alone.checksum() != native(GLIBC[0]).layered(CHECKED).checksum()


def test_latencies_of_all_threads_and_of_loops_that_time_themselves() -> None:
    number = some(5000, 100)
    peer = native(GLIBC[0]).layered(TIMED)
    for thread in range(2):
        peer.loops.pairs(peer.how(thread), 64, number, True)
    due, spent = np.zeros(7, np.int64), np.zeros(1, np.int64)
    blocks = np.zeros(8, np.int64)
    peer.loops.serve(peer.how(), peer.recorder(), due, np.full(7, 32, np.int32), blocks, spent)
    peer.loops.drain(peer.how(), blocks)
    counts = {found.operation: found.count for found in peer.latencies()}
    assert counts["response"] == 7
    assert abs(counts["alloc"] - number) < 20 and abs(counts["free"] - number) < 20
    plain = native(GLIBC[0])
    plain.loops.serve(plain.how(), plain.recorder(), due, np.full(7, 32, np.int32), blocks, spent)
    plain.loops.drain(plain.how(), blocks)
    assert [found.operation for found in plain.latencies()] == ["response"]


def test_nobody_costs_no_memory() -> None:
    peer = nobody()
    assert peer.name == HARNESS
    blocks = np.zeros(2 * kinds.FEW, np.int64)
    every = np.arange(len(blocks), dtype=np.int32)
    peer.loops.replace(peer.how(), blocks, every, np.full(len(blocks), 64, np.int32), 0, len(blocks))
    assert len(set(blocks.tolist())) == kinds.FEW
