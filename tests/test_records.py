"""Records: plain values that cannot be changed, with a dict of exactly their fields."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pytest

import realalloc as ra
from realalloc import records
from realalloc.records import CacheStats, PoolStats, Record, Residency, Stats

EVERY = [Stats, Residency, CacheStats, PoolStats]


@pytest.mark.parametrize("kind", EVERY)
def test_a_record_cannot_be_changed_and_is_its_dict(kind: type) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    made = kind(*range(len(names)))
    assert made.as_dict() == dict(zip(names, range(len(names)), strict=True))
    assert made == kind(**made.as_dict()) and hash(made) == hash(kind(**made.as_dict()))
    assert made != kind(*range(1, len(names) + 1))
    for name in (names[0], "another"):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            setattr(made, name, 1)
    with pytest.raises(TypeError):
        kind()


def test_there_is_no_record_that_these_tests_do_not_know() -> None:
    found = [thing for thing in vars(records).values() if isinstance(thing, type) and issubclass(thing, Record)]
    assert set(found) == {Record, *EVERY}


@dataclass(frozen=True, slots=True)
class Nested(Record):
    name: str
    below: tuple[Nested, ...] = ()


def test_records_in_records_are_dicts_too() -> None:
    made = Nested("a", (Nested("b"), Nested("c", (Nested("d"),))))
    assert made.as_dict()["below"][1]["below"] == ({"name": "d", "below": ()},)
    assert json.loads(json.dumps(made.as_dict()))["below"][0]["name"] == "b"


def test_what_an_arena_tells_is_made_of_plain_values() -> None:
    with ra.Arena("16MiB") as arena:
        cache, pool = arena.kmem_cache("c", 100), arena.mempool(2, size=100)
        for made in (arena.stats(), cache.stats(), pool.stats(), arena.residency()):
            assert type(made) in EVERY
            assert {type(value) for value in made.as_dict().values()} <= {int, float, str}
            assert json.loads(json.dumps(made.as_dict())) == made.as_dict()
        pool.destroy()
        cache.destroy()
