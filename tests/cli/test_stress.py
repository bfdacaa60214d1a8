"""``realalloc stress`` as its user sees it: exit codes, verdicts, files, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import child, is_plain, on_terminal, run, start
from stressed import COMPILED, flip, leak, rows

from realalloc.lab.stress.worker import Worker
from realalloc.mm.jit import JIT

FAST = ("--threads", "2", "--arena", "16MiB", "--sizes", "log:8..4KiB", "--hold", "64", "--interval", "0.05")
CALM = (*FAST, "--seconds", "0.6", "--abuse", "trim=5,validate=5")


def test_a_run_passes_and_prints_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "stress", *FAST, "--seconds", "1")
    assert (code, err) == (0, "")
    for name in ("contents", "accounting", "rss bound", "rss back", "no growth", "fairness", "children"):
        assert name in out
    assert "kmalloc" in out and "meanwhile: trim" in out and "seed 1" in out and "FAIL" not in out
    assert out.endswith("\npassed\n") and is_plain(out)


def test_json_and_files_with_an_extra_process(tmp_path: Path) -> None:
    picture, page = tmp_path / "run.png", tmp_path / "run.html"
    files = ("--png", str(picture), "--html", str(page))
    code, out, err = child(
        "stress", *FAST, "--seconds", "2", "--processes", "1", "--seed", "7", "--json", *files, first=COMPILED
    )
    assert code == 0, err
    assert [line.partition(" ")[0] for line in err.splitlines()] == ["wrote", "wrote"]
    verdict = json.loads(out)
    assert (verdict["ok"], verdict["interrupted"], verdict["reproduce"], verdict["lost"]) == (True, False, "", [])
    assert [process["name"] for process in verdict["processes"]] == ["main", "process 1"]
    assert verdict["verified"] == sum(sum(process["freed"].values()) for process in verdict["processes"]) > 0
    assert verdict["options"]["seed"] == 7
    first = verdict["processes"][0]
    assert len(first["series"]["memory"]["seconds"]) == len(first["series"]["memory"]["columns"]["pss"]) > 5
    assert {check["name"] for check in first["checks"]} >= {"contents", "accounting", "no growth"}
    assert picture.read_bytes().startswith(b"\x89PNG") and b"process 1" in page.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["run.html", "run.png"]


def sabotage(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Let the first thread do something once, between two rounds."""
    real, done = Worker._round, []

    def round_(worker: Worker, turns: int) -> None:
        real(worker, turns)
        if worker.births and worker.number == 0 and not done and act(worker):
            done.append(True)

    monkeypatch.setattr(Worker, "_round", round_)


@pytest.mark.parametrize(("act", "name"), [(flip, "contents"), (leak, "accounting")])
def test_damage_is_exit_code_1_and_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, act: Any, name: str
) -> None:
    sabotage(monkeypatch, act)
    code, out, err = run(capsys, "stress", *CALM, "--seed", "5")
    assert code == 1
    assert [line.split(None, 1)[1].partition("  ")[0] for line in out.splitlines() if line.startswith("  FAIL")] == [
        name
    ]
    lines = err.splitlines()
    assert lines[0].startswith(f"realalloc stress: main: {name}: ")
    assert lines[-1].startswith("realalloc stress: seed 5; again: realalloc stress --seconds 0.6 --threads 2 --seed 5 ")
    assert out.endswith("\nFAILED\n")


def test_a_limit_that_is_too_low(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "stress", *CALM, "--rss-limit", "1MiB", "--json")
    verdict = json.loads(out)
    assert code == 1 and not verdict["ok"]
    failed = [check["name"] for check in verdict["processes"][0]["checks"] if not check["held"]]
    assert failed == ["rss bound"] and "--rss-limit 1048576" in verdict["reproduce"]
    assert err.splitlines()[-1].endswith(verdict["reproduce"])


def test_growth_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from realalloc.lab.stress import engine

    real = engine.as_series
    monkeypatch.setattr(engine, "as_series", lambda _rows: real(rows(per_second=4e6)))
    code, out, err = run(capsys, "stress", *CALM)
    assert code == 1 and "main: no growth: RSS +" in err and out.count("FAIL ") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mix", "slab=1"), "--mix: 'slab' is none of"),
        (("--abuse", "fork=much"), "--abuse: fork must be a number"),
        (("--sizes", "fixed:1TiB"), "more than a quarter of an arena"),
        (("--sizes", "log:8..x"), "is not a size"),
        (("--arena", "64TiB", "--sizes", "fixed:8"), "size must be at most"),
        (("--arena", "4KiB", "--sizes", "fixed:8"), "size must be at least"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--processes", "-1"), "--processes must be at least 0"),
        (("--seconds", "0"), "--seconds must be above 0"),
        (("--seconds", "nan"), "invalid number value: 'nan'"),
        (("--hold", "lru:1"), "--hold must be"),
        (("--png", "/no/such/directory/x.png"), "No such file or directory"),
        (("--html", "/"), "Is a directory"),
        (("--frobnicate",), "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_2(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str) -> None:
    code, out, err = run(capsys, "stress", *options)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1 and "error: " in err


def test_a_missing_extra_is_one_line() -> None:
    code = "import sys; sys.modules['plotly'] = None; from realalloc.cli import main; sys.exit(main(sys.argv[1:]))"
    # find_spec of a module that is None in sys.modules raises, as an import of it would
    status, out, err = child("stress", "--html", "x.html", code=code, fresh=True)
    assert (status, out) == (2, "") and "pip install 'realalloc[plot]'" in err and err.count("\n") == 1


def test_help_imports_neither_numba_nor_numpy() -> None:
    look = "print(sorted({'numba', 'numpy'} & set(sys.modules)))"
    code = f"import sys; from realalloc.cli import main; main(['stress', '--help']); {look}"
    status, out, err = child(code=code, fresh=True)
    assert (status, err) == (0, "") and out.endswith("\n[]\n") and "--rss-limit" in out


def test_ctrl_c_still_frees_checks_and_reports() -> None:
    with start("stress", *FAST, "--seconds", "200", "--processes", "1", "--json", first=COMPILED) as process:
        began = time.monotonic()
        while not Path(f"/proc/{process.pid}/task").exists() or len(os.listdir(f"/proc/{process.pid}/task")) < 5:
            assert process.poll() is None and time.monotonic() - began < 200
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    verdict = json.loads(out)
    assert verdict["interrupted"] and verdict["ok"] and len(verdict["processes"]) == 2
    assert all(0 < one["seconds"] < 199 and one["verified"] > 0 for one in verdict["processes"])


def test_on_a_terminal_it_is_live() -> None:
    pytest.importorskip("rich")
    code, seen = on_terminal("stress", *FAST, "--seconds", "1.5")
    assert code == 0 and "fragmentation" in seen and "passed" in seen


def test_numpy_without_machine_code_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if JIT:
        pytest.skip("there is machine code")
    code, _, err = run(capsys, "stress", "--mix", "numpy=1")
    assert code == 2 and "numpy needs machine code" in err and sys.flags
