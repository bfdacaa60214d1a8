"""Charging a tree of budgets, compared with a model that is three lines long: exhaustively when small, at random when not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from support import RawArena

from realalloc.mm import layout as at
from realalloc.mm.budget import budget_bound, budget_close, budget_create, budget_drop, validate_budgets
from realalloc.mm.charge import attach, charge, charge_locked, recharge, uncharge

KIND = at.CHARGE_BUFFERS


class Model:
    """What a tree of budgets is: a parent, a limit and own bytes of each."""

    def __init__(self, parents: list[int], limits: list[int]) -> None:
        self.parents, self.limits = parents, limits
        self.own = [0] * len(parents)
        self.peak = [0] * len(parents)

    def chain(self, k: int) -> Iterator[int]:
        while k >= 0:
            yield k
            k = self.parents[k]

    def used(self, k: int) -> int:
        return sum(self.own[j] for j in range(len(self.own)) if k in self.chain(j))

    def charge(self, k: int, nbytes: int) -> bool:
        if any(self.used(j) + nbytes > self.limits[j] for j in self.chain(k)):
            return False
        self.own[k] += nbytes
        for j in self.chain(k):
            self.peak[j] = max(self.peak[j], self.used(j))
        return True

    def uncharge(self, k: int, nbytes: int) -> None:
        self.own[k] -= nbytes


def make(raw: RawArena, name: str, parent: int = 0, limit: int = at.NO_LIMIT) -> int:
    """Make a budget and return its word index."""
    out = raw.out(1 + at.BUDGET_WORDS - at.B_NAME)
    out[1:] = np.frombuffer(name.encode().ljust(at.BUDGET_NAME_BYTES, b"\0"), np.int64)
    b = int(budget_create(raw.words, parent, limit, at.NO_LIMIT, out))
    assert b == out[0] > 0
    return b


def drop(raw: RawArena, b: int) -> None:
    handle = raw.out(1)
    handle[0] = b
    budget_drop(raw.words, handle)
    assert handle[0] == 0


def tree(raw: RawArena, parents: list[int], limits: list[int]) -> list[int]:
    made: list[int] = []
    for k, (parent, limit) in enumerate(zip(parents, limits, strict=True)):
        made.append(make(raw, f"b{k}", made[parent] if parent >= 0 else 0, limit))
    return made


def agree(raw: RawArena, made: list[int], model: Model) -> None:
    words = raw.words
    assert [int(words[b + at.B_USED]) for b in made] == [model.used(k) for k in range(len(made))]
    assert [int(words[b + at.B_PEAK]) for b in made] == model.peak
    assert [int(words[b + at.B_BYTES + KIND]) for b in made] == model.own
    assert validate_budgets(words) == 0


@pytest.mark.parametrize("parents", [[-1], [-1, 0], [-1, 0, 0], [-1, 0, 1], [-1, -1, 0]])
def test_every_short_sequence_does_what_the_model_does(parents: list[int]) -> None:
    raw = RawArena()
    limits = [4, 3, 2][: len(parents)]
    steps = [(k, n) for k in range(len(parents)) for n in (1, 2)]
    for sequence in itertools.product(steps, repeat=3):
        made, model, held = tree(raw, parents, limits), Model(parents, limits), []
        for k, nbytes in sequence:
            done = model.charge(k, nbytes)
            assert (charge(raw.words, made[k], KIND, nbytes) == 0) == done
            held += [(k, nbytes)] if done else []
        agree(raw, made, model)
        for k, nbytes in reversed(held):
            uncharge(raw.words, made[k], KIND, nbytes)
            model.uncharge(k, nbytes)
        agree(raw, made, model)
        for b in made[::-1]:
            drop(raw, b)
        assert raw.words[at.H_BUDGETS] == 0
    raw.validate()


def test_a_long_random_run_does_what_the_model_does() -> None:
    raw = RawArena()
    draw = random.Random(6)
    parents = [-1, 0, 0, 1, 1, 3, -1, 6, 6]
    limits = [900, 500, 500, 300, 200, 200, 700, 400, 400]
    made, model = tree(raw, parents, limits), Model(parents, limits)
    held: list[tuple[int, int]] = []
    for _ in range(3000):
        if held and draw.random() < 0.48:
            k, nbytes = held.pop(draw.randrange(len(held)))
            uncharge(raw.words, made[k], KIND, nbytes)
            model.uncharge(k, nbytes)
        else:
            k, nbytes = draw.randrange(len(parents)), draw.randrange(1, 60)
            failures = sum(int(raw.words[b + at.B_FAILURES]) for b in made)
            done = model.charge(k, nbytes)
            assert charge(raw.words, made[k], KIND, nbytes) == (0 if done else at.EDQUOT)
            assert sum(int(raw.words[b + at.B_FAILURES]) for b in made) == failures + (not done)
            held += [(k, nbytes)] if done else []
        if draw.random() < 0.1:
            agree(raw, made, model)
    agree(raw, made, model)


def test_what_is_charged_can_change_its_size() -> None:
    raw = RawArena()
    root = make(raw, "root", 0, 100)
    b = make(raw, "b", root)
    assert charge(raw.words, b, at.CHARGE_ARRAYS, 60) == 0
    assert recharge(raw.words, b, at.CHARGE_ARRAYS, 40) == 0
    assert recharge(raw.words, b, at.CHARGE_ARRAYS, 1) == at.EDQUOT
    assert raw.words[root + at.B_USED] == 100 and raw.words[root + at.B_FAILURES] == 1
    assert recharge(raw.words, b, at.CHARGE_ARRAYS, -70) == 0
    assert (raw.words[root + at.B_USED], raw.words[b + at.B_COUNTS + at.CHARGE_ARRAYS]) == (30, 1)
    assert validate_budgets(raw.words) == 0


def test_a_closed_budget_takes_nothing_and_ends_with_its_last_charge() -> None:
    raw = RawArena()
    root = make(raw, "root")
    b = make(raw, "b", root)
    assert charge(raw.words, b, KIND, 10) == 0
    assert budget_close(raw.words, root) == at.EBUSY  # an open child
    assert budget_close(raw.words, b) == 0
    assert charge_locked(raw.words, b, KIND, 1) == at.EDQUOT
    assert attach(raw.words, at.H_TOTAL_WORDS, b) == at.EDQUOT
    drop(raw, b)
    drop(raw, root)
    assert raw.words[root + at.B_USED] == 10 and raw.words[at.H_BUDGETS] == b
    assert validate_budgets(raw.words) == 0
    uncharge(raw.words, b, KIND, 10)  # both end, the parent last
    assert (raw.words[at.H_BUDGETS], raw.words[at.H_FREE_BUDGETS]) == (0, root)
    assert [make(raw, "x"), make(raw, "y")] == [root, b]  # descriptors are used again


def test_a_bound_below_what_is_used_is_refused() -> None:
    raw = RawArena()
    b = make(raw, "b")
    charge(raw.words, b, KIND, 10)
    assert budget_bound(raw.words, b, at.B_LIMIT, 9) == at.EBUSY
    assert budget_bound(raw.words, b, at.B_LIMIT, 10) == 0
    assert budget_bound(raw.words, b, at.B_HIGH, 1) == 0
    assert charge(raw.words, b, KIND, 1) == at.EDQUOT
