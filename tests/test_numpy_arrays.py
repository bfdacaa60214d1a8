"""All kinds of arrays in an arena: objects, records, strings, nothing at all; resized in each way that NumPy has."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from support import JIT, MIB

import realalloc as ra

pytestmark = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")


class Thing:
    """Something that can be watched as it dies."""


def test_arrays_of_objects(arena: ra.Arena) -> None:
    thing = Thing()
    gone = weakref.ref(thing)
    with arena.numpy() as handler:
        a = np.array([thing, "text", None, 1 << 80], object)
        b = np.zeros(1000, object)
        b[:] = [thing] * 1000
        c = np.concatenate([a, b])
    del thing
    c.resize(2000, refcheck=False)
    assert c[1500] == 0  # NumPy fills with zeros
    assert c[1003] is gone()
    del a, b
    assert gone() is not None
    del c
    assert gone() is None
    assert handler.stats().live == 0


def test_records_strings_and_dates(arena: ra.Arena) -> None:
    kind = np.dtype([("key", "U8"), ("value", "f8", (3,)), ("any", object)], align=True)
    with arena.numpy():
        records = np.zeros(500, kind)
        records["key"], records["value"], records["any"] = "name", 2.5, [("x",)] * 500
        ordered = np.sort(records["key"])
        views = records[["key", "value"]][::7]
        dates = np.arange("2020-01", "2030-01", dtype="M8[D]")
        texts = np.array(["short", "x" * 1000] * 100, np.dtypes.StringDType())  # its long texts are elsewhere
        joined = texts + "!"
    for array in (records, ordered, views, dates, texts, joined):
        assert arena.owns(array)
    assert records[499]["any"] == ("x",)
    assert records[499]["key"] == "name"
    assert joined[199] == "x" * 1000 + "!"
    assert pickle.loads(pickle.dumps(records))["any"][3] == ("x",)
    del records, ordered, views, dates, texts, joined


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_arrays_of_nothing_and_of_one(arena: ra.Arena, shape: tuple[int, ...]) -> None:
    with arena.numpy() as handler:
        for kind in (float, object, "U4", "V0", [("a", "i4"), ("b", "f8")]):
            a = np.zeros(shape, kind)
            assert arena.owns(a)
            assert a.shape == shape
            assert arena.owns(np.array(a)) and arena.owns(copy.deepcopy(a))
    if a.ndim == 1:
        a.resize(100, refcheck=False)
        a.resize(0, refcheck=False)
        assert arena.owns(a)
    del a
    assert handler.stats().live == 0


def test_resize_that_is_refused_changes_nothing(arena: ra.Arena) -> None:
    a = arena.array(np.arange(1000))
    view = a[10:]
    with pytest.raises(ValueError, match="referenc"):
        a.resize(100_000)
    with pytest.raises(ValueError, match="own its data"):
        view.resize(5)
    assert a.size == 1000
    del view
    a.resize(100_000)  # nobody else has it now
    assert arena.owns(a)
    assert (a[:1000] == range(1000)).all() and not a[1000:].any()
    del a


def test_functions_that_make_longer_or_shorter_arrays(arena: ra.Arena) -> None:
    with arena.numpy():
        a = np.arange(100_000)
        made: dict[str, Any] = {
            "append": np.append(a, a),
            "insert": np.insert(a, 3, 7),
            "delete": np.delete(a, slice(None, None, 2)),
            "resize": np.resize(a, 300_000),
            "pad": np.pad(a, 10),
            "repeat": np.repeat(a, 3),
            "unique": np.unique(a % 1000),
            "fromiter": np.fromiter((k * k for k in range(50_000)), np.int64),  # grows as it goes
            "fromstring": np.fromstring(" ".join(map(str, range(5000))), int, sep=" "),
        }
    expected = {
        "append": np.concatenate([range(100_000)] * 2),
        "delete": np.arange(1, 100_000, 2),
        "fromiter": np.arange(50_000) ** 2,
        "fromstring": np.arange(5000),
        "unique": np.arange(1000),
    }
    for name, array in made.items():
        base = array if array.base is None else array.base
        assert arena.owns(base), name
        if name in expected:
            assert (array == expected[name]).all(), name
    arena.validate()
    del a, made, array, base


def test_an_array_that_grows_and_shrinks_at_random(arena: ra.Arena) -> None:
    rng = np.random.default_rng(7)
    expected = np.zeros(0, np.uint8)
    a = arena.empty(0, np.uint8)
    for k in range(60):
        size = int(rng.choice([10, 1000, 20_000, 500_000, 3 * MIB])) + int(rng.integers(100))
        a.resize(size, refcheck=False)
        expected.resize(size, refcheck=False)
        assert (a == expected).all()
        at = int(rng.integers(size))
        a[at:] = expected[at:] = k
    arena.validate()
    del a
