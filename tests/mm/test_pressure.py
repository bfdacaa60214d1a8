"""Totals, averages and triggers against a plain model; a clock of our own where the kernels take one."""

from __future__ import annotations

import os
import time

import pytest
from support import RawArena

from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import (
    ENOMEM,
    PRESSURE,
    PSI_AVERAGES,
    PSI_FULL_NS,
    PSI_RECLAIMS,
    PSI_SOME_NS,
    PSI_UPDATED_NS,
    TRIGGERS,
)
from realalloc.mm.pressure import (
    AVERAGE_SHIFT,
    PERIOD_NS,
    account_stall,
    account_stall_locked,
    add_trigger,
    remove_trigger,
    update_pressure,
)

S = 1_000_000_000
START = 1000 * S


@pytest.fixture
def fd():
    made = os.eventfd(0, os.EFD_NONBLOCK)
    yield made
    os.close(made)


def averages(raw: RawArena, full: int) -> list[float]:
    at = PRESSURE + PSI_AVERAGES + 3 * full
    return [int(raw.words[at + k]) / (1 << AVERAGE_SHIFT) for k in range(3)]


def begin(raw: RawArena) -> None:
    raw.words[PRESSURE + PSI_UPDATED_NS] = START


def fired(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_averages_tend_to_the_share_of_time_that_is_stalled(raw: RawArena, share: float) -> None:
    begin(raw)
    model = [0.0, 0.0, 0.0]
    for period in range(1, 400):
        account_stall_locked(raw.words, int(share * PERIOD_NS), 1)
        assert update_pressure(raw.words, START + period * PERIOD_NS) == 1
        for k, window in enumerate((10, 60, 300)):
            kept = 2.718281828 ** (-2 / window)
            model[k] = model[k] * kept + share * (1 - kept)
        for full in (0, 1):
            assert averages(raw, full) == pytest.approx(model, abs=0.02)
    assert averages(raw, 1)[:2] == pytest.approx([share] * 2, abs=0.01)
    before = averages(raw, 1)
    update_pressure(raw.words, START + 420 * PERIOD_NS)  # quiet for twenty periods
    assert all(a <= b for a, b in zip(averages(raw, 1), before, strict=True))
    assert averages(raw, 1)[0] <= 0.03 * share + 1e-3


def test_within_a_period_nothing_is_brought_up_to_date(raw: RawArena) -> None:
    begin(raw)
    account_stall(raw.words, S)
    assert update_pressure(raw.words, START + PERIOD_NS - 1) == 0
    assert averages(raw, 0) == [0, 0, 0]
    assert update_pressure(raw.words, START + PERIOD_NS) == 1
    assert update_pressure(raw.words, START + PERIOD_NS) == 0
    assert averages(raw, 0)[0] == pytest.approx(0.5 * (1 - 1677 / 2048), rel=0.01)
    assert averages(raw, 1) == [0, 0, 0]  # one thread alone was held up


def test_a_clock_that_was_not_looked_at_for_years(raw: RawArena) -> None:
    begin(raw)
    account_stall(raw.words, 5 * S)
    assert update_pressure(raw.words, START + (1 << 61)) > 1 << 20
    assert all(value < 1e-3 for value in averages(raw, 0))


def test_reclaiming_is_a_stall_of_all(raw: RawArena) -> None:
    held = []
    while (offset := int(kmalloc(raw.words, 1000, 0))) > 0:
        held.append(offset)
    total, times = int(raw.words[PRESSURE + PSI_FULL_NS]), int(raw.words[PRESSURE + PSI_RECLAIMS])
    assert times > 0
    assert total > 0
    assert raw.words[PRESSURE + PSI_SOME_NS] == 0
    assert kmalloc(raw.words, 1000, 0) == ENOMEM or kmalloc(raw.words, 1000, 0) == 0
    assert raw.words[PRESSURE + PSI_FULL_NS] > total
    for offset in held:
        kfree(raw.words, offset)


def test_a_trigger_fires_once_a_window(raw: RawArena, fd: int) -> None:
    assert add_trigger(raw.words, fd, 0, 30_000_000, 500_000_000) == 0
    for _ in range(2):
        account_stall(raw.words, 10_000_000)
        account_stall(raw.words, 10_000_000)
        assert not fired(fd)
        account_stall(raw.words, 10_000_000)
        assert fired(fd)
        account_stall(raw.words, 40_000_000)
        assert not fired(fd)
        time.sleep(0.55)
    account_stall(raw.words, 29_000_000)  # of a new window
    assert not fired(fd)
    assert remove_trigger(raw.words, 0, fd) == 1
    account_stall(raw.words, S)
    assert not fired(fd)
    assert remove_trigger(raw.words, 0, fd) == 0


def test_full_is_not_some(raw: RawArena, fd: int) -> None:
    add_trigger(raw.words, fd, 1, 1_000_000, S)
    account_stall(raw.words, S)
    assert not fired(fd)
    account_stall_locked(raw.words, 2_000_000, 1)
    assert fired(fd)
    remove_trigger(raw.words, 0, fd)


def test_there_are_so_many_triggers_and_no_more(raw: RawArena, fd: int) -> None:
    numbers = [int(add_trigger(raw.words, fd, 0, S, S)) for _ in range(TRIGGERS)]
    assert numbers == list(range(TRIGGERS))
    assert add_trigger(raw.words, fd, 0, S, S) == ENOMEM
    assert remove_trigger(raw.words, 5, fd + 1) == 0
    assert remove_trigger(raw.words, 5, fd) == 1
    assert add_trigger(raw.words, fd, 0, S, S) == 5
    for k in numbers:
        assert remove_trigger(raw.words, k, fd) == 1
