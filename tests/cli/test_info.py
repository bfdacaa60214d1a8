"""``realalloc info``."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from commands import child, is_plain, on_terminal, run

from realalloc import facts, reservation
from realalloc.cli import info
from realalloc.mm.jit import JIT
from realalloc.mm.jitcache import CACHE_DIR


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    for word in ("numba", "page size", "RLIMIT_MEMLOCK", "transparent huge pages", "kernel cache", "arena size"):
        assert word in out
    assert platform.python_version() in out
    assert is_plain(out)


def test_json_names_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["page size"] == "4 KiB"
    assert facts["kernel cache"] == (str(CACHE_DIR) if JIT else "none")
    assert "views" not in facts


def test_arena_views_are_those_of_a_fresh_arena(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", "--arena", "16MiB", "--json")
    views = json.loads(out)["views"]
    assert code == 0
    assert set(views) == set(info.VIEWS)
    assert views["buddyinfo"].startswith("Node 0, zone   Normal ")
    assert views["slabinfo"].startswith("slabinfo - version: 2.1\n") and "kmalloc-64 " in views["slabinfo"]
    assert "MemTotal:" in views["meminfo"]
    code, out, _ = run(capsys, "info", "--arena", "16MiB")
    assert code == 0
    assert "buddyinfo of a fresh arena of 16 MiB\nNode 0" in out
    assert is_plain(out)


@pytest.mark.parametrize("size", ["4KiB", "1000TiB", "9" * 30])
def test_a_refused_arena_prints_nothing(capsys: pytest.CaptureFixture[str], size: str) -> None:
    code, out, err = run(capsys, "info", "--arena", size)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_no_address_space_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_args: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(reservation, "Memory", no_memory)
    code, out, err = run(capsys, "info", "--arena", "1MiB")
    assert (code, out) == (2, "")
    assert "cannot reserve" in err and err.count("\n") == 1


def test_unknown_facts_are_no_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, name in ((facts, "THP"), (info, "OVERCOMMIT"), (info, "MAP_COUNT")):
        monkeypatch.setattr(module, name, tmp_path / "nothing")
    told = info.machine_facts()
    assert told["transparent huge pages"] == told["vm.max_map_count"] == facts.UNKNOWN


@pytest.mark.skipif(not JIT, reason="nothing is cached without jit")
def test_a_cold_cache_is_said_and_nothing_is_compiled(tmp_path: Path) -> None:
    code, out, err = child("info", "--json", env={"REALALLOC_CACHE_DIR": str(tmp_path)})
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["cached"].startswith("0 of ") and "warmup" in facts["cached"]
    assert facts["kernel cache"].startswith(str(tmp_path))
    assert not list(tmp_path.rglob("*.nbi"))


def test_without_jit() -> None:
    code, out, err = child("info", "--json", env={"NUMBA_DISABLE_JIT": "1"})
    assert (code, err) == (0, "")
    assert "plain Python" in json.loads(out)["cached"]


def test_on_a_terminal() -> None:
    code, seen = on_terminal("info")
    assert code == 0
    assert "RLIMIT_MEMLOCK" in seen and "Traceback" not in seen
