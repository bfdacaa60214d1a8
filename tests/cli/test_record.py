"""``realalloc record``: one line where it refuses, one line when it is done, the program's own exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import child, run
from support import JIT

from realalloc.lab.trace.reading import load

jitted = pytest.mark.skipif(not JIT, reason="the hooks are machine code")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prog.py").write_text(
        "import sys\nkept = bytearray(50_000)\nprint(sys.argv[1:])\nsys.exit(len(sys.argv))\n"
    )
    return tmp_path


@jitted
def test_a_program(program: Path) -> None:
    code, out, err = child("record", "prog.py", "-o", "x", "--json", cwd=program)
    assert (code, out) == (4, "['-o', 'x', '--json']\n")
    assert err.startswith("realalloc record: ") and err.count("\n") == 1
    assert "events of 1 thread in prog.trace; NumPy was not imported" in err
    trace = load(str(program / "prog.trace"))
    assert trace.facts["program"] == "prog"
    assert f"{len(trace.events):,} events" in err
    assert sorted(os.listdir(program)) == ["prog.py", "prog.trace"]


@jitted
def test_quiet_options_and_modules(program: Path) -> None:
    arguments = ("-q", "--domains", "obj,raw", "--min-size", "1KiB", "--events", "100", "-o", "t", "-m", "prog", "a")
    assert child("record", *arguments, cwd=program) == (2, "['a']\n", "")
    trace = load(str(program / "t"))
    assert trace.facts["domains"] == ["raw", "obj"]
    assert trace.facts["least"] == 1024
    assert 0 < len(trace.events) <= 100


@jitted
def test_what_was_there_stays_until_the_trace_is_whole(program: Path) -> None:
    (program / "prog.trace").write_text("old")
    (program / "prog.py").write_text("print(open('prog.trace').read())")
    code, out, _ = child("record", "prog.py", cwd=program)
    assert (code, out) == (0, "old\n")
    assert len(load(str(program / "prog.trace")).events) > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no program is given"),
        (("--",), "no program is given"),
        (("missing.py",), "missing.py: No such file or directory"),
        (("-m",), "-m needs the name of a module"),
        (("-m", "no_such_module_at_all"), "no module named 'no_such_module_at_all'"),
        (("--", "-x", "prog.py"), "unknown option -x"),
        (("--domains", "raw,heap", "prog.py"), "unknown domain 'heap'; there are: raw, mem, obj, numpy"),
        (("--min-size", "-3", "prog.py"), "--min-size"),
        (("--events", "0", "prog.py"), "--events"),
        (("-o", "no/such/directory/t", "prog.py"), "No such file or directory"),
        (("-o", ".", "prog.py"), "Is a directory"),
    ],
)
def test_bad_input_is_one_line(
    program: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    code, out, err = run(capsys, "record", *arguments)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1
    assert os.listdir(program) == ["prog.py"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program / "locked").mkdir(0o500)
    code, out, err = run(capsys, "record", "-o", "locked/t", "prog.py")
    assert (code, out) == (2, "")
    assert "Permission denied" in err and err.count("\n") == 1


@jitted
def test_a_trace_that_cannot_be_written_leaves_the_log(program: Path) -> None:
    (program / "out").mkdir()
    (program / "prog.py").write_text("import os\nos.mkdir('out/t')\n")  # a directory where the trace shall be
    code, out, err = child("record", "-o", "out/t", "prog.py", cwd=program)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "Is a directory" in err
    (log,) = (program / "out").glob(".*.rawtrace")
    assert str(log) in err
    assert len(load(str(log)).events) > 1000


def test_without_machine_code(program: Path) -> None:
    code, out, err = child("record", "prog.py", cwd=program, env={"NUMBA_DISABLE_JIT": "1"})
    assert (code, out) == (2, "")
    assert "NUMBA_DISABLE_JIT" in err and err.count("\n") == 1
    assert os.listdir(program) == ["prog.py"]


@jitted
@pytest.mark.parametrize("option", ["-I", "-E"])
def test_a_python_that_does_not_listen(program: Path, option: str) -> None:
    code = f"import subprocess, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    code += "from realalloc.cli import main; sys.exit(main(['record', 'prog.py']))"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, option, "-c", code], cwd=program, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "start Python without -I, -E and -S" in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(program) == ["prog.py"]
