"""The demo as a library: every digest agrees, files that change are told from wrong digests, errors stop all of it."""

from __future__ import annotations

import errno
import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import SIZES, make_tree

from realalloc import OutOfMemory
from realalloc.demo import Demo, Options, Progress, reading, runner


def demo_of(path: Path, **options: Any) -> Demo:
    return Demo(Options(path=str(path), **{"threads": 2, "rounds": 1, "arena": 8 << 20, **options}))


@pytest.mark.parametrize("buffer", [4096, 5000, 65536, 100_000])
@pytest.mark.parametrize(("threads", "buffers"), [(1, 1), (4, 2), (3, 8)])
def test_every_digest_agrees(tmp_path: Path, buffer: int, threads: int, buffers: int) -> None:
    make_tree(tmp_path)
    with demo_of(tmp_path, buffer=buffer, threads=threads, buffers=buffers, rounds=2) as demo:
        report = demo.run()
    assert report.ok, report.checks
    assert (report.files, report.nbytes) == (len(SIZES), sum(SIZES))
    assert {(p.nbytes, p.reads) for p in report.passes} == {
        (sum(SIZES), sum(-(-size // buffer) + 1 for size in SIZES)),
    }
    assert report.pool["outstanding"] == 0
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_a_buffer_beyond_kmalloc_comes_from_vmalloc(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(os.urandom(5_000_001))
    with demo_of(tmp_path, buffer=(4 << 20) + 1, buffers=2, arena=32 << 20) as demo:
        assert demo.run().ok


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opener = reading._opener

    def refuse(path: str, flags: int) -> int:
        if path.endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opener(path, flags)

    monkeypatch.setattr(reading, "_opener", refuse)


def test_an_unreadable_file_is_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    unreadable(monkeypatch, "file 4")
    with demo_of(tmp_path) as demo:
        report = demo.run()
    assert report.ok
    assert report.unreadable == [(f"{tmp_path}/file 4", "Permission denied")]
    assert (report.files, report.nbytes) == (len(SIZES) - 1, sum(SIZES) - SIZES[4])


@pytest.mark.parametrize("what", ["grow", "shrink", "rewrite", "remove", "become a link"])
def test_a_file_that_changes_is_named_and_not_compared(tmp_path: Path, what: str) -> None:
    make_tree(tmp_path)
    victim = tmp_path / "file 6"

    def change(progress: Progress) -> None:
        if progress.stage != "round 1/1, pool" or progress.done:
            return
        data = victim.read_bytes()
        if what == "grow":
            victim.write_bytes(data + b"more")
        elif what == "shrink":
            victim.write_bytes(data[:1000])
        elif what == "rewrite":
            victim.write_bytes(data[::-1])
        else:
            victim.unlink()
            if what == "become a link":
                victim.symlink_to("file 0")

    with demo_of(tmp_path) as demo:
        report = demo.run(lambda progress: change(progress) if victim.is_file() else None)
    assert report.changed == [str(victim)]
    assert report.ok and report.disagreeing == []


def test_a_file_that_grows_all_the_time(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(16 << 20))  # so that a pass takes longer than the log stands still
    (tmp_path / "log").write_bytes(b"")
    stop = threading.Event()

    def grow() -> None:
        with open(tmp_path / "log", "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 1000)
                stop.wait(0.0005)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with demo_of(tmp_path, rounds=2) as demo:
            report = demo.run()
    finally:
        stop.set()
        writer.join()
    assert report.ok and report.disagreeing == []
    assert report.changed == [str(tmp_path / "log")]


def test_a_wrong_digest_is_a_disagreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    monkeypatch.setattr(runner, "hash_through", lambda _take: lambda _path, _worker: b"wrong")
    with demo_of(tmp_path) as demo:
        report = demo.run()
    assert not report.ok and len(report.disagreeing) == len(SIZES) and not report.changed
    assert report.checks is not None and not report.checks.digests and report.checks.valid


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_of_the_caller_stops_the_workers(tmp_path: Path, error: type[BaseException]) -> None:
    make_tree(tmp_path)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)

    def on_progress(_progress: Progress) -> None:
        if any(t.name == "realalloc-demo" for t in threading.enumerate()):
            raise error

    with demo_of(tmp_path) as demo, pytest.raises(error):
        demo.run(on_progress)
    assert not [t for t in threading.enumerate() if t.name == "realalloc-demo"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, ValueError),
        ({"rounds": 0}, ValueError),
        ({"buffers": 0}, ValueError),
        ({"buffer": 100}, ValueError),
        ({"arena": 1}, ValueError),
        ({"threads": 1.5}, TypeError),
        ({"buffers": 4000}, OutOfMemory),
    ],
)
def test_refused_before_anything_is_read(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        demo_of(tmp_path, **options)
    gc.collect()


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        demo_of(tmp_path / "nowhere")
