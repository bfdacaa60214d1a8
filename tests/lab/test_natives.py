"""Native allocators that are there, and a line that says what to install for each that is not."""

from __future__ import annotations

import ctypes
import importlib.metadata

import numba
import pytest
from checks import quiet_child

from realalloc.lab import natives
from realalloc.lab.natives import MIMALLOCS, SOURCES, Source, call_alloc, call_free, call_realloc, find_natives


def test_everybody_is_found_or_missed_with_a_reason() -> None:
    found, missing = find_natives()
    names = [native.name for native in found]
    assert "glibc" in names
    assert sorted([*names, *(line.partition(":")[0] for line in missing)]) == sorted(source.name for source in SOURCES)
    packages = {source.name: source.package for source in SOURCES}
    for line in missing:
        name, _, reason = line.partition(": ")
        assert packages[name] and reason.endswith(f"({packages[name]})")
    for native in found:
        addresses = {native.alloc, native.free, native.realloc}
        assert 0 not in addresses and len(addresses) == 3


def test_names() -> None:
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names) and set(MIMALLOCS) <= set(names)
    assert [native.name for native in find_natives("glibc")[0]] == ["glibc"]
    assert find_natives("nobody of that name") == ([], [])


def _missing(monkeypatch: pytest.MonkeyPatch, *source: str) -> str:
    monkeypatch.setattr(natives, "SOURCES", [Source(*source)])
    found, missing = find_natives()
    assert found == [] and len(missing) == 1
    return missing[0]


def test_a_library_that_is_not_there_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _missing(monkeypatch, "other", "", "libnosuchthing.so.9", "malloc", "free", "realloc", "apt: libother9")
    assert line.startswith("other: libnosuchthing.so.9") and line.endswith("(apt: libother9)")


def test_a_distribution_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _missing(monkeypatch, "other", "no-such-distribution", "lib.so", "malloc", "free", "realloc", "pip: other")
    assert "no-such-distribution" in line and line.endswith("(pip: other)")


def test_a_distribution_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.metadata.distribution("numpy")
    line = _missing(monkeypatch, "other", "numpy", "libnotinthere.so", "malloc", "free", "realloc", "pip: other")
    assert "numpy has no libnotinthere.so" in line


def test_a_library_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _missing(monkeypatch, "other", "", "", "no_such_malloc", "free", "realloc", "pip: other")
    assert "no_such_malloc" in line


@numba.njit
def _jitted(alloc, realloc, free):
    block = call_alloc(alloc, 100)
    block = call_realloc(realloc, block, 100_000)
    call_free(free, block)
    return block


@pytest.mark.parametrize("native", find_natives()[0], ids=lambda native: native.name)
def test_jitted_code_and_its_twins_reach_them(native) -> None:
    assert _jitted(native.alloc, native.realloc, native.free) != 0
    block = call_alloc(native.alloc, 64)
    ctypes.memset(block, 0x5A, 64)
    block = call_realloc(native.realloc, block, 4096)
    assert ctypes.string_at(block, 64) == b"\x5a" * 64
    assert call_free(native.free, block) == 0


def test_a_native_does_not_take_the_process_over() -> None:
    quiet_child(
        "from realalloc.lab.natives import find_natives\n"
        "import ctypes\n"
        "before = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value\n"
        "found, _ = find_natives()\n"
        "after = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value\n"
        "assert len({native.alloc for native in found}) == len(found)\n"
        "print(before == after)",
        expect="True",
        fresh=True,
    )
