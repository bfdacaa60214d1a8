"""When pages go back: the curve, epochs that pass one by one or many at once, pages that come and go; a clock of our own."""

from __future__ import annotations

import pytest
from kernels import assert_pristine, free_blocks, is_committed, octets
from support import PAGE, RawArena

from realalloc.mm.backlog import INLINE_PAGES, SHARE_SHIFT, SHARES, surplus
from realalloc.mm.buddy import alloc_block_locked, free_block_locked
from realalloc.mm.commit import MIN_RUN_ORDER, MIN_RUN_PAGES, purge_locked
from realalloc.mm.decay import set_decay
from realalloc.mm.layout import (
    DECAY,
    DECAY_EPOCHS,
    H_COMMITTED_PAGES,
    KIND_PAGES,
    Y_BACKLOG,
    Y_EPOCH_NS,
    Y_EPOCHS,
    Y_PURGED,
    Y_SERVED,
    ZONE_NORMAL,
)

MIB = 1 << 20
STEP = 1_000_000


def make(pages: int = 0, decay_ns: int = STEP * DECAY_EPOCHS) -> RawArena:
    """Make an arena in which ``pages`` pages, a multiple of 64, are free and dirty."""
    raw = RawArena(16 * MIB, 6, sheaves=False)
    set_decay(raw.words, decay_ns)
    raw.words[DECAY + Y_SERVED] = 1  # nothing happens but what a test does
    dirty(raw, pages)
    return raw


def dirty(raw: RawArena, pages: int) -> None:
    taken = [int(alloc_block_locked(raw.words, ZONE_NORMAL, 6, KIND_PAGES, 0)) for _ in range(pages // 64)]
    for pfn in taken:
        octets(raw, pfn * PAGE, 64 * PAGE)[:] = 1
    for pfn in taken:
        free_block_locked(raw.words, pfn)


def burst(raw: RawArena) -> int:
    """Return the dirty pages in free blocks that are large enough."""
    large = [(pfn, 1 << order) for order, pfn in free_blocks(raw) if order >= MIN_RUN_ORDER]
    return sum(is_committed(raw, pfn + k) for pfn, pages in large for k in range(pages))


def later(raw: RawArena, epochs: float) -> int:
    """Return the time so many epochs after the present one began."""
    return int(raw.words[DECAY + Y_EPOCH_NS]) + int(epochs * STEP)


def test_the_shares_fall_smoothly_from_all_to_nothing() -> None:
    assert SHARES[0] > 0.98 * (1 << SHARE_SHIFT)
    assert SHARES[-1] == 0
    assert list(SHARES) == sorted(SHARES, reverse=True)
    steps = [a - b for a, b in zip(SHARES, SHARES[1:], strict=False)]
    middle = len(steps) // 2
    assert max(steps) in steps[middle - 2 : middle + 2]  # slow, fast, slow
    assert all(SHARES[k] + SHARES[DECAY_EPOCHS - 2 - k] == pytest.approx(1 << SHARE_SHIFT, abs=1) for k in range(8))


def test_nothing_is_surplus_before_an_epoch_has_ended() -> None:
    raw = make(640)
    assert surplus(raw.words, later(raw, 0)) == 0
    assert surplus(raw.words, later(raw, 0.9)) == 0
    assert raw.words[DECAY + Y_EPOCHS] == 0
    assert surplus(raw.words, later(raw, -5)) == 0  # a clock that another thread read earlier


def test_a_burst_follows_the_curve() -> None:
    raw = make(640)
    pages = burst(raw)
    assert pages >= 640 - 15
    for age in range(DECAY_EPOCHS):
        more = pages - (pages * SHARES[age] >> SHARE_SHIFT)
        assert surplus(raw.words, later(raw, 1)) == (more if more >= MIN_RUN_PAGES else 0)
        assert raw.words[DECAY + Y_EPOCHS] == age + 1
    assert surplus(raw.words, later(raw, 1)) == pages


@pytest.mark.parametrize("jump", [2, 3, 7, 16, 17, 1000, 1 << 40])
def test_many_epochs_at_once_are_as_one_by_one(jump: int) -> None:
    one, many = make(320), make(320)
    for raw in (one, many):
        surplus(raw.words, later(raw, 1))
        dirty(raw, 640)
    for _ in range(min(jump, 40)):
        last = surplus(one.words, later(one, 1))
    # what came in the jump is counted at its end, as new; one by one it came in the first epoch of it
    assert surplus(many.words, later(many, jump)) <= last
    for _ in range(DECAY_EPOCHS):
        last = surplus(many.words, later(many, 1))
    assert last == burst(many)
    assert many.words[DECAY + Y_EPOCHS] == jump + 1 + DECAY_EPOCHS


def test_pages_that_are_taken_again_are_not_surplus() -> None:
    raw = make(640)
    for _ in range(DECAY_EPOCHS // 2):
        surplus(raw.words, later(raw, 1))
    taken = [int(alloc_block_locked(raw.words, ZONE_NORMAL, 6, KIND_PAGES, 0)) for _ in range(10)]
    assert surplus(raw.words, later(raw, 1)) == 0
    for pfn in taken:
        free_block_locked(raw.words, pfn)
    assert surplus(raw.words, later(raw, 1)) < 640  # they are as young as can be, the old burst still counts
    for _ in range(DECAY_EPOCHS):
        left = surplus(raw.words, later(raw, 1))
    assert left == burst(raw)


def test_a_steady_stream_keeps_a_part() -> None:
    raw = make()
    kept = []
    for _ in range(3 * DECAY_EPOCHS):
        dirty(raw, 64)  # the same pages each time, unless they went back
        wanted = surplus(raw.words, later(raw, 1))
        purge_locked(raw.words, wanted, 4, 0)
        kept.append(int(raw.words[H_COMMITTED_PAGES]))
    assert set(kept[1:]) == {kept[1]}  # used in each epoch: they never age


def test_setting_a_decay_time_begins_anew() -> None:
    raw = make(640)
    for _ in range(DECAY_EPOCHS - 2):
        surplus(raw.words, later(raw, 1))
    set_decay(raw.words, STEP * DECAY_EPOCHS)
    assert [int(raw.words[DECAY + Y_BACKLOG + age]) for age in range(DECAY_EPOCHS)] == [0] * DECAY_EPOCHS
    assert surplus(raw.words, later(raw, 1)) == 0
    assert raw.words[DECAY + Y_BACKLOG] == burst(raw)


def test_who_frees_gives_back_where_kswapd_does_not() -> None:
    raw = make(2048, decay_ns=1)  # over as soon as the clock moves
    assert raw.words[DECAY + Y_PURGED] == 0
    raw.words[DECAY + Y_SERVED] = 0
    for _ in range(DECAY_EPOCHS * 2048 // INLINE_PAGES):
        dirty(raw, 64)
    assert raw.words[DECAY + Y_PURGED] >= 2048 - 128
    assert raw.words[H_COMMITTED_PAGES] <= 128
    raw.validate()
    assert_pristine(raw)
