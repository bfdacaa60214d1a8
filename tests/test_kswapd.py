"""The thread that gives memory back: its life beside the program's, forks, exits, closes, signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from checks import quiet_child
from support import JIT, MIB

import realalloc as ra
from realalloc.lease import kswapd

pytestmark = pytest.mark.skipif(not JIT, reason="kswapd is machine code")

START = """
import gc, os, signal, sys, threading, time, warnings
import numpy as np
import realalloc as ra
from realalloc.lease import kswapd
def fill(buf):
    np.frombuffer(buf, np.uint8)[::512] = 1
    return buf
def until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end: time.sleep(0.002)
    assert true()
def tasks(): return len(os.listdir('/proc/self/task')) - before
before = 0
with ra.Arena('1MiB', kswapd=False) as first: first.validate()
before = tasks()  # of the linear algebra libraries
"""


def test_it_runs_once_for_all_arenas_and_only_where_it_is_wanted() -> None:
    quiet_child(
        START
        + """
assert not kswapd.is_running()
off = ra.Arena('1MiB', kswapd=False)
never = ra.Arena('1MiB', decay=None)
assert tasks() == 0 and not kswapd.is_running()
first = ra.Arena('16MiB', decay=0.05); second = ra.Arena('16MiB', decay=0.05)
assert tasks() == 1 and kswapd.is_running() and threading.active_count() == 1
for arena in (first, second):
    fill(arena.vmalloc(6 << 20)).release()
until(lambda: first.stats().committed == second.stats().committed == 0)
for arena in (first, second, off, never): arena.close()
pid = os.fork()  # after which nobody needs it any more
if pid == 0: os._exit(kswapd.is_running())
assert os.waitpid(pid, 0)[1] == 0 and not kswapd.is_running()
with ra.Arena('1MiB') as arena: assert kswapd.is_running()
print('done')
""",
        expect="done",
    )


@pytest.mark.parametrize("python", ["-Wd", "-Werror"])
def test_forks_are_those_of_a_process_without_it(python: str) -> None:
    """CPython 3.12 and later warn of a fork in a process with threads: this one is stopped for the time."""
    quiet_child(
        START
        + """
arena = ra.Arena('16MiB', decay=0.05)
assert tasks() == 1
for turn in range(20):
    fill(arena.vmalloc(2 << 20)).release()
    pid = os.fork()
    if pid == 0:
        assert kswapd.is_running()
        fill(arena.vmalloc(4 << 20)).release()
        until(lambda: arena.stats().committed == 0)
        arena.validate()
        inner = os.fork()
        if inner == 0: os._exit(0)
        assert os.waitpid(inner, 0)[1] == 0
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert kswapd.is_running()
until(lambda: arena.stats().committed == 0)
arena.close()
print('done')
""",
        python,
        expect="done",
    )


EXITS = {
    "end of the program": "arena.kmalloc(5)",
    "closed before": "arena.close()",
    "in the middle of its work": "bufs = [fill(arena.kmalloc(900_000)) for _ in range(60)]; bufs.clear()",
    "sys.exit": "fill(arena.vmalloc(9 << 20)); sys.exit(0)",
    "os._exit": "fill(arena.vmalloc(9 << 20)).release(); print('done', flush=True); os._exit(0)",
    "a daemon thread that allocates": """
going = threading.Event()
def work():
    while True:
        fill(arena.vmalloc(2 << 20)).release(); going.set()
threading.Thread(target=work, daemon=True).start(); going.wait()
""",
    "an arena that is made at exit": """
import atexit
def late():
    with ra.Arena('8MiB', decay=0.01) as last:
        fill(last.vmalloc(3 << 20)).release(); time.sleep(0.05); last.validate()
atexit.register(late)
""",
    "many arenas that nobody closes": """
kept = [ra.Arena('2MiB', decay=0.01) for _ in range(70)]
for each in kept: fill(each.kmalloc(9999))
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_goes_in_peace(how: str) -> None:
    code = START + "arena = ra.Arena('64MiB', decay=0.01)\nwarnings.simplefilter('ignore')\n"
    quiet_child(code + EXITS[how] + ("" if "_exit" in how else "\nprint('done')" if how != "sys.exit" else ""),
                expect="" if how == "sys.exit" else "done")  # fmt: skip


def test_arenas_close_under_it_at_a_high_rate() -> None:
    stop = threading.Event()
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                with ra.Arena("8MiB", decay=0.001) as arena:
                    buf = arena.vmalloc(2 * MIB)
                    buf[::4096] = bytes(len(buf) // 4096)
                    buf.release()
                    blocks = [arena.kmalloc(100_000) for _ in range(20)]
                    del blocks
        except BaseException as error:  # noqa: BLE001  # told by the test
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_is_stopped_and_started_from_many_threads_at_once() -> None:
    with ra.Arena("8MiB", decay=0.001) as arena:
        stop = threading.Event()

        def work(verb: int) -> None:
            while not stop.is_set():
                kswapd.start() if verb else kswapd.stop()
                arena.vmalloc(MIB).release()

        threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        stop.set()
        for thread in threads:
            thread.join()
        assert kswapd.start()
        arena.validate()


def test_while_it_does_not_run_who_frees_gives_back() -> None:
    with ra.Arena("64MiB", decay=0.02) as arena:
        try:
            kswapd.stop()
            assert not kswapd.is_running()
            deadline = time.monotonic() + 20
            while arena.stats().decayed < 4 * MIB and time.monotonic() < deadline:
                for order in (6, 10):
                    pages = arena.alloc_pages(order)
                    pages.view[::4096] = bytes(1 << order)
                    arena.free_pages(pages)
                time.sleep(0.005)
                arena.alloc_pages_exact(300_000).view.release()
            assert arena.stats().decayed >= 4 * MIB
        finally:
            kswapd.start()


def test_signals_reach_the_program_and_not_it() -> None:
    """A signal that the system gave to another thread would not wake who sleeps in a call: Ctrl-C would come late."""
    quiet_child(
        START
        + """
arena = ra.Arena('8MiB', decay=0.01)
def blocked(task): return int(open(f'/proc/self/task/{task}/status').read().split('SigBlk:')[1].split()[0], 16)
wanted = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1 | 1 << signal.SIGALRM - 1
assert any(blocked(task) & wanted == wanted for task in os.listdir('/proc/self/task'))
assert blocked(os.getpid()) == 0
signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
for _ in range(20):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    began = time.monotonic()
    try: time.sleep(5)
    except ZeroDivisionError: pass
    assert time.monotonic() - began < 2
print('done')
""",
        expect="done",
    )


def test_ctrl_c_at_any_moment_leaves_it_whole() -> None:
    quiet_child(
        START
        + """
def storm(signum, frame):
    global left
    if left > 0:
        left -= 1
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, storm)
arena = ra.Arena('8MiB', decay=0.001)
def attempt():
    fill(arena.vmalloc(1 << 20)).release()
    arena.set_decay(0.002); arena.trim(); arena.residency(); kswapd.stop(); arena.set_decay(0.001); kswapd.start()
left = 0
def once(k):
    global left
    try:
        left = 1
        signal.setitimer(signal.ITIMER_REAL, 1e-5 + k * 2e-5)
        attempt()
        left = 0
    except KeyboardInterrupt: pass
    left = 0
    signal.setitimer(signal.ITIMER_REAL, 0)
warnings.simplefilter('ignore')
attempt()  # what it needs is compiled
for k in range(300): once(k)
assert kswapd.start()
arena.set_decay(0.02)
fill(arena.vmalloc(6 << 20)).release()
until(lambda: arena.stats().committed == 0)
arena.validate()
arena.close()
print('done')
""",
        expect="done",
    )


def test_a_process_that_may_have_no_thread_does_without() -> None:
    quiet_child(
        START
        + """
import resource
ra.Arena('16MiB').close()
assert kswapd.stop()
if os.getuid() == 0: os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
with ra.Arena('16MiB', decay=0.01) as arena:
    assert not kswapd.is_running()
    for _ in range(40):
        fill(arena.alloc_pages(8).view); fill(arena.alloc_pages(10).view); time.sleep(0.002)
    assert arena.stats().decayed > 0
    arena.validate()
print('done')
""",
        expect="done",
    )


def test_it_costs_next_to_nothing_while_nothing_is_dirty() -> None:
    with ra.Arena("16MiB") as arena:
        assert kswapd.is_running()
        before = kswapd_seconds()
        time.sleep(1)
        assert kswapd_seconds() - before <= 0.05
        assert arena.stats().decayed == 0


def kswapd_seconds() -> float:
    """Add up the processor time of threads that Python does not know."""
    known = {thread.native_id for thread in threading.enumerate()}
    total = 0.0
    for task in os.listdir("/proc/self/task"):
        if int(task) not in known:
            fields = Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def test_stopping_is_prompt() -> None:
    with ra.Arena("16MiB", decay=1000):
        began = time.monotonic()
        for _ in range(20):
            assert kswapd.stop()
            assert kswapd.start()
        assert time.monotonic() - began < 5  # twenty sleeps of a quarter of a second would be as long
    assert sys.is_finalizing() is False
    assert signal.getsignal(signal.SIGINT) is not None
