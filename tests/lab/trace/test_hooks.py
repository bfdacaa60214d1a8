"""The hooks as object files: made once, complete, and calling nothing but the C library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import JIT

from realalloc.lab.trace import hooks, raw
from realalloc.mm import jitcache


@pytest.mark.skipif(JIT, reason="there is machine code")
def test_without_machine_code() -> None:
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT"):
        hooks.objects()


@pytest.mark.skipif(not JIT, reason="no machine code")
def test_objects_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "CACHE_DIR", tmp_path / "cache")
    path = hooks.objects()
    made = path.read_bytes()
    first, _, rest = made.partition(b"\n")
    index = json.loads(first)
    assert [
        name in symbol
        for name, (symbol, _) in zip(("malloc", "calloc", "realloc", "free", "forked"), index, strict=True)
    ]
    assert sum(length for _, length in index) == len(rest)
    assert rest.startswith(b"\x7fELF")
    changed = path.stat().st_mtime_ns
    assert hooks.objects() == path
    assert path.stat().st_mtime_ns == changed
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not JIT, reason="no machine code")
def test_objects_ask_for_nothing_of_numba_or_python() -> None:
    """A symbol that the recorded program does not have would end it when the hooks are loaded."""
    text = hooks.objects().read_bytes()
    assert b"numba_gil" not in text and b"PyErr" not in text and b"PyExc" not in text
    assert jitcache.CACHE_DIR in hooks.objects().parents


def test_words_of_the_control_block_do_not_overlap() -> None:
    names = [name for name in vars(raw) if name.startswith("C_")]
    words = sorted(getattr(raw, name) for name in names)
    assert len(set(words)) == len(words)
    assert words[-1] == raw.C_THREADS
    assert raw.C_THREADS * 8 % 64 == 0
    fields = (raw.SIZE_SHIFT - raw.THREAD_SHIFT, raw.THREAD_SHIFT - raw.DOMAIN_SHIFT)
    assert fields == (raw.THREADS.bit_length() - 1, 4)
