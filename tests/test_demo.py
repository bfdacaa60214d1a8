"""The demo as a library: finding files, reading them in threads, the checks that must fail when something is wrong."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import SIZES, make_tree

from realalloc import OutOfMemory
from realalloc.demo import Demo, Options, Progress, find_files, reading, runner
from realalloc.demo.checks import alone_ns, check_end, fresh
from realalloc.demo.reading import Worker, hash_plainly, hash_through, read_all
from realalloc.demo.report import Pass, summarize
from realalloc.mm import layout


def demo_of(path: Path, **options: Any) -> Demo:
    return Demo(Options(path=str(path), **{"threads": 2, "rounds": 1, "arena": 8 << 20, **options}))


def test_find_files_follows_no_link_and_opens_no_pipe(tmp_path: Path) -> None:
    tree = find_files(make_tree(tmp_path))
    assert len(tree.files) == len(SIZES) and tree.files == sorted(tree.files)
    assert (tree.links, tree.special, tree.directories, tree.unlisted) == (2, 1, 4, [])


def test_find_files_through_a_link_as_root(tmp_path: Path) -> None:
    make_tree(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    tree = find_files(tmp_path / "link")
    assert tree.root == str(tmp_path / "real") and len(tree.files) == len(SIZES)


def test_find_files_prunes_by_name(tmp_path: Path) -> None:
    tree = find_files(make_tree(tmp_path), prune=["a"])
    assert tree.pruned == 1
    assert {Path(path).parent for path in tree.files} == {tmp_path}


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tree = find_files(tmp_path)
    assert tree.unlisted == [(f"{tmp_path}/a/b", "Permission denied")]
    monkeypatch.setattr(os, "scandir", lambda path: refuse(f"{path}/b"))
    with pytest.raises(PermissionError):
        find_files(tmp_path)


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


def test_readers_agree_with_hashlib(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "f").write_bytes(data)
    expected = hashlib.blake2b(data, digest_size=32).digest()
    for read in (hash_plainly, hash_through(fresh(4096)), hash_through(fresh(1 << 20))):
        found: dict[int, Any] = {}
        _, nbytes, _ = read_all([str(tmp_path / "f")], 1, read, found.__setitem__, lambda _done: None)
        assert (found, nbytes) == ({0: expected}, 100_000)


@pytest.mark.parametrize("read", [hash_plainly, hash_through(fresh(4096))])
def test_what_became_a_link_a_pipe_or_nothing_is_an_error_of_the_file(tmp_path: Path, read: Any) -> None:
    make_tree(tmp_path)
    reader, writer = os.pipe()
    paths = [tmp_path / "a" / "b" / "loop", tmp_path / "gone", tmp_path / "file 0", tmp_path / "a"]
    found: dict[int, Any] = {}
    read_all([*map(str, paths)], 2, read, found.__setitem__, lambda _done: None)
    assert [type(found[k]).__name__ for k in (0, 1, 3)] == ["OSError", "FileNotFoundError", "IsADirectoryError"]
    assert isinstance(found[2], bytes)
    os.close(reader)
    os.close(writer)


def test_a_file_that_would_block_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    keeper = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)  # a writer that writes nothing
    for read in (hash_plainly, hash_through(fresh(4096))):
        found: dict[int, Any] = {}
        read_all([str(tmp_path / "pipe")], 1, read, found.__setitem__, lambda _done: None)
        assert found[0].errno == errno.EAGAIN
    os.close(keeper)


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


def test_a_buffer_that_is_kept_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        kept = demo.pool.alloc()
        report = demo.run()
        assert report.checks is not None
        assert not report.ok and not report.checks.whole and report.checks.digests and report.checks.valid
        assert "elements out" in report.checks.broken[-1]
        del kept
        demo.pool.destroy()


def test_memory_that_is_left_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        kept = demo.arena.kmalloc(100)
        checks = demo.run().checks
        assert checks is not None and not checks.whole and checks.valid
        assert "1 leases left when everything was returned" in checks.broken
        del kept


def test_damage_fails_the_check(tmp_path: Path) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        demo.arena.words[layout.H_BAD_FREES] = 1
        checks = check_end(demo.arena, demo.pool, digests=True, aligned=True)
        assert not checks.ok and not checks.valid and not checks.whole
        assert "header is damaged" in checks.broken[0]
        demo.arena.words[layout.H_BAD_FREES] = 0


def test_buffers_off_a_page_fail_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with demo_of(make_tree(tmp_path)) as demo:
        assert demo._aligned()
        monkeypatch.setattr(runner, "PAGE_BYTES", 1 << 40)
        checks = demo.run().checks
    assert checks is not None and not checks.aligned and not checks.ok and checks.digests


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


def test_an_error_of_a_worker_that_is_no_files_fault_is_raised(tmp_path: Path) -> None:
    make_tree(tmp_path)

    def broken(_path: str, _worker: Worker) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_all([str(tmp_path)] * 100, 3, broken, lambda _index, _found: None, lambda _done: None)


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


def test_summary_is_of_medians() -> None:
    def one(way: str, seconds: float, faults: int) -> Pass:
        return Pass(way, seconds, 10 << 20, 100, 0.5, 0.5, faults, 0, 1000, 3000)

    passes = [one("pool", 1, 5), one("pool", 2, 7), one("pool", 100, 6), one("bytearray", 9, 9)]
    found = summarize("pool", passes, 1e6)
    assert (found.seconds, found.mib_per_second, found.minor_faults, found.rss_growth) == (2, 5.0, 6, 2000)
    assert found.buffer_share == pytest.approx(0.1)


def test_alone_measures_what_it_says() -> None:
    assert 0 < alone_ns(fresh(4096)) < 1e6
    assert alone_ns(fresh(16 << 20)) > alone_ns(fresh(64))
