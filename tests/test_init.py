"""The package's front: every public name is there, lazily, and nothing else."""

from __future__ import annotations

import importlib
import re

import pytest

import realalloc as ra


@pytest.mark.parametrize("name", ra.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert getattr(ra, name) is getattr(ra, name)
    assert name in dir(ra)


def test_public_names_are_sorted_and_unique() -> None:
    flags = [name for name in ra.__all__ if name.startswith("GFP_")]
    others = [name for name in ra.__all__ if not name.startswith("GFP_")]
    assert flags == sorted(set(flags)) and len(set(others)) == len(others)


def test_lazy_names_are_the_classes_of_their_modules() -> None:
    for name, module in ra._LAZY.items():
        assert getattr(ra, name) is getattr(importlib.import_module(module), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'realalloc' has no attribute 'malloc'"):
        _ = ra.malloc  # type: ignore[attr-defined]


def test_the_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", ra.__version__)


def test_every_public_thing_says_what_it_is() -> None:
    for name in ra.__all__:
        thing = getattr(ra, name)
        if not isinstance(thing, int):
            assert thing.__doc__ and thing.__doc__.strip(), name
