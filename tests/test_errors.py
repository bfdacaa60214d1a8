"""The errors: what they derive from, and a text for every broken invariant."""

from __future__ import annotations

import pickle

import pytest

import realalloc as ra
from realalloc import errors
from realalloc.mm import layout


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (ra.OutOfMemory, MemoryError),
        (ra.InvalidFree, ValueError),
        (ra.ArenaClosed, ValueError),
        (ra.CorruptionError, RuntimeError),
    ],
)
def test_every_error_is_a_builtin_kind_and_survives_pickling(error: type[Exception], base: type[Exception]) -> None:
    assert error.__bases__ == (base,)
    back = pickle.loads(pickle.dumps(error("text")))
    assert type(back) is error and str(back) == "text"


def test_every_walkers_code_has_a_text_that_names_its_room() -> None:
    codes = {value: name for name, value in vars(layout).items() if name.startswith("BAD_")}
    assert set(codes) == set(errors.BROKEN_INVARIANTS)
    for code in codes:
        assert errors.describe_broken(code).partition(":")[0] in (
            "buddy",
            "slab",
            "sheaf",
            "vmalloc",
            "mempool",
            "budget",
            "watermarks",
            "arena",
        )


def test_an_unknown_code_is_described_by_its_number() -> None:
    assert errors.describe_broken(-7) == "unknown invariant -7"
