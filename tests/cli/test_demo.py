"""``realalloc demo`` as its user sees it: exit codes, tables, JSON, progress, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import RICH_LESS, SIZES, child, is_plain, make_tree, on_terminal, run, start

from realalloc.demo import runner
from realalloc.demo.reading import Read, Worker
from realalloc.demo.report import Pass, Summary

FAST = ("--rounds", "1")


def test_demo_passes_and_prints_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", str(make_tree(tmp_path)), "--threads", "2")
    assert code == 0, err
    assert f"{len(SIZES)} files, {sum(SIZES):,} bytes" in out
    assert "left out: symbolic links 2; pipes, sockets and devices 1" in out
    for row in ("throughput, MiB/s", "minor page faults", "RSS growth", "one buffer alone, ns", "peak RSS", "leases"):
        assert row in out
    assert out.count("\nok    ") == 4 and "FAIL" not in out
    assert [line.partition(":")[0] for line in err.splitlines()][:2] == [
        "plain reading, for the digests to compare with",
        "round 1/3, pool",
    ]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", str(make_tree(tmp_path)), "--json", "--buffer", "4KiB", "--arena", "16MiB")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["files"], report["nbytes"], report["ok"]) == (len(SIZES), sum(SIZES), True)
    assert report["options"]["buffer"] == 4096 and report["options"]["arena"] == 16 << 20
    assert [p["way"] for p in report["passes"]] == ["pool", "bytearray", "bytearray", "pool", "pool", "bytearray"]
    reads = sum(-(-size // 4096) + 1 for size in SIZES)  # and the one that finds the end
    assert {p["reads"] for p in report["passes"]} == {reads}
    assert {p["nbytes"] for p in report["passes"]} == {sum(SIZES)}
    assert report["checks"] == {"digests": True, "aligned": True, "valid": True, "whole": True, "broken": []}
    assert report["pool"]["outstanding"] == 0 and report["pool"]["curr_nr"] == report["pool"]["min_nr"]
    assert report["speed_ratio"] > 0
    assert all(p["minor_faults"] >= 0 and p["seconds"] > 0 for p in report["passes"])


@pytest.mark.parametrize(("share", "says"), [(0.05, "says little about buffers"), (0.4, "much of the work here")])
def test_the_text_says_what_the_numbers_show(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    says: str,
) -> None:
    def summarize(way: str, passes: list[Pass], _buffer_ns: float) -> Summary:
        return replace(real(way, passes, 100.0), buffer_share=share)

    real = runner.summarize
    monkeypatch.setattr(runner, "summarize", summarize)
    code, out, _ = run(capsys, "demo", str(make_tree(tmp_path)), *FAST)
    assert code == 0
    assert says in " ".join(out.split())


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: tuple[str, ...]) -> None:
    code, out, err = run(capsys, "demo", str(tmp_path), *FAST, *extra)
    assert code == 0, err
    if extra:
        report = json.loads(out)
        assert (report["files"], report["nbytes"], report["speed_ratio"]) == (0, 0, None)
    else:
        assert "0 files, 0 bytes" in out


def test_one_file_is_a_path_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one"
    file.write_bytes(b"x" * 100_001)
    code, out, _ = run(capsys, "demo", str(file), *FAST)
    assert code == 0
    assert "1 file, 100,001 bytes" in out


def fifo(path: Path) -> Path:
    os.mkfifo(path / "pipe")
    return path / "pipe"


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        (lambda tmp: tmp / "not there", (), "No such file or directory"),
        (lambda tmp: make_link(tmp), (), "Too many levels of symbolic links"),
        (fifo, (), "neither a directory nor a regular file"),
        (lambda tmp: tmp, ("--buffer", "4095"), "buffer must be at least 4096"),
        (lambda tmp: tmp, ("--arena", "1KiB"), "size must be at least"),
        (lambda tmp: tmp, ("--arena", "1MiB", "--buffers", "1000"), "raise the arena's size"),
        (lambda tmp: tmp, ("--arena", "64TiB"), "size must be at most"),
    ],
)
def test_refused_with_one_line_and_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: Callable[[Path], Path],
    options: tuple[str, ...],
    says: str,
) -> None:
    code, out, err = run(capsys, "demo", str(path(tmp_path)), *options)
    assert (code, out) == (2, "")
    assert says in err and err.startswith("realalloc demo: error: ") and err.count("\n") == 1


def make_link(tmp_path: Path) -> Path:
    (tmp_path / "me").symlink_to("me")
    return tmp_path / "me"


def test_a_file_that_cannot_be_read_is_reported_not_fatal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "demo", "/proc/self/mem", *FAST)  # regular, and EIO at offset 0 even for root
    assert code == 0
    assert f"1 unreadable:\n  /proc/{os.getpid()}/mem: Input/output error" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    code, out, _ = run(capsys, "demo", str(tmp_path), *FAST)
    assert code == 0
    assert "secret: Permission denied" in out


def test_a_wrong_digest_is_1_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path)

    def damaged(take: object) -> Read:
        read = hash_through(take)

        def lie(path: str, worker: Worker) -> bytes:
            digest = read(path, worker)
            return digest[::-1] if path.endswith("file 2") else digest

        return lie

    hash_through = runner.hash_through
    monkeypatch.setattr(runner, "hash_through", damaged)
    code, out, err = run(capsys, "demo", str(tmp_path), *FAST)
    assert code == 1
    assert out.count("\nFAIL  ") == 1 and out.count("\nok    ") == 3
    assert "a digest differs from plain reading" in err
    assert f"wrong digest: {tmp_path}/file 2\n" in err


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    make_tree(tmp_path)
    mean = os.fsencode(tmp_path) + b"/\x1b[31mred\n\xff"
    os.symlink("/proc/self/nothing", tmp_path / "x")
    with open(mean, "wb") as file:
        file.write(b"x")
    code, out, err = child("demo", str(tmp_path), *FAST, env={"FORCE_COLOR": "1"})
    assert code == 0, err
    assert is_plain(out) and is_plain(err)
    code, out, err = child("demo", os.fsdecode(mean), *FAST)
    assert code == 0, err
    assert is_plain(out) and is_plain(err)
    assert r"\x1b[31mred\n\udcff" in out


@pytest.mark.parametrize("code", [None, RICH_LESS])
def test_a_terminal_shows_progress(tmp_path: Path, code: str | None) -> None:
    status, seen = on_terminal("demo", str(make_tree(tmp_path)), code=code)
    assert status == 0, seen
    assert "round 3/3, bytearray" in seen
    assert f"{len(SIZES)}/{len(SIZES)}" in seen
    assert "\x1b[" in seen
    assert "every block came back" in seen
    assert "Traceback" not in seen


def test_json_on_a_terminal_is_json(tmp_path: Path) -> None:
    status, seen = on_terminal("demo", str(make_tree(tmp_path)), "--json", *FAST)
    assert status == 0
    assert json.loads(seen[seen.index("{") :])["ok"]


def test_ctrl_c_is_130_quickly(tmp_path: Path) -> None:
    process = start("demo", str(make_tree(tmp_path)), "--rounds", "1000")
    assert process.stderr is not None
    while not process.stderr.readline().startswith("round"):
        assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "realalloc demo: interrupted"
    assert "Traceback" not in err and "Warning" not in err


def test_ctrl_c_inside_one_huge_file(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    process = start("demo", str(tmp_path))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("plain reading")
    time.sleep(0.5)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - begun < 10
    assert "Traceback" not in err


def test_the_standard_library_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: object) -> None:
    from realalloc.cli import demo as command

    assert (Path(command.default_path()) / "os.py").is_file()
    make_tree(tmp_path)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_bytes(b"x")
    monkeypatch.setattr(command, "default_path", lambda: str(tmp_path))
    code, out, _ = run(capsys, "demo", *FAST)  # type: ignore[arg-type]
    assert code == 0
    assert f"{len(SIZES)} files" in out
    assert "directories of third-party packages 1" in out
