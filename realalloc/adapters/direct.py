"""A file past the page cache: O_DIRECT where the filesystem has it, whole transfers, several buffers at a time.

Guarantees: a transfer is complete or ends at the end of the file, however short the system's answers are; a filesystem that
refuses O_DIRECT, when asked or at the first transfer, is used through the page cache, and one ``DirectIOWarning`` says so.
Offsets and lengths must be multiples of ``BLOCK_BYTES`` and buffers page-aligned: that is the caller's promise.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

BLOCK_BYTES: Final = (
    4096  # a multiple of the logical block of every usual disk; the page, and so the buffers' alignment
)
O_DIRECT: Final = os.O_DIRECT
MAX_SEGMENTS: Final = 1024  # IOV_MAX of Linux

StrPath = str | os.PathLike[str]
Transfer = Callable[[int, list[memoryview], int], int]


class DirectIOWarning(UserWarning):
    """The filesystem refuses O_DIRECT; data go through the page cache."""


def rest_of(views: Sequence[memoryview], skip: int) -> list[memoryview]:
    """Return the views without their first ``skip`` bytes."""
    left = []
    for view in views:
        if skip < len(view):
            left.append(view[skip:] if skip else view)
        skip = max(0, skip - len(view))
    return left


def check_kind(fd: int, path: Any) -> None:
    """ValueError unless ``fd`` is a regular file or a block device: something that has a length and offsets."""
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise ValueError(f"{path!r} is neither a regular file nor a block device")


class DirectFile:
    """An open regular file or block device. Its methods may be called from several threads at once."""

    def __init__(self, path: StrPath, flags: int) -> None:
        """Open with ``flags`` (os.O_RDONLY, O_CREAT and so on), then turn O_DIRECT on.

        OSError if the file cannot be opened; ValueError if it is neither a regular file nor a block device.
        """
        self.path = os.fspath(path)
        # Without O_DIRECT at first: with O_CREAT, a filesystem that refuses it would leave the file made and not opened.
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)  # never wait for a FIFO's other end
        self._mode = threading.Lock()
        self.direct = False
        try:
            check_kind(self._fd, self.path)
            self._turn_on()
        except BaseException:
            self.close()
            raise

    def _turn_on(self) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | O_DIRECT)
            self.direct = True
        except OSError as problem:
            if problem.errno != errno.EINVAL:
                raise
            self._tell()

    def _tell(self) -> None:
        warnings.warn(
            f"{self.path!r}: the filesystem refuses O_DIRECT; using the page cache", DirectIOWarning, stacklevel=2
        )

    def _turn_off(self) -> None:
        """Go on without O_DIRECT; some filesystems accept the flag and refuse the transfer."""
        with self._mode:
            if self.direct:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~O_DIRECT)
                self.direct = False
                self._tell()

    def _once(self, transfer: Transfer, views: list[memoryview], offset: int) -> int:
        was_direct = self.direct
        try:
            return transfer(self._fd, views, offset)
        except OSError as problem:
            if problem.errno != errno.EINVAL or not was_direct:
                raise
        self._turn_off()
        return transfer(self._fd, views, offset)

    def _all(self, transfer: Transfer, views: Sequence[memoryview], offset: int) -> int:
        """Transfer until all is done or nothing more comes; a short answer is continued.

        With O_DIRECT from the last whole block and not from its end, as no other offset is taken: these bytes go twice.
        """
        total, done = sum(map(len, views)), 0
        while done < total:
            begin = done - done % BLOCK_BYTES if self.direct else done
            reached = begin + self._once(transfer, rest_of(views, begin), offset + begin)
            if reached <= done:
                break
            done = reached
        return done

    def read(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from ``offset`` on; return the bytes read, fewer than asked for only at the end of the file."""
        return self._all(os.preadv, views, offset)

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Write all of the views at ``offset``; OSError, EIO if the system takes no more without saying why."""
        wanted = sum(map(len, views))
        written = self._all(os.pwritev, views, offset)
        if written < wanted:
            raise OSError(errno.EIO, f"{written} of {wanted} bytes were written at {offset}", self.path)

    @property
    def size_bytes(self) -> int:
        """Length of the file, or of the device, now."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def truncate(self, size_bytes: int) -> None:
        """Cut a regular file to ``size_bytes``."""
        os.ftruncate(self._fd, size_bytes)

    def sync(self) -> None:
        """Wait until data and length are on the device."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a second close does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Close what nobody closed, when the last thread at it lets go: a reader was dropped, or its closing interrupted."""
        if getattr(self, "_fd", -1) >= 0:
            self.close()
            warnings.warn(f"unclosed {self.path!r}", ResourceWarning, stacklevel=2, source=self)
