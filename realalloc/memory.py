"""Real memory: reserve a range, commit it, lock it, advise on it, give it back. The only file that imports ``mmap``.

Guarantees: the range is private and anonymous (so that giving pages back really frees them: a shared mapping would keep
them), reserved without swap accounting, and aligned as asked; its window part faults when touched. Reserving costs no
resident memory.
May not: know what lies where in the range.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import numpy as np
import numpy.typing as npt

MAP_NORESERVE = 0x4000
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_POPULATE_WRITE = 23  # Linux 5.14
PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def _check(status: int, what: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


class Memory:
    """One reserved range of addresses.

    ``mapping`` owns it: it is unmapped when the last reference to the mapping, or to a view of it, is gone.
    """

    def __init__(self, total_bytes: int, align_bytes: int, window_start_bytes: int) -> None:
        """Reserve ``total_bytes``; everything from ``window_start_bytes`` on faults when touched.

        Raises OSError(ENOMEM) where the address space does not have that much left.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.mapping = mmap.mmap(-1, total_bytes + align_bytes, flags=flags)
        whole = np.frombuffer(self.mapping, dtype=np.int64)
        skip = -int(whole.ctypes.data) % align_bytes
        self.words: npt.NDArray[np.int64] = whole[skip // 8 : (skip + total_bytes) // 8]
        self.address = int(self.words.ctypes.data)
        self._skip = skip
        window = total_bytes - window_start_bytes
        _check(_libc.mprotect(self.address + window_start_bytes, window, PROT_NONE), "mprotect")

    def commit(self, offset: int, nbytes: int) -> None:
        """Make pages resident and writable now (``MADV_POPULATE_WRITE``, else by touching them)."""
        try:
            self.mapping.madvise(MADV_POPULATE_WRITE, self._skip + offset, nbytes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.words[offset // 8 : (offset + nbytes) // 8 : mmap.PAGESIZE // 8] |= 0

    def lock(self, offset: int, nbytes: int) -> None:
        """Keep pages in memory (``mlock``); OSError(ENOMEM or EPERM) where RLIMIT_MEMLOCK does not allow it."""
        _check(_libc.mlock(self.address + offset, nbytes), "mlock")

    def advise_huge(self, offset: int, nbytes: int, *, wanted: bool) -> None:
        """Ask for huge pages, or for none. A kernel without them says EINVAL, which is as good as none."""
        try:
            self.mapping.madvise(MADV_HUGEPAGE if wanted else MADV_NOHUGEPAGE, self._skip + offset, nbytes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def purge(self, offset: int, nbytes: int) -> None:
        """Give pages back to the system; they read as zero from now on."""
        self.mapping.madvise(mmap.MADV_DONTNEED, self._skip + offset, nbytes)

    def resident_pages(self, offset: int, nbytes: int) -> int:
        """Ask the system how many pages of a range are resident (``mincore``)."""
        pages = -(-nbytes // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * pages)()
        _check(_libc.mincore(self.address + offset, nbytes, seen), "mincore")
        return sum(flag & 1 for flag in seen)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return raw bytes of the range. Nothing guards them: for tools that look, not for users."""
        return memoryview(self.mapping)[self._skip + offset : self._skip + offset + nbytes]


def anonymous(nbytes: int) -> mmap.mmap:
    """Map private zeroed pages, as a program would that uses ``mmap`` alone: what arenas are compared with."""
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine, 202)
FUTEX_WAIT_PRIVATE = 0 | 128


def futex_wait(address: int, expected: int, seconds: float) -> None:
    """Sleep, without the GIL, until woken, while the 32-bit word at ``address`` is ``expected``; at most ``seconds``.

    Returns early and without error on a signal; the caller looks again.
    """
    timeout = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    word = ctypes.c_uint32(expected & 0xFFFFFFFF)
    _libc.syscall(
        ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(address), FUTEX_WAIT_PRIVATE, word, ctypes.byref(timeout), None, 0
    )
