"""``realalloc run``: one line where it refuses; else the program runs as Python would run it, its arrays in an arena."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from commands import child, run
from support import JIT

from realalloc.cli import run as run_file
from realalloc.cli.programs import this_python
from realalloc.lease.datarecord import MAX_ALIGN, MIN_ALIGN

jitted = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")
ROOT = str(Path(__file__).parents[2])
HANDLER = "np._core.multiarray.get_handler_name"
SMALL = {"REALALLOC_SIZE": "64MiB"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty program in an empty working directory; children find this package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.delenv("REALALLOC_NUMPY", raising=False)
    (tmp_path / "prog.py").write_text("")
    return tmp_path


def write(path: Path, code: str) -> None:
    (path / "prog.py").write_text(textwrap.dedent(code))


def plain(*command: str) -> tuple[int, str, str]:
    """Run the program without us."""
    env = {**os.environ, **SMALL}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=env)
    return done.returncode, done.stdout, done.stderr


def test_the_numbers_are_those_of_the_handler() -> None:
    assert (run_file.LOWEST, run_file.HIGHEST) == (MIN_ALIGN, MAX_ALIGN)


SEEN = """
    import __main__, os, sys
    print(sys.argv, sys.path, sys.orig_argv[-2:], sys.flags)
    print(sorted(vars(__main__)), __name__, __spec__ and __spec__.name, sorted(os.environ.items()))
    print(sorted(name for name in sys.modules if name.startswith(("realalloc", "numba", "numpy", "argparse"))))
    print("to stderr", file=sys.stderr)
"""
ENDS = {
    "end": "",
    "exit": "sys.exit(3)",
    "message": "sys.exit('bye')",
    "exception": "1 / 0",
    "_exit": "sys.stdout.flush(); os._exit(5)",
    "signal": "sys.stdout.flush(); os.kill(os.getpid(), 15)",
    "Ctrl-C": "raise KeyboardInterrupt",
}


@jitted
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_program_is_as_without_us(program: Path, end: str) -> None:
    write(program, SEEN)
    with (program / "prog.py").open("a") as file:
        file.write(end + "\n")
    assert child("run", "prog.py", "a", "-m", "--size", "3", env=SMALL) == plain("prog.py", "a", "-m", "--size", "3")


IMPORTS = {
    "numba first": "import numba",
    "realalloc first": "import realalloc; realalloc.Arena",
    "a module of realalloc": "import realalloc.jit",
    "numpy and numba": "go('numpy', 'numba')",
    "numba and numpy": "go('numba', 'numpy')",
    "everybody": "go('numpy', 'numpy', 'numba', 'numba', 'numpy.linalg')",
}


@jitted
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_numpy_may_be_imported_by_anyone_and_by_several_threads_at_once(program: Path, imports: str) -> None:
    code = """
        import builtins, importlib, threading
        before = builtins.__import__
        def go(*names):
            gate = threading.Barrier(len(names))
            def load(name):
                gate.wait()
                importlib.import_module(name)
            threads = [threading.Thread(target=load, args=(name,)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    """
    write(
        program,
        textwrap.dedent(code) + imports + "\n" + f"import numpy as np\nprint({HANDLER}(), {HANDLER}(np.ones(9)))",
    )
    with (program / "prog.py").open("a") as file:
        file.write("\nprint(builtins.__import__ is before)\n")
    assert child("run", "prog.py", env=SMALL) == (0, "realalloc realalloc\nTrue\n", "")


@jitted
def test_modules_and_code_are_as_without_us(program: Path) -> None:
    write(program, SEEN)
    assert child("run", "-m", "prog", "--align", "x", env=SMALL) == plain("-m", "prog", "--align", "x")
    code = textwrap.dedent(SEEN)
    assert child("run", "--align", "64", "-c", code, "-m", env=SMALL) == plain("-c", code, "-m")
    (program / "sitecustomize.py").write_text("print('somebody else')")
    path = os.pathsep.join([str(program), ROOT])
    out = child("run", "prog.py", env={**SMALL, "PYTHONPATH": path})[1]
    assert out.startswith("somebody else\nsomebody else\n['prog.py']")  # in the Python of `run`, and in the program's


@jitted
def test_arrays_live_in_the_arena(program: Path) -> None:
    write(
        program,
        f"""
        import os, sys, threading
        import numpy as np
        from concurrent.futures import ThreadPoolExecutor
        seen = [np.ones(100) * 2]
        with ThreadPoolExecutor(4) as threads:
            seen += threads.map(lambda n: np.arange(n) + 1, range(1, 100_000, 5000))
        big = np.empty(80 << 20, np.uint8)
        print(sorted({{{HANDLER}(a) for a in [*seen, big]}}))
        for end in ("os._exit(5)", "sys.exit(3)", "os.kill(os.getpid(), 9)", "raise ValueError"):
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                sys.stderr = open(os.devnull, "w")
                more = seen[0] + 1
                del seen
                os._exit(9) if more.sum() != 300 or {HANDLER}(more) != "realalloc" else exec(end)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end=" ")
        import realalloc as ra
        print(ra.default_arena().owns(seen[-1]), ra.default_arena().owns(big), seen[-1].ctypes.data % 4096)
        """,
    )
    code, out, err = child(
        "run", "--stats", "--size", "64MiB", "--align", "4KiB", "prog.py", env={"PYTHONWARNINGS": "ignore"}
    )
    assert (code, out.splitlines()) == (0, ["['realalloc']", "5 3 -9 1 True False 0"]), err
    assert err.startswith("realalloc run: ") and err.count("\n") == 1
    assert "1 from NumPy's own allocator, 0 refused" in err


CHILDREN = f"""
    import multiprocessing, subprocess, sys
    import numpy as np
    def name(_):
        return {HANDLER}(np.ones(3))
    if __name__ == "__main__":
        print(name(0))
        for method in sys.argv[1:]:
            with multiprocessing.get_context(method).Pool(1) as pool:
                print(pool.map(name, [0])[0])
"""


@jitted
def test_what_the_program_forks_has_the_arena_and_what_it_spawns_has_not(program: Path) -> None:
    write(program, CHILDREN)
    code, out, err = child("run", "prog.py", "fork", "spawn", env={**SMALL, "PYTHONWARNINGS": "ignore"})
    assert (code, out.split(), err) == (0, ["realalloc", "realalloc", "default_allocator"], "")


@jitted
def test_the_variable_gives_arenas_to_every_child(program: Path) -> None:
    write(program, CHILDREN)
    code, out, err = child("run", "prog.py", "spawn", "forkserver", env={**SMALL, "REALALLOC_NUMPY": "1"})
    assert (code, out.split(), err) == (0, ["realalloc"] * 3, "")


def test_the_variable_turns_it_off(program: Path) -> None:
    write(program, "import os; print(*[name for name in os.environ if name.startswith('REALALLOC_RUN')])")
    assert child("run", "--size", "1MiB", "prog.py", env={"REALALLOC_NUMPY": "0"}) == (0, "\n", "")


@jitted
def test_without_fallback_the_arena_is_a_budget(program: Path) -> None:
    write(program, "import numpy as np\ntry: np.ones(9 << 20)\nexcept MemoryError: print('no')")
    arguments = ("--size", "64MiB", "--limit", "8MiB", "--no-fallback", "prog.py")
    assert child("run", *arguments) == (0, "no\n", "")


@jitted
def test_an_arena_that_cannot_be_had_ends_the_program_where_it_imports_numpy(program: Path) -> None:
    write(program, "print('begun', flush=True)\nimport numpy\nprint('not here')")
    code, out, err = child("run", "--min-free", "64MiB", "prog.py", env=SMALL)
    assert (code, out) == (2, "begun\n")
    assert err.startswith("realalloc run: error: min_free=64 MiB leaves nothing") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no program is given: realalloc run program.py"),
        (("missing.py",), "missing.py: No such file or directory"),
        (("-m",), "-m needs the name of a module"),
        (("-c",), "-c needs code"),
        (("-m", "no_such_module_at_all"), "no module named 'no_such_module_at_all'"),
        (("--", "-x", "prog.py"), "unknown option -x"),
        (("--size", "1KiB", "prog.py"), "--size must be at least"),
        (("--limit", "no", "prog.py"), "'no' is not a size"),
        (("--decay", "nan", "prog.py"), "--decay must be 0 to 31536000 seconds, or none"),
        (("--align", "24", "prog.py"), "--align must be a power of two"),
        (("--align", "4MiB", "prog.py"), "--align must be 16 to 2097152"),
    ],
)
def test_bad_input_is_one_line(
    program: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    code, out, err = run(capsys, "run", *arguments)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("REALALLOC_NUMPY", "yes", "REALALLOC_NUMPY must be 0 or 1, not 'yes'"),
        ("REALALLOC_SIZE", "lots", "'lots' is not a size"),
        ("REALALLOC_LIMIT", "1", "REALALLOC_LIMIT must be at least 4096"),
        ("REALALLOC_MAX_ORDER", "99", "REALALLOC_MAX_ORDER must be a whole number from 0 to 18, not '99'"),
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set"),
    ],
)
def test_a_bad_environment_is_one_line(
    program: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    told: str,
) -> None:
    if name != "NUMBA_DISABLE_JIT":
        monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setenv(name, value)
    code, out, err = run(capsys, "run", "prog.py")
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1


@pytest.mark.parametrize("option", ["-I", "-E"])
def test_a_python_that_does_not_listen(program: Path, option: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from realalloc.cli import main; sys.exit(main(['run', 'prog.py']))"
    )
    done = subprocess.run([sys.executable, option, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "start Python without -I, -E and -S" in done.stderr and done.stderr.count("\n") == 1


@jitted
def test_called_by_a_program_it_comes_back(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALALLOC_SIZE", "64MiB")
    assert run_file_main("-c", "import sys; sys.exit(7)") == 7
    assert run_file_main("-c", "import os; os.kill(os.getpid(), 9)") == 128 + 9
    assert this_python()[0] == sys.executable


def run_file_main(*command: str) -> int:
    from realalloc.cli import main

    return main(["run", *command])
