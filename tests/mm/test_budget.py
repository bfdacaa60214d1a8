"""Life of a budget, and what its walker finds."""

from __future__ import annotations

import numpy as np
import pytest
from support import RawArena

from realalloc.mm import layout as at
from realalloc.mm.budget import (
    MAX_OVERAGE,
    OVERAGE_SHIFT,
    budget_bound,
    budget_copy,
    budget_create,
    budget_overage,
    budget_refuser,
    budget_throttled,
    validate_budgets,
)
from realalloc.mm.charge import charge

NAME = np.frombuffer(b"same".ljust(at.BUDGET_NAME_BYTES, b"\0"), np.int64)


def create(raw: RawArena, parent: int = 0, limit: int = at.NO_LIMIT, high: int = at.NO_LIMIT) -> int:
    out = raw.out(1 + len(NAME))
    out[1:] = NAME
    return int(budget_create(raw.words, parent, limit, high, out))


def test_siblings_have_different_names() -> None:
    raw = RawArena()
    top = create(raw)
    assert top > 0
    assert create(raw) == at.EEXIST
    assert create(raw, top) > 0
    assert create(raw, top) == at.EEXIST
    raw.words[at.H_CLOSED] = 1
    assert create(raw, top) == at.ENOMEM


def test_who_refuses_is_the_first_without_room() -> None:
    raw = RawArena()
    top = create(raw, 0, 100)
    low = create(raw, top, 50)
    assert budget_refuser(raw.words, low, 50) == 0
    assert budget_refuser(raw.words, low, 51) == low
    charge(raw.words, top, at.CHARGE_BUFFERS, 80)
    assert budget_refuser(raw.words, low, 50) == top
    copy = raw.out(at.BUDGET_WORDS)
    budget_copy(raw.words, top, copy)
    assert (copy[at.B_USED], copy[at.B_LIMIT], copy[at.B_STATE]) == (80, 100, at.BUDGET_OPEN)


@pytest.mark.parametrize(
    ("high", "used", "share"),
    [(1 << 30, 1 << 30, 0), (1 << 30, 3 << 29, 1 << OVERAGE_SHIFT - 1), (1 << 30, 2 << 30, 1 << OVERAGE_SHIFT),
     (0, 1 << 40, MAX_OVERAGE), (1 << 30, (1 << 30) + 1, 1)],
)  # fmt: skip
def test_the_overage_is_a_share_of_the_mark(high: int, used: int, share: int) -> None:
    raw = RawArena()
    top = create(raw, 0, at.NO_LIMIT, high)
    low = create(raw, top)
    charge(raw.words, low, at.CHARGE_BUFFERS, used)
    assert budget_overage(raw.words, low) == budget_overage(raw.words, top) == share
    budget_throttled(raw.words, low)
    assert (raw.words[low + at.B_THROTTLES], raw.words[top + at.B_THROTTLES]) == (0, 1 if share else 0)
    budget_bound(raw.words, top, at.B_HIGH, at.NO_LIMIT)
    assert budget_overage(raw.words, low) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [(at.B_USED, 11), (at.B_PEAK, 9), (at.B_BYTES, 9), (at.B_LIMIT, 9), (at.B_CHILDREN, 0), (at.B_USERS, -1),
     (at.B_COUNTS, 0), (at.B_COUNTS + at.CHARGE_SLABS, 1), (at.B_STATE, at.BUDGET_FREE), (at.B_BYTES + 2, -1)],
)  # fmt: skip
def test_the_walker_finds_what_is_wrong(field: int, value: int) -> None:
    raw = RawArena()
    top = create(raw)
    create(raw, top)
    charge(raw.words, top, at.CHARGE_BUFFERS, 10)
    raw.validate()
    before = int(raw.words[top + field])
    raw.words[top + field] = value
    assert validate_budgets(raw.words) == at.BAD_BUDGET
    raw.words[top + field] = before
    raw.validate()
