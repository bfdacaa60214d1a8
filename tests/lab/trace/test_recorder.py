"""Recording: programs run as they do without it, however they end, and what they allocate is in the log. Each in a child."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import JIT

from realalloc.lab.trace import raw
from realalloc.lab.trace.format import FREE, OPERATIONS
from realalloc.lab.trace.reading import Trace, load
from realalloc.lab.trace.recorder import Options, new_log, program_name

pytestmark = pytest.mark.skipif(not JIT, reason="the hooks are machine code")
MARK = 77_777  # a size that nothing else asks for


class Recorded:
    """A program that was recorded by the command, in a process of its own; ``quiet`` is what it said without recording."""

    def __init__(self, tmp_path: Path, code: str, *options: str, arguments: tuple[str, ...] = (), **given: Any) -> None:
        self.path = tmp_path / "prog.py"
        self.path.write_text(textwrap.dedent(code))
        self.output = tmp_path / "out.trace"
        command = [str(self.path), *arguments]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        how: dict[str, Any] = {"capture_output": True, "text": True, "env": env, "timeout": 200, **given}
        record = [sys.executable, "-m", "realalloc", "record", "-q", "-o", str(self.output), *options, "--"]
        self.done = subprocess.run([*record, *command], check=False, **how)
        self.plain = subprocess.run([sys.executable, *command], check=False, **how)

    @property
    def trace(self) -> Trace:
        return load(str(self.output))

    def same(self) -> None:
        """It said and returned what it does without recording, and left nothing but the trace."""
        code = self.plain.returncode if self.plain.returncode >= 0 else 128 - self.plain.returncode
        assert (self.done.returncode, self.done.stdout, self.done.stderr) == (code, self.plain.stdout, self.plain.stderr)
        assert not list(self.output.parent.glob("*.rawtrace")) + list(self.output.parent.glob(".*"))


def sized(trace: Trace, size: int) -> list[str]:
    """Name the operations that asked for a size."""
    return [OPERATIONS[op] for op in trace.events["op"][trace.events["size"] == size]]


def test_arguments_path_and_main_are_as_python_makes_them(tmp_path: Path) -> None:
    code = """
        import __main__, os, sys
        print(sys.argv, sys.path, sys.orig_argv[-2:], sys.flags)
        print(sorted(vars(__main__)), __file__, __name__, __spec__, sorted(os.environ))
        print([name for name in sys.modules if name.startswith(("realalloc", "numba", "numpy"))], len(sys.meta_path) > 2)
        print(sys.stdin.read())
        print("to stderr", file=sys.stderr)
    """
    program = Recorded(tmp_path, code, "--domains", "raw,mem,obj", arguments=("a", "-b", "--", "-o", "x"), input="typed")
    program.same()
    assert program.trace.threads == 1
    assert set(program.trace.facts["domains"]) == {"raw", "mem", "obj"}


@pytest.mark.parametrize(
    "end",
    [
        "1 / 0",
        "raise SystemExit('bye')",
        "sys.exit(3)",
        "os._exit(7)",
        "os.kill(os.getpid(), 9)",
        "os.execv(sys.executable, [sys.executable, '-c', 'print(4)'])",
        "raise KeyboardInterrupt",
        "threading.Thread(target=os._exit, args=(5,)).start(); time.sleep(60)",
        "threading.Thread(target=sys.exit, args=(5,)).start()",
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
        "atexit.register(lambda: [bytearray(99_991) for _ in range(3)])",
    ],
)
def test_however_it_ends(tmp_path: Path, end: str) -> None:
    code = f"import atexit, os, sys, threading, time\nkept = [bytearray({MARK - 1}) for _ in range(5)]\n{end}\n"
    program = Recorded(tmp_path, code)
    program.same()
    assert len(sized(program.trace, MARK)) == 5  # a byte for the end
    if "atexit" in end and "register" in end:
        assert len(sized(program.trace, 99_992)) == 3


def test_every_domain_and_operation(tmp_path: Path) -> None:
    code = """
        import ctypes, numpy as np
        for domain, size in (("PyMem_Raw", 11_111), ("PyMem_", 22_222), ("PyObject_", 33_333)):
            call = {name: getattr(ctypes.pythonapi, domain + name) for name in ("Malloc", "Calloc", "Realloc", "Free")}
            for name in ("Malloc", "Calloc", "Realloc"):
                call[name].restype = ctypes.c_void_p
            a = call["Malloc"](ctypes.c_size_t(size))
            b = call["Calloc"](ctypes.c_size_t(1), ctypes.c_size_t(size + 1))
            c = call["Realloc"](ctypes.c_void_p(a), ctypes.c_size_t(size + 2))
            call["Free"](ctypes.c_void_p(b)), call["Free"](ctypes.c_void_p(c)), call["Free"](None)
        x = np.empty(44_444, np.uint8)
        y = np.zeros(44_445, np.uint8)
        x.resize(44_446, refcheck=False)
        del x, y
    """
    program = Recorded(tmp_path, code)
    program.same()
    events, facts = program.trace.events, program.trace.facts
    for domain, size in enumerate((11_111, 22_222, 33_333, 44_444)):
        assert [sized(program.trace, size + k) for k in range(3)] == [["malloc"], ["calloc"], ["realloc"]]
        (born,) = np.flatnonzero(events["size"] == size)
        slot = events[born]["slot"]
        of_slot = events[born:][events["slot"][born:] == slot][:3]
        assert of_slot["op"].tolist() == [0, 2, 3], "malloc, realloc, free of one block"
        assert set(of_slot["domain"].tolist()) == {domain}
    assert (np.diff(events["time_ns"]) >= 0).all()
    assert facts["counts"]["torn"] == facts["counts"]["overwritten"] == 0


def test_what_a_domain_asks_another_for_is_one_event(tmp_path: Path) -> None:
    """A large object comes from malloc through the raw domain: it is one allocation, of the object domain."""
    program = Recorded(tmp_path, f"kept = bytearray({MARK - 1})\nother = bytes({MARK + 99})\n")
    assert len(sized(program.trace, MARK)) == 1
    program = Recorded(tmp_path, f"kept = bytes({MARK})\n", "--domains", "raw")
    assert set(program.trace.events["domain"].tolist()) == {0}
    assert [size for size in program.trace.events["size"] if MARK <= size < MARK + 100]


def test_options(tmp_path: Path) -> None:
    code = f"import numpy as np\nkept = [np.ones({MARK}, np.uint8) for _ in range(9)]\nsmall = [np.ones(100) for _ in range(9)]\n"
    program = Recorded(tmp_path, code, "--domains", "numpy", "--min-size", "1000")
    program.same()
    trace = program.trace
    assert set(trace.events["domain"].tolist()) == {3}
    assert sized(trace, MARK) == ["malloc"] * 9
    assert trace.events["size"][trace.events["op"] != FREE].min() >= 1000
    program = Recorded(tmp_path, code, "--events", "50")
    program.same()
    assert 0 < len(program.trace.events) <= 50
    assert program.trace.facts["counts"]["refused"] > 0


def test_a_file_that_grows(tmp_path: Path) -> None:
    count = raw.CHUNK_EVENTS * 2
    program = Recorded(tmp_path, f"for _ in range({count}):\n    bytes(50)\n", "--domains", "obj")
    program.same()
    assert len(sized(program.trace, 83)) >= count  # bytes(50) is an object of 83 bytes


def test_threads_that_free_each_other(tmp_path: Path) -> None:
    code = f"""
        import queue, threading
        channel = queue.Queue()
        def make():
            for _ in range(200):
                channel.put(bytearray({MARK - 1}))
            channel.put(None)
        def take():
            while channel.get() is not None:
                pass
        threads = [threading.Thread(target=f) for f in (make, take)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print("done")
    """
    program = Recorded(tmp_path, code)
    program.same()
    trace = program.trace
    assert trace.threads == 3
    makers = trace.events["thread"][trace.events["size"] == MARK]
    slots = set(trace.events["slot"][trace.events["size"] == MARK].tolist())
    frees = trace.events[(trace.events["op"] == FREE) & np.isin(trace.events["slot"], list(slots))]
    assert len(makers) == 200 and len(set(makers.tolist())) == 1
    assert set(frees["thread"].tolist()) - set(makers.tolist())


def test_many_threads_outside_the_gil(tmp_path: Path) -> None:
    """The raw domain is called without the GIL: nothing is lost, nothing is torn."""
    code = """
        import ctypes, threading
        lib = ctypes.CDLL(None)  # without the GIL
        lib.PyMem_RawMalloc.restype = ctypes.c_void_p
        lib.PyMem_RawMalloc.argtypes = [ctypes.c_size_t]
        lib.PyMem_RawFree.argtypes = [ctypes.c_void_p]
        def work():
            for _ in range(3000):
                lib.PyMem_RawFree(lib.PyMem_RawMalloc(12_345))
        threads = [threading.Thread(target=work) for _ in range(6)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    """
    program = Recorded(tmp_path, code, "--domains", "raw")
    program.same()
    assert len(sized(program.trace, 12_345)) == 18_000
    assert program.trace.facts["counts"]["overwritten"] == 0


def test_children_do_not_record(tmp_path: Path) -> None:
    code = f"""
        import multiprocessing, os, subprocess, sys
        def child():
            kept = [bytearray({MARK - 1}) for _ in range(50)]
        if __name__ == "__main__":
            pid = os.fork()
            if pid == 0:
                child()
                os._exit(0)
            os.waitpid(pid, 0)
            for method in ("fork", "spawn"):
                process = multiprocessing.get_context(method).Process(target=child)
                process.start()
                process.join()
                print(process.exitcode)
            asked = "import os; print('REALALLOC_RECORD' in os.environ, os.environ.get('PYTHONPATH'))"
            print(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout)
            child()
    """
    program = Recorded(tmp_path, code)
    program.same()
    assert len(sized(program.trace, MARK)) == 50


def test_a_program_with_a_handler_of_its_own(tmp_path: Path) -> None:
    """What another NumPy handler allocates is that one's business; the default handler stays what programs know."""
    code = f"""
        import numpy as np, realalloc as ra
        from numpy._core.multiarray import get_handler_name
        print(get_handler_name())
        with ra.Arena("16MiB") as arena, arena.numpy():
            inside = np.ones({MARK}, np.uint8)
            print(get_handler_name(inside))
            del inside
        outside = np.ones({MARK}, np.uint8)
        print(get_handler_name(outside), outside.sum())
    """
    program = Recorded(tmp_path, code)
    program.same()
    assert "default_allocator" in program.done.stdout
    assert len(sized(program.trace, MARK)) == 1


def test_tracemalloc_and_debug_hooks_work_beside(tmp_path: Path) -> None:
    code = f"""
        import tracemalloc
        tracemalloc.start()
        kept = bytearray({MARK - 1})
        print(tracemalloc.get_traced_memory()[0] > {MARK})
        tracemalloc.stop()
        other = bytearray({MARK - 1})
    """
    program = Recorded(tmp_path, code, env={**os.environ, "PYTHONMALLOC": "debug"})
    program.same()
    assert len(sized(program.trace, MARK)) == 2


def test_a_sitecustomize_of_the_user_still_runs(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("import builtins; builtins.mine = 17\n")
    root = Path(raw.__file__).parents[3]
    path = os.pathsep.join([str(tmp_path / "mine"), str(root)])
    program = Recorded(tmp_path, "import os; print(mine, os.environ['PYTHONPATH'])", env={**os.environ, "PYTHONPATH": path})
    program.same()
    assert program.done.stdout.startswith("17 ")


def test_modules_and_directories(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(f"import sys\nkept = bytearray({MARK - 1})\nprint(sys.argv[1:], __name__, sys.path[0])\n")
    for how in (["-m", "package"], ["package"]):
        command = [sys.executable, "-m", "realalloc", "record", "-q", "-o", "out.trace", "--", *how, "x"]
        root = str(Path(raw.__file__).parents[3])
        env = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=200)
        plain = subprocess.run([sys.executable, *how, "x"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, plain.stderr)
        assert len(sized(load(str(tmp_path / "out.trace")), MARK)) == 1


def started(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "realalloc", "record", "-o", str(path / "out.trace"), "--", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(
    ("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=["Ctrl-C", "SIGTERM to the command"]
)
def test_signals(tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None]) -> None:
    (tmp_path / "p.py").write_text(
        f"import time\nkept = bytearray({MARK - 1})\nprint('ready', flush=True)\ntry:\n    time.sleep(100)\nfinally:\n    print('end')\n"
    )
    with started(tmp_path, str(tmp_path / "p.py")) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        send(process.pid, number)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert ("KeyboardInterrupt" in err, out) == ((True, "end\n") if number == signal.SIGINT else (False, ""))
    assert len(sized(load(str(tmp_path / "out.trace")), MARK)) == 1


def test_the_log_of_a_program_that_runs_can_be_read(tmp_path: Path) -> None:
    """Whatever becomes of the recorder: the log is there, and is a trace."""
    (tmp_path / "p.py").write_text(f"import sys\nkept = bytearray({MARK - 1})\nprint('ready', flush=True)\nsys.stdin.read()\n")
    command = [sys.executable, "-m", "realalloc", "record", "-o", str(tmp_path / "o.trace"), "--", str(tmp_path / "p.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
        process.wait()
        (log,) = tmp_path.glob("*.rawtrace")
        assert len(sized(load(str(log)), MARK)) == 1
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="mounts a small file system")
def test_no_space(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", str(small)], check=False, capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        (tmp_path / "p.py").write_text("for _ in range(400_000):\n    bytes(60)\nprint('whole')\n")
        command = [sys.executable, "-m", "realalloc", "record", "-o", str(small / "o.trace"), "--", str(tmp_path / "p.py")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        assert (done.returncode, done.stdout) == (0, "whole\n")
        assert "no space for more than" in done.stderr and done.stderr.count("\n") == 1
        assert len(load(str(small / "o.trace")).events) > 1000
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", str(small)], check=True)


def test_names_of_programs() -> None:
    assert program_name(["a/b/job.py", "x"]) == "job"
    assert program_name(["-m", "json.tool"]) == "json.tool"
    assert program_name(["-c", "1"]) == "command"


def test_a_log_that_fails_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_log(tmp_path, "x", Options()):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
