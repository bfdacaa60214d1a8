"""Words of threads: where they are, that nobody else has them, and that there may be none."""

from __future__ import annotations

import gc
import threading

import pytest
from support import JIT, run_child

from realalloc.lease import threadword

pytestmark = pytest.mark.skipif(not JIT, reason="for machine code only")


def child(code: str) -> str:
    done = run_child(code, fresh=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_each_is_another_and_zero_in_all_threads_until_there_are_no_more() -> None:
    code = """
import threading
from realalloc.lease import threadword as t
begin, end, seen = threading.Event(), threading.Event(), []
def old():
    begin.wait()
    seen.extend(t._load(at) for at in made)
    end.wait()
thread = threading.Thread(target=old)
thread.start()
made = [t.new_word() for _ in range(t.MOST_WORDS + 2)]
begin.set()
end.set()
thread.join()
fresh = threading.Thread(target=lambda: seen.extend(t._load(at) for at in made))
fresh.start()
fresh.join()
words = [at for at in made if at]
seen = seen[: len(words)] + seen[len(made) :][: len(words)] + [t._load(at) for at in words]
print(len(words), len(set(words)), made[len(words):], set(seen), len(seen))
"""
    most = threadword.MOST_WORDS
    assert child(code) == f"{most} {most} [0, 0] {{0}} {3 * most}\n"


def test_a_key_that_was_somebody_elses_is_not_taken() -> None:
    code = """
import ctypes, threading
from realalloc.lease import threadword as t
keys = t._Keys()
theirs = [keys.make() for _ in range(6)]
ready, end = threading.Event(), threading.Event()
def leave_values():
    for key in theirs:
        keys.set(key, 0x5555)
    ready.set()
    end.wait()
    left.extend(t._load(at) for at in made)
left, made = [], []
thread = threading.Thread(target=leave_values)
thread.start()
ready.wait()
for key in theirs:
    keys.delete(key)
made += [t.new_word() for _ in range(4)]
end.set()
thread.join()
print(0 not in made, left)
"""
    assert child(code) == "True [0, 0, 0, 0]\n"


def test_without_keys_there_are_none_and_functions_work() -> None:
    code = """
import ctypes, realalloc as ra
from realalloc.lease import threadword as t
from realalloc.mm import layout
keys = t._Keys()
while keys.make() < t.INLINE_KEYS:
    pass
arena = ra.Arena("16MiB")
made = arena.c_functions(bound=True)
malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.free)
for _ in range(200):
    free(malloc(64))
arena.validate()
words = arena.words
print(t.new_word(), words[layout.KEPT_AT], arena.stats().live_objects, words[layout.H_BAD_FREES])
"""
    assert child(code) == "0 0 0 0\n"


@pytest.mark.parametrize("what", ["machine", "libc_ver"])
def test_elsewhere_there_are_none(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadword.platform, what, lambda: {"machine": "aarch64", "libc_ver": ("musl", "1.2")}[what])
    assert threadword.new_word() == 0


def test_where_the_value_is_elsewhere_in_another_thread_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    here, where = threading.current_thread(), threadword._Keys.where
    moved = lambda keys, key: where(keys, key) + (0 if threading.current_thread() is here else 8)  # noqa: E731
    monkeypatch.setattr(threadword._Keys, "where", moved)
    assert threadword.new_word() == 0


def test_where_no_thread_can_be_started_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert threadword.new_word() == 0


@pytest.mark.parametrize("collects", [True, False])
def test_nothing_is_collected_in_the_thread_that_is_waited_for(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer there may wait for what the waiting thread holds: Arena.close() did, for c_functions()."""
    here, where, seen = threading.current_thread(), threadword._Keys.where, []

    def look(keys: threadword._Keys, key: int) -> int:
        if threading.current_thread() is not here:
            seen.append(gc.isenabled())
        return where(keys, key)

    monkeypatch.setattr(threadword._Keys, "where", look)
    monkeypatch.setattr(threadword, "_taken", [])
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        threadword.new_word()
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert set(seen) == {False}
    assert after == collects


def test_a_child_of_a_fork_amid_it_can_close_its_arenas_and_make_others() -> None:
    code = """
import os, threading
import realalloc as ra
from realalloc import arena as module
from realalloc.lease import threadword as t
here, where, begun, end = threading.current_thread(), t._Keys.where, threading.Event(), threading.Event()
def slow(keys, key):
    begun.set()
    end.wait()
    return where(keys, key)
arena = ra.Arena("16MiB")
t._Keys.where = slow
maker = threading.Thread(target=arena.c_functions, kwargs={"bound": True})
maker.start()
begun.wait()
pid = os.fork()
if pid == 0:
    free = [lock.acquire(blocking=False) for lock in (module._closing, t._lock)]
    os._exit(0 if all(free) else 1)
end.set()
maker.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert child(code) == "0\n"


ENDING = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
key, gate = ctypes.c_uint(), ctypes.create_string_buffer(64)
libc.sem_init(gate, 0, 0)
libc.pthread_key_create(ctypes.byref(key), ctypes.cast(libc.sem_wait, ctypes.c_void_p))  # ends before our threads do
libc.pthread_setspecific.argtypes = [ctypes.c_uint, ctypes.c_void_p]
import realalloc as ra
from realalloc.lease import threadword as t
from realalloc.mm import layout
arena = ra.Arena("16MiB")
made = arena.c_functions(bound=True)
malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(made.malloc)
free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.free)
at = int(arena.words[layout.KEPT_AT])
def work():
    free(malloc(64))
    seen.append(t._load(at))
    libc.pthread_setspecific(key, ctypes.addressof(gate))
def look():
    seen.append(t._load(at))
    free(malloc(64))
    seen.append(t._load(at))
seen = []
ending = threading.Thread(target=work)
ending.start()
while not seen:
    time.sleep(0.01)
time.sleep(0.2)  # now it waits in the destructor
pid = os.fork()
if pid == 0:
    heirs = [threading.Thread(target=look) for _ in range(2)]
    for heir in heirs:
        heir.start()
        heir.join()
    arena.validate()
    os._exit(0 if seen[0] != 0 == seen[1] and seen[2] != 0 == seen[3] else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
libc.sem_post(gate)
print(code, arena.validate())
"""


def test_the_child_of_a_fork_has_no_word_of_a_thread_that_was_ending() -> None:
    """The C library clears what others kept, but not of who is in its destructors; its stack is the next thread's."""
    assert child(ENDING) == "0 None\n"
