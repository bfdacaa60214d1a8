"""Dataclasses from JSON: what fits comes out, what does not is named by its path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from realalloc.lab.records import decode


@dataclass
class Inner:
    name: str
    pairs: tuple[tuple[float, int], ...] = ()


@dataclass
class Outer:
    flag: bool
    inner: list[Inner]
    maybe: int | None = None
    by_name: dict[str, float] = field(default_factory=dict)
    free: Any = None


def test_what_fits() -> None:
    data = {
        "flag": True,
        "inner": [{"name": "a", "pairs": [[1, 2], [2.5, 3]]}, {"name": "b"}],
        "maybe": None,
        "by_name": {"x": 1},
        "free": [1, "2"],
    }
    made = decode(Outer, data, "")
    assert made == Outer(True, [Inner("a", ((1.0, 2), (2.5, 3))), Inner("b")], None, {"x": 1.0}, [1, "2"])
    assert type(made.by_name["x"]) is float and type(made.inner[0].pairs[0]) is tuple


def test_null_is_nan_where_a_number_is_wanted() -> None:
    assert math.isnan(decode(float, None, "here"))
    assert decode(float | None, None, "here") is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the whole must be an object, not list"),
        ({"inner": []}, "flag is missing"),
        ({"flag": 1, "inner": []}, "flag must be true or false, not int"),
        ({"flag": True, "inner": {}}, "inner must be a list, not dict"),
        ({"flag": True, "inner": [{"name": "a"}, {"name": None}]}, r"inner\[1\].name must be text, not null"),
        ({"flag": True, "inner": [{}]}, r"inner\[0\].name is missing"),
        ({"flag": True, "inner": [], "more": 1}, "more is nothing that is known here"),
        ({"flag": True, "inner": [], "maybe": True}, "maybe must be a whole number, not bool"),
        ({"flag": True, "inner": [], "maybe": 1.0}, "maybe must be a whole number, not float"),
        ({"flag": True, "inner": [], "by_name": {"k": "v"}}, r"by_name\['k'\] must be a number, not str"),
        ({"flag": True, "inner": [], "by_name": {"k": 10**400}}, r"by_name\['k'\] is too large a number"),
        ({"flag": True, "inner": [{"name": "a", "pairs": [[1]]}]}, r"pairs\[0\] must be a list of 2"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode(Outer, data, "")
