"""What only a process of its own can show: exits, forks, signals, limits of the system. Judged by exit code and output."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from checks import quiet_child, some
from support import JIT, run_child

from realalloc.mm.jit import POINTERS

START = """
import gc, os, signal, sys, threading, time
import numpy as np
import realalloc as ra
"""

EXITS = {
    "buffer": "buf = ra.Arena('1MiB').kmalloc(64)",
    "slice only": "part = ra.Arena('1MiB').kmalloc(64)[3:]",
    "array only": "numbers = np.frombuffer(ra.Arena('1MiB').kmalloc(64), np.uint8)",
    "many arenas": "arenas = [ra.Arena('1MiB') for _ in range(5)]; bufs = [each.vmalloc(9000) for each in arenas]",
    "default arena": "buf = ra.default_arena().kmalloc(100)",
    "cycle": "box = [ra.Arena('1MiB')]; box += [box[0].kmalloc(10), box]",
    "in a module": "kept = ra.Arena('1MiB'); sys.kept = os.kept = kept.kmalloc(99); kept.kept = [kept.kmalloc(1)]",
    "closed arena": """
import warnings
warnings.simplefilter('ignore')
arena = ra.Arena('1MiB'); buf = arena.kmalloc(64); part = buf[5:]; arena.close()
""",
    "cache and pool": """
owner = ra.Arena('4MiB')
cache = owner.kmem_cache('things', 100, ctor=lambda view: None); objects = cache.alloc_bulk(5)
pool = owner.mempool(4, size=5000); elements = [pool.alloc(), pool.alloc()[7:]]
custom = owner.mempool(2, alloc_fn=lambda data, gfp: [], free_fn=lambda element: None); element = custom.alloc()
""",
    "finalizer": """
class Owner:
    def __init__(self): self.arena = ra.Arena('1MiB'); self.buf = self.arena.kmalloc(64)
    def __del__(self): self.buf.release(); self.arena.close()
owners = [Owner(), Owner()]; owners[1].me = owners[1]
""",
    "atexit": """
import atexit
arena = ra.Arena('1MiB'); buf = arena.kmalloc(64)
atexit.register(lambda: (arena.kfree(buf), arena.kmalloc(5).release(), arena.validate(), arena.close()))
""",
    "daemon threads": """
arena = ra.Arena('8MiB'); going = threading.Barrier(3)
def work():
    held = []
    going.wait()
    while True:
        held.append(arena.kmalloc(1 + len(held) * 100)); held = held[-50:]
for _ in range(2): threading.Thread(target=work, daemon=True).start()
going.wait()
""",
    "daemon waiter": """
tiny = ra.Arena('1MiB', max_order=2); pool = tiny.mempool(1, order=2); held = []
try:
    while True: held.append(pool.alloc(ra.GFP_NOWAIT))
except ra.OutOfMemory: pass
threading.Thread(target=pool.alloc, daemon=True).start()
while not pool.stats().waiters: time.sleep(0.001)
""",
    "threads that outlive main": """
arena = ra.Arena('8MiB'); done = threading.Event()
def work():
    threading.main_thread().join()
    for k in range(300):
        buf = arena.kmalloc(1 + k); buf[0] = 1
    arena.validate(); arena.mine = buf
threading.Thread(target=work).start()
""",
    "sys.exit": "arena = ra.Arena('1MiB'); buf = arena.kmalloc(8); sys.exit(0)",
}

FRESH = ("cache and pool", "atexit", "daemon threads", "threads that outlive main")  # the others are forked


@pytest.mark.parametrize("state", EXITS)
def test_an_interpreter_that_ends_with_memory_out_exits_with_0_and_in_silence(state: str) -> None:
    quiet_child(START + EXITS[state], fresh=state in FRESH)


@pytest.mark.parametrize("options", [("-X", "dev"), ("-X", "faulthandler"), ("-O",), ("-X", "dev", "-W", "error")])
def test_development_modes_find_nothing_to_say_at_exit(options: tuple[str, ...]) -> None:
    states = ("cache and pool", "in a module", "many arenas", "default arena", "cycle", "atexit")
    quiet_child(
        START + "\n".join(f"def f():\n pass\n{EXITS[state]}" for state in states) + "\nprint('end')",
        *options,
        expect="end",
    )


def test_daemon_threads_in_a_pool_do_not_hold_up_an_exit_in_development_mode() -> None:
    quiet_child(START + EXITS["daemon threads"] + EXITS["daemon waiter"], "-X", "dev")


def test_an_unclosed_arena_is_a_resource_warning_when_it_is_collected() -> None:
    child = run_child(START + "arena = ra.Arena('1MiB'); del arena; gc.collect(); print('on')", "-W", "always")
    assert child.returncode == 0 and child.stdout == "on\n"
    assert "ResourceWarning: unclosed <Arena 0 B of 1 MiB" in child.stderr


def test_an_arena_closed_in_a_finalizer_of_another_object_is_whole() -> None:
    quiet_child(
        START
        + """
class Owner:
    def __init__(self): self.arena = ra.Arena('1MiB')
    def __del__(self): self.arena.validate(); self.arena.close(); print(self.arena.closed)
owner = Owner(); owner.me = owner; del owner; gc.collect()
""",
        expect="True",
    )


def test_importing_the_package_imports_neither_numba_nor_numpy() -> None:
    quiet_child(
        """
import sys, realalloc
realalloc.GFP_KERNEL, realalloc.OutOfMemory, dir(realalloc)
print(sorted({name.partition('.')[0] for name in sys.modules} & {'numba', 'numpy', 'llvmlite', 'psutil', 'mmap', 'rich'}))
""",
        expect="[]",
        fresh=True,
    )


# -- fork ------------------------------------------------------------------------------------------------------------

FORKS = (
    START
    + """
import warnings
warnings.simplefilter('ignore', DeprecationWarning)  # fork with threads
sys.setswitchinterval(1e-5)
arena = ra.Arena('16MiB'); pool = arena.mempool(2, size=3000); cache = arena.kmem_cache('c', 72, ctor=lambda v: None)
stop = threading.Event()
def work(me):
    held = []
    while not stop.is_set():
        held += [arena.kmalloc(1 + len(held) * 300), pool.alloc(), cache.alloc()]
        held[-1][0] = me
        del held[:3 * (len(held) > 90)]
def maintain():
    while not stop.is_set():
        arena.trim(); arena.validate(); cache.shrink()
def collect():
    while not stop.is_set():
        node = [arena.kmalloc(8)]; node.append(node); del node; gc.collect(0)
threads = [threading.Thread(target=work, args=(me,)) for me in (1, 2)]
threads += [threading.Thread(target=maintain), threading.Thread(target=collect)]
for thread in threads: thread.start()
bad = 0
for _ in range(FORKS):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs dies
        code = 1
        try:
            arena.validate()
            bufs = [arena.kmalloc(size) for size in (8, 100, 9000, 70000)] + [pool.alloc(), cache.alloc()]
            for buf in bufs: buf[:] = bytes(len(buf))
            del bufs, buf
            arena.trim(); arena.validate()
            code = 0
        finally:
            os._exit(code)
    bad += os.waitpid(pid, 0)[1] != 0
stop.set()
for thread in threads: thread.join()
arena.validate()
print('bad', bad)
"""
)


def test_fork_under_load_gives_children_a_whole_arena_that_works() -> None:
    quiet_child(FORKS.replace("FORKS", str(some(150, 12))), expect="bad 0", fresh=True)


def test_parent_and_child_do_not_share_memory_after_a_fork() -> None:
    quiet_child(
        START
        + """
arena = ra.Arena('1MiB'); buf = arena.kmalloc(16); buf[:] = b'parent' + bytes(10); view = np.frombuffer(buf, np.uint8)
pid = os.fork()
if pid == 0:
    ok = bytes(buf[:6]) == b'parent'
    view[:] = 7; arena.kfree(buf); del view
    ok = ok and arena.stats().leases == 0 and len(arena.kmalloc(16)) == 16
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
print(bytes(buf[:6]).decode(), arena.stats().leases)
""",
        expect="parent 1",
    )


def test_waiters_of_the_parent_do_not_exist_in_a_forked_child() -> None:
    quiet_child(
        START
        + """
import warnings
warnings.simplefilter('ignore', DeprecationWarning)
arena = ra.Arena('1MiB', max_order=2); pool = arena.mempool(1, order=2); held = []
try:
    while True: held.append(pool.alloc(ra.GFP_NOWAIT))
except ra.OutOfMemory: pass
thread = threading.Thread(target=pool.alloc); thread.start()
while not pool.stats().waiters: time.sleep(0.001)
pid = os.fork()
if pid == 0:
    held.clear(); pool.destroy(); arena.validate()
    os._exit(0)
print(os.waitpid(pid, 0)[1], pool.stats().waiters)
held.clear(); thread.join(); pool.destroy()
""",
        expect="0 1",
    )


def test_fork_with_an_exit_through_the_interpreter_is_quiet_in_both() -> None:
    quiet_child(
        START
        + """
arena = ra.Arena('1MiB'); buf = arena.kmalloc(100); part = buf[5:]
pid = os.fork()
if pid:
    print(os.waitpid(pid, 0)[1])
""",
        expect="0",
    )


@pytest.mark.skipif(not JIT, reason="kernels that are Python need Python to hold the lock")
@pytest.mark.parametrize("threads", [0, 1])
def test_a_fork_hook_that_collects_or_frees_buffers_does_not_wait_for_itself(threads: int) -> None:
    quiet_child(
        f"threads = {threads}"
        """
import gc, os, threading
import signal
signal.alarm(30)  # instead of hanging
box = []
def before():
    box.clear()
    gc.collect()
os.register_at_fork(before=before)  # before hooks run in reverse order: after realalloc's, if it has one
import realalloc as ra
arena = ra.Arena('1MiB')
if threads:  # the lock is no longer biased to this thread
    other = threading.Thread(target=lambda: arena.kfree(arena.kmalloc(8))); other.start(); other.join()
for _ in range(5):
    node = [arena.kmalloc(64)]; node.append(node); del node
    box.append(arena.kmalloc(64))
    pid = os.fork()
    if pid == 0:
        arena.validate(); arena.kfree(arena.kmalloc(64))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    arena.validate()
print(arena.stats().leases)
""",
        expect="0",
        fresh=True,
    )


def test_threads_that_use_a_kernel_for_the_first_time_together_compile_it_once() -> None:
    quiet_child(
        START
        + """
arena = ra.Arena('4MiB'); ready = threading.Barrier(6); errors = []
def work():
    ready.wait()
    try:
        arena.validate(); arena.trim(); arena.vmalloc(5); cache = arena.alloc_pages(0); arena.ksize(arena.kmalloc(9))
    except BaseException as error: errors.append(error)
threads = [threading.Thread(target=work) for _ in range(5)]
for thread in threads: thread.start()
ready.wait()
for thread in threads: thread.join()
print(errors)
""",
        expect="[]",
        fresh=True,
    )


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 3, 1100])
def test_touching_the_guard_page_behind_a_vmalloc_area_is_a_segmentation_fault(pages: int) -> None:
    child = run_child(
        START
        + f"""
import ctypes, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
arena = ra.Arena('32MiB'); buf = arena.vmalloc({pages} * 4096); end = np.frombuffer(buf, np.uint8).ctypes.data + len(buf)
ctypes.memset(end - 1, 1, 1)
print('inside', flush=True)
ctypes.memset(end, 1, 1)
print('outside')
"""
    )
    assert (child.returncode, child.stdout) == (-signal.SIGSEGV, "inside\n")


@pytest.mark.parametrize("kind", ["pages", "custom"])
def test_ctrl_c_interrupts_a_wait_and_loses_no_element(kind: str) -> None:
    make = {
        "pages": "pool = arena.mempool(2, order=2)",
        "custom": "pool = arena.mempool(2, alloc_fn=lambda d, g: [] if g == ra.GFP_KERNEL and not held else None, free_fn=id)",
    }[kind]
    quiet_child(
        START
        + f"""
arena = ra.Arena('1MiB', max_order=2); held = []
{make}
try:
    while True: held.append(pool.alloc(ra.GFP_NOWAIT))
except ra.OutOfMemory: pass
out = len(held)
main = threading.main_thread().ident
waiting = threading.Event()
def interrupt():
    waiting.wait()
    for _ in range(3):
        time.sleep(0.05)  # let it fall asleep; it is right in any case
    signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    waiting.set(); pool.alloc(); print('no interrupt')
except KeyboardInterrupt:
    print('interrupted')
pool.validate(); arena.validate()
while held: pool.free(held.pop())
assert pool.curr_nr == 2
pool.destroy()
""",
        expect="interrupted",
    )


@pytest.mark.skipif(not JIT, reason="kernels that are Python can be interrupted while they hold the lock")
def test_a_signal_handler_that_allocates_and_frees_during_allocations_is_harmless() -> None:
    quiet_child(
        START
        + f"""
arena = ra.Arena('4MiB'); seen = []
def handler(*_): seen.append(len(arena.kmalloc(700))); arena.kfree(arena.kmalloc(9000))
signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(seen) < {some(100, 10)}:
    buf = arena.kmalloc(700); arena.kfree(buf); part = arena.kmalloc(20000)[1:]
signal.setitimer(signal.ITIMER_REAL, 0, 0)
del part; arena.validate(); print(arena.stats().leases)
""",
        expect="0",
    )


# -- limits of the system --------------------------------------------------------------------------------------------


def test_a_small_address_space_is_out_of_memory_that_names_the_knob() -> None:
    child = run_child(
        START
        + """
import resource
ra.Arena('1MiB').close()
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
try: ra.Arena('4GiB')
except ra.OutOfMemory as error: print(error)
arena = ra.Arena('4MiB'); arena.kfree(arena.kmalloc(5)); arena.close()
""",
        fresh=True,
    )
    assert (child.returncode, child.stderr) == (0, ""), child.stderr
    assert "cannot reserve" in child.stdout and "Cannot allocate memory" in child.stdout and "ulimit -v" in child.stdout


def test_a_small_memlock_limit_is_out_of_memory_that_names_the_knob() -> None:
    child = run_child(
        START
        + """
import resource
ra.Arena('1MiB', lock=4096).close()  # loads all that is needed before the cache is out of reach
if os.getuid() == 0: os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10,) * 2)
try: ra.Arena('8MiB', lock='1MiB')
except ra.OutOfMemory as error: print(error)
with ra.Arena('8MiB', lock='16KiB') as arena: print(len(arena.kmalloc(100, ra.GFP_DMA)))
""",
        fresh=True,
    )
    assert (child.returncode, child.stderr) == (0, ""), child.stderr
    first, second = child.stdout.splitlines()
    assert "RLIMIT_MEMLOCK (ulimit -l) for lock=1048576" in first
    assert second == "100"


def test_a_thousand_arenas_leave_neither_memory_nor_mappings_behind() -> None:
    quiet_child(
        START
        + f"""
import psutil
def one():
    with ra.Arena('64MiB') as arena:
        buf = arena.kmalloc(50_000); buf[:] = b'x' * 50_000; buf.release()
        arena.vmalloc(3 * 4096 + (5 << 20))[0:9000:4096] = b'abc'
def look():
    gc.collect()
    return len(open('/proc/self/maps').readlines()), psutil.Process().memory_info().rss, psutil.Process().memory_info().vms
for _ in range(50): one()
maps, rss, vms = look()
for _ in range({some(1000, 100)}): one()
maps2, rss2, vms2 = look()
print(maps2 - maps <= 4, rss2 - rss < 8 << 20, vms2 - vms < 64 << 20)
""",
        expect="True True True",
        fresh=True,
    )


def test_the_environment_sets_the_options_of_the_default_arena() -> None:
    quiet_child(
        START
        + """
a = ra.default_arena(); print(a is ra.default_arena(), a.stats().size, a.stats().limit, len(a.buddyinfo().split()))
print(a.ksize(a.kmalloc(65)))
try: a.alloc_pages(4)
except ValueError as error: print(error)
a.close(); print(ra.default_arena() is a)
""",
        env={
            "REALALLOC_SIZE": "32MiB",
            "REALALLOC_LIMIT": "4MiB",
            "REALALLOC_MAX_ORDER": "3",
            "REALALLOC_HUGE_PAGES": "0",
            "REALALLOC_CLASSES": "Fine",
        },
        expect=f"True {32 << 20} {4 << 20} 15\n80\norder must be at most 3, not 4\nFalse",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REALALLOC_SIZE", "lots"),
        ("REALALLOC_LIMIT", "1.3"),
        ("REALALLOC_MAX_ORDER", "x"),
        ("REALALLOC_HUGE_PAGES", "?"),
        ("REALALLOC_CLASSES", "?"),
    ],
)
def test_a_bad_environment_variable_is_a_value_error_that_shows_the_value(name: str, value: str) -> None:
    child = run_child(
        START + "try: ra.default_arena()\nexcept ValueError as e: print(e)", env={name: value, "NUMBA_DISABLE_JIT": "1"}
    )
    assert child.returncode == 0, child.stderr
    assert value in child.stdout


# -- the terminal ----------------------------------------------------------------------------------------------------


def _in_terminal(code: str, env: dict[str, str]) -> tuple[int, str]:
    """Run a child whose stderr is a terminal; return exit code and what it showed."""
    main, side = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=side, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )  # fmt: skip
    os.close(side)
    shown = b""
    try:
        while select.select([main], [], [], 280)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:  # the terminal's other side is closed
                break
            if not data:
                break
            shown += data
        return child.wait(60), shown.decode()
    finally:
        os.close(main)
        if child.poll() is None:
            child.kill()


def test_nothing_is_shown_on_a_terminal_when_all_is_cached() -> None:
    assert _in_terminal(START + "ra.Arena('1MiB').close()", {}) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not POINTERS, reason="nothing is compiled, or more than users wait for")
def test_the_first_arena_of_a_machine_shows_one_line_of_progress_and_wipes_it(tmp_path: Any) -> None:
    code, shown = _in_terminal(START + "ra.Arena('1MiB').close()", {"REALALLOC_CACHE_DIR": str(tmp_path)})
    assert code == 0, shown
    parts = shown.split("\r\x1b[K")
    assert parts[0] == "" and parts[-1] == "", "the line is wiped at the end"
    assert len(parts) > 10
    assert all(
        part.startswith(f"realalloc: first use, compiling ({k}) ") for k, part in enumerate(parts[1:-1], start=1)
    )
    assert "\n" not in shown
