"""The options of ``realalloc run`` for its arena: each variable has a flag, and the arena is what they say."""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import pytest
from commands import child
from support import JIT

from realalloc import arena as arena_file
from realalloc.cli import arena_options
from realalloc.cli.arena_options import OPTIONS, SIZE, add_options, set_variables
from realalloc.cli.problems import BadInput
from realalloc.mm.layout import HUGE_NEVER, MAX_MAX_ORDER, PAGE_BYTES

ROOT = str(Path(__file__).parents[2])


def given(*arguments: str, **environ: str) -> dict[str, str]:
    """Return the variables that a program would find."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser)
    set_variables(parser.parse_args(arguments), environ)
    return environ


def test_the_numbers_are_those_of_the_arena() -> None:
    assert (arena_options.SMALLEST, arena_options.LARGEST) == (arena_file.MIN_BYTES, arena_file.MAX_BYTES)
    assert (arena_options.PAGE, arena_options.MAX_ORDER) == (PAGE_BYTES, MAX_MAX_ORDER)
    assert arena_options.CLASSES == tuple(arena_file.CLASSES)


def test_each_variable_of_the_default_arena_has_a_flag() -> None:
    source = inspect.getsource(arena_file.default_arena)
    assert sorted(set(re.findall(r'"(REALALLOC_[A-Z_]+)"', source))) == sorted(option.variable for option in OPTIONS)


def test_values_become_variables() -> None:
    assert given(
        "--size", "1MiB", "--limit", "64k", "--decay", "NONE", "--min-free", "Auto", "--huge-pages", "True"
    ) == {
        "REALALLOC_SIZE": "1048576",
        "REALALLOC_LIMIT": "65536",
        "REALALLOC_DECAY": "none",
        "REALALLOC_MIN_FREE": "auto",
        "REALALLOC_HUGE_PAGES": "true",
    }
    assert given("--decay", "0.5", "--max-order", "4", "--classes", "fine", "--lock", "8k", REALALLOC_SIZE="2 MiB") == {
        "REALALLOC_SIZE": "2 MiB",  # as it was
        "REALALLOC_DECAY": "0.5",
        "REALALLOC_MAX_ORDER": "4",
        "REALALLOC_CLASSES": "fine",
        "REALALLOC_LOCK": "8192",
    }
    assert given("--decay", "1", REALALLOC_DECAY="2", REALALLOC_SIZE="1MiB")["REALALLOC_DECAY"] == "1"


def test_without_a_size_it_is_the_machines_memory() -> None:
    (variable, value), *rest = given().items()
    assert (variable, rest) == (SIZE.variable, [])
    assert 1 << 20 < int(value) < 1 << 60


WRONG = {
    "--size": ["255k", "5TiB", "much", ""],
    "--limit": ["4095", "-1", "1 XB"],
    "--decay": ["-1", "nan", "inf", "never", "31536001"],
    "--min-free": ["-1", "some", "1.5 B"],
    "--huge-pages": ["yes", "2", ""],
    "--max-order": ["-1", "19", "1.0", ""],
    "--classes": ["coarse", ""],
    "--lock": ["-1", "all"],
}


@pytest.mark.parametrize("option", OPTIONS, ids=[option.flag for option in OPTIONS])
def test_what_means_nothing_is_refused_by_flag_and_by_variable(option: arena_options.Option) -> None:
    for text in WRONG[option.flag]:
        with pytest.raises(argparse.ArgumentError, match=option.flag):
            given(f"{option.flag}={text}")
        with pytest.raises(BadInput, match=option.variable):
            given(**{option.variable: text})
        assert given(f"{option.flag}={GOOD[option.flag]}", **{option.variable: text})  # the option wins


GOOD = {"--size": "1MiB", "--limit": "4096", "--decay": "0", "--min-free": "0", "--huge-pages": "auto"}
GOOD |= {"--max-order": "0", "--classes": "kernel", "--lock": "0"}


@pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")
def test_the_arena_is_what_the_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    (tmp_path / "prog.py").write_text(
        """
import numpy as np
import realalloc as ra
from realalloc.mm import layout as at
arena = ra.default_arena()
stats, words = arena.stats(), arena.words
print(arena.owns(np.ones(3)), stats.size, stats.limit, stats.min_free)
print(words[at.DECAY + at.Y_NS], words[at.H_MAX_ORDER], words[at.H_HUGE])
print(arena.ksize(arena.kmalloc(1100)), arena.ksize(arena.kmalloc(4096, gfp=ra.GFP_DMA)))
"""
    )
    options = ["--size", "32MiB", "--limit", "16MiB", "--decay", "3", "--min-free", "1MiB"]
    options += ["--max-order", "6", "--classes", "fine", "--huge-pages", "false", "--lock", "64KiB"]
    code, out, err = child("run", *options, "prog.py")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"True {32 << 20} {16 << 20} {1 << 20}", f"{3 * 10**9} 6 {HUGE_NEVER}", "1280 4096"]
