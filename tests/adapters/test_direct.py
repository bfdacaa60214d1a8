"""Files past the page cache: short transfers, refusals of O_DIRECT, files that are none."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transfers import fail_at, refuse_direct, shorten

import realalloc as ra
from realalloc.adapters.direct import DirectFile, DirectIOWarning, rest_of

DATA = bytes(k * 7 % 251 for k in range(5 * 4096))
FLAGS = os.O_RDWR | os.O_CREAT


@pytest.fixture
def views(arena: ra.Arena) -> Iterator[list[memoryview]]:
    """Five page-aligned buffers of a page."""
    pool = arena.mempool(5, order=0)
    made = pool.alloc_bulk(5)
    yield made
    for view in made:
        view.release()
    pool.destroy()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(DATA)
    return made


@pytest.mark.parametrize("skip", range(8))
def test_the_rest_of_some_views(skip: int) -> None:
    data = b"abcdefg"
    left = rest_of([memoryview(data)[:3], memoryview(data)[3:3], memoryview(data)[3:]], skip)
    assert b"".join(left) == data[skip:]


@pytest.mark.parametrize("short", [0, 4096, 8192, 4096 + 512, 10**6])
def test_short_transfers_are_continued(views: Any, path: Path, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    for name in ("preadv", "pwritev"):
        if short:
            shorten(monkeypatch, name, short)
    file = DirectFile(path, FLAGS)
    assert file.read(views, 0) == len(DATA)
    assert b"".join(views) == DATA
    for view in views:
        view[:] = bytes(view)[::-1]
    file.write(views, 0)
    assert path.read_bytes() == b"".join(views)
    file.close()
    file.close()


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 8192, 20479])
def test_reading_ends_at_the_end(views: Any, path: Path, nbytes: int) -> None:
    os.truncate(path, nbytes)
    file = DirectFile(path, os.O_RDONLY)
    assert file.size_bytes == nbytes
    assert file.read(views, 0) == nbytes
    assert b"".join(views)[:nbytes] == DATA[:nbytes]
    assert file.read(views, 1 << 20) == 0
    file.close()


def test_a_write_that_does_not_advance_is_an_error(views: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: 0)
    file = DirectFile(path, FLAGS)
    with pytest.raises(OSError, match="0 of 20480 bytes were written at 4096") as info:
        file.write(views, 4096)
    assert info.value.errno == errno.EIO
    file.close()
    del info


def test_refused_at_once_goes_through_the_page_cache_and_says_so(
    views: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct(monkeypatch)
    with pytest.warns(DirectIOWarning, match="refuses O_DIRECT") as seen:
        file = DirectFile(path, FLAGS)
    assert len(seen) == 1
    assert not file.direct
    assert file.read(views, 0) == len(DATA)
    file.close()


@pytest.mark.parametrize("short", [1000, 4095, 4097])
def test_through_the_page_cache_an_answer_may_be_of_any_length(
    views: Any, path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    refuse_direct(monkeypatch)
    for name in ("preadv", "pwritev"):
        shorten(monkeypatch, name, short)
    with pytest.warns(DirectIOWarning):
        file = DirectFile(path, FLAGS)
    assert file.read(views, 0) == len(DATA)
    assert b"".join(views) == DATA
    for view in views:
        view[:] = bytes(view)[::-1]
    file.write(views, 0)
    assert path.read_bytes() == b"".join(views)
    file.close()


def test_the_error_behind_a_short_write_is_raised(views: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a limit of the file's size: some bytes go, and the next call says why no more."""
    refuse_direct(monkeypatch)
    shorten(monkeypatch, "pwritev", 4196)
    fail_at(monkeypatch, "pwritev", 4196, errno.EFBIG)
    with pytest.warns(DirectIOWarning):
        file = DirectFile(path, FLAGS)
    with pytest.raises(OSError) as info:
        file.write(views, 0)
    assert info.value.errno == errno.EFBIG
    file.close()
    del info


def test_refused_at_the_first_transfer_is_one_warning(views: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def transfer(fd: int, views: Any, at: int) -> int:
        if file.direct:
            raise OSError(errno.EINVAL, "no")
        return real(fd, views, at)

    monkeypatch.setattr(os, "preadv", transfer)
    file = DirectFile(path, FLAGS)
    assert file.direct
    with pytest.warns(DirectIOWarning) as seen:
        assert file.read(views, 0) == len(DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file.read(views, 0) == len(DATA)
    assert (len(seen), file.direct, b"".join(views)) == (1, False, DATA)
    file.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EINVAL])
def test_other_errors_are_errors(views: Any, path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail_at(monkeypatch, "pwritev", 0, code)
    file = DirectFile(path, FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DirectIOWarning)
        with pytest.raises(OSError) as info:
            file.write(views, 0)
    assert info.value.errno == code
    file.close()
    del info


def test_what_is_no_file_is_refused_and_no_descriptor_is_lost(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ValueError, match="neither a regular file nor a block device"):
            DirectFile(path, os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "none", os.O_RDONLY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_nobody_closed_is_closed_with_a_warning(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = DirectFile(path, os.O_RDONLY)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del file
    assert len(os.listdir("/proc/self/fd")) == before
