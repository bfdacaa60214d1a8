"""Reading files in threads: every way agrees, what is no file any more is that file's error, and others stop all of it."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from commands import make_tree

from realalloc.demo.checks import fresh
from realalloc.demo.reading import Worker, hash_plainly, hash_through, read_all


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


def test_an_error_of_a_worker_that_is_no_files_fault_is_raised(tmp_path: Path) -> None:
    make_tree(tmp_path)

    def broken(_path: str, _worker: Worker) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_all([str(tmp_path)] * 100, 3, broken, lambda _index, _found: None, lambda _done: None)
