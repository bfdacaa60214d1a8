"""The disk cache of machine code: named by what it was made from, in a place that can be written, and not for ever."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numba
import pytest
from support import run_child

import realalloc
from realalloc.mm import jit, jitcache
from realalloc.mm.jit import JIT, warm_up
from realalloc.mm.jitcache import fingerprint
from realalloc.mm.layout import ENOMEM

jitted = pytest.mark.skipif(not JIT, reason="without machine code there is no cache")

CHILD = """
import numpy as np, os, sys
from realalloc.mm import jit
from realalloc.mm.commit import set_limit
import realalloc
assert realalloc.__file__.startswith(os.getcwd()), realalloc.__file__
words = np.zeros(4096, np.int64)[:NWORDS]  # the lock, a pointer, is in memory even where the words end before it
try:
    print(set_limit(words, -1), jit.Entry.compiled)
except IndexError:
    print("IndexError")
"""


@jitted
def test_cache_key_names_every_source_and_flag(tmp_path: Path, monkeypatch) -> None:
    source = Path(realalloc.__file__).parent
    shutil.copytree(source, tmp_path / "realalloc", ignore=shutil.ignore_patterns("__pycache__"))
    layout = tmp_path / "realalloc" / "mm" / "layout.py"
    monkeypatch.chdir(tmp_path)
    env = {"REALALLOC_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def answer(boundscheck: int, nwords: int = 4096) -> list[str]:
        code = CHILD.replace("NWORDS", str(nwords))
        done = run_child(code, env=env | {"NUMBA_BOUNDSCHECK": str(boundscheck)})
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = answer(0)
    assert first[0] == str(ENOMEM)
    assert int(first[1]) > 0
    text = layout.read_text()
    edited = text.replace(f"ENOMEM: Final = {ENOMEM} ", "ENOMEM: Final = -77 ")
    assert edited != text
    layout.write_text(edited)  # a constant that the kernel imports from another file
    assert answer(0)[0] == "-77"
    layout.write_text(text)
    checked = answer(1, 20)  # the words end inside the header that it reads
    assert checked == ["IndexError"]
    assert answer(0)[0] == str(ENOMEM)


@jitted
def test_the_fingerprint_changes_with_flags_and_is_stable_otherwise(monkeypatch) -> None:
    before = fingerprint()
    assert fingerprint() == before
    assert re.fullmatch("[0-9a-f]{24}", before)
    for name, value in (("BOUNDSCHECK", not numba.config.BOUNDSCHECK), ("OPT", 1), ("CPU_NAME", "generic")):
        with monkeypatch.context() as patch:
            patch.setattr(numba.config, name, value)
            assert fingerprint() != before
    assert fingerprint() == before


@jitted
def test_machine_code_lies_below_a_directory_named_by_the_fingerprint() -> None:
    assert jitcache.CACHE_DIR.name == fingerprint()
    warm_up()
    assert len(list(jitcache.CACHE_DIR.rglob("*.nbi"))) >= len(jit._ENTRIES) > 0


@jitted
def test_old_caches_are_pruned_and_the_newest_kept(tmp_path: Path, monkeypatch) -> None:
    made = [tmp_path / f"{k:024x}" for k in range(jitcache.KEPT_CACHES + 3)]
    for k, path in enumerate(made):
        (path / "sub").mkdir(parents=True)
        (path / "sub" / "file.nbi").write_text("x")
        os.utime(path, (1000 + k, 1000 + k))
    other = tmp_path / "not a cache"
    other.mkdir()
    monkeypatch.setattr(jitcache, "CACHE_DIR", made[-1])
    jitcache.prune_caches()
    assert sorted(tmp_path.iterdir()) == sorted([*made[3:], other])


@jitted
@pytest.mark.parametrize("unwritable", [False, True])
def test_the_cache_is_where_the_user_says_or_where_it_can_be(tmp_path: Path, unwritable: bool) -> None:
    named = tmp_path / "named"
    if unwritable:
        named.write_text("a file, not a directory")
    code = "from realalloc.mm import jitcache; print(jitcache.CACHE_DIR.parent)"
    done = run_child(code, env={"REALALLOC_CACHE_DIR": str(named)})
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() == str(named)) is not unwritable


def test_the_fallback_of_an_unset_cache_directory_is_the_users(tmp_path: Path) -> None:
    if not JIT:
        assert jitcache.CACHE_DIR == Path(os.devnull)
        return
    code = "from realalloc.mm import jitcache; print(jitcache.CACHE_DIR.parent)"
    done = run_child(code, env={"REALALLOC_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")})
    assert done.stdout.strip() == str(tmp_path / "xdg" / "realalloc")
