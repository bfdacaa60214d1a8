"""Words that each thread has at the same distance from its thread pointer, 0 at first: where bound C functions find a slot.

Thread-local variables of machine code that is made at run time would be reached through a call. But glibc keeps the values of
a thread's first 32 pthread keys in the thread's descriptor, to which the thread pointer points on x86-64: for each a word that
counts how often its key was made and deleted, then the value. That is no interface: so it is looked at once, with a mark,
and each key is tried out before it is used, in two threads. Where anything is otherwise, there are no such words, and threads
are told apart by hashes as everywhere else.

A key is taken only if it was never anybody else's, since values of a key that was deleted stay where they are. glibc sets the
values to 0 when a thread ends, for the next one that gets its stack, and in the child of a fork those of the threads that are
not there; but not of one that was ending (thread_exit.py does). A word is never given back: functions that know where
it is may live as long as the process.

Guarantees: a distance that ``new_word`` returns is not 0 and nobody else's, and all threads' words there are 0.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import random
import threading
from typing import Any, Final

from realalloc.mm.layout import WORD_BYTES

MOST_WORDS: Final = 8  # of the 32, which all libraries of the process share
DESCRIPTOR_BYTES: Final = 0x600  # of which glibc's has more than that many, in every version
INLINE_KEYS: Final = 32
KEY_BYTES: Final = 2 * WORD_BYTES

_lock = threading.Lock()
_taken: list[int] = []
os.register_at_fork(after_in_child=_lock._at_fork_reinit)  # type: ignore[attr-defined]  # as the standard library does


def _load(at: int) -> int:
    return ctypes.c_uint64.from_address(threading.get_ident() + at).value


class _Keys:
    """The C library's keys."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self.create: Any = library.pthread_key_create
        self.set: Any = library.pthread_setspecific
        self.set.argtypes = [ctypes.c_uint, ctypes.c_void_p]
        self.delete: Any = library.pthread_key_delete

    def make(self) -> int:
        """Make a key; -1 if there is none."""
        key = ctypes.c_uint()
        return int(key.value) if self.create(ctypes.byref(key), None) == 0 else -1

    def where(self, key: int) -> int:
        """Return where this thread has the value of a key that was never made before, 0 if it is not found."""
        mark = random.getrandbits(62) | 1
        self.set(key, mark)
        found = [at for at in range(WORD_BYTES, DESCRIPTOR_BYTES, WORD_BYTES) if _load(at) == mark]
        self.set(key, None)
        if len(found) != 1 or _load(found[0]) != 0 or _load(found[0] - WORD_BYTES) != 1:
            return 0
        return found[0]


def _is_everywhere(keys: _Keys, key: int, at: int) -> bool:
    """Tell whether another thread has the value of a key at the same distance, and 0 there before."""
    seen: list[bool] = []

    def look() -> None:
        seen.append(_load(at) == 0 and keys.where(key) == at)

    other = threading.Thread(target=look)
    collects = gc.isenabled()
    gc.disable()  # there a finalizer might wait for a lock that this thread holds, which waits for that one
    try:
        other.start()
        other.join()
    except RuntimeError:  # no more threads, or the interpreter ends
        return False
    finally:
        if collects:
            gc.enable()
    return seen == [True]


def _try_keys(keys: _Keys, spare: list[int]) -> int:
    while len(spare) < INLINE_KEYS:
        key = keys.make()
        if not 0 <= key < INLINE_KEYS:
            spare += [key] if key >= 0 else []
            return 0
        at = keys.where(key)
        if at != 0 and _is_everywhere(keys, key, at):
            return at
        spare.append(key)
        if at != 0:  # not because of this key
            return 0
    return 0


def is_taken(at: int) -> bool:
    """Tell whether ``new_word`` has returned this distance."""
    return at in _taken


def new_word() -> int:
    """Return the distance in bytes, from each thread's thread pointer, of a word that nobody has; 0 if there is none."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return 0
    with _lock:
        if len(_taken) == MOST_WORDS:
            return 0
        keys, spare = _Keys(), list[int]()
        at = _try_keys(keys, spare)
        for key in spare:
            keys.delete(key)
        if at != 0:
            _taken.append(at)
        return at
