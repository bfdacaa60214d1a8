"""The command line: parsing, the one funnel of errors, exit codes, output that is safe in a pipe."""

from __future__ import annotations

import os
import sys

import pytest
from commands import child, run, start
from support import run_child

from realalloc import OutOfMemory, __version__
from realalloc.cli import COMMANDS, make_parser
from realalloc.cli.info import InfoCommand
from realalloc.cli.problems import BadInput


@pytest.mark.parametrize("argv", [["--help"], *([c.name, "--help"] for c in COMMANDS)])
def test_help_imports_no_numba(argv: list[str]) -> None:
    code = (
        "import sys; from realalloc.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'numba', 'numpy', 'psutil', 'rich', 'realalloc.arena'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    status, out, err = child(*argv, code=code, fresh=True)
    assert (status, err) == (0, "")
    assert out.startswith("usage: realalloc")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert command.name in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"realalloc {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "command"),
        (["fly"], "invalid choice"),
        (["demo", "--nonsense"], "--nonsense"),
        (["demo", "a", "b"], "unrecognized"),
        (["demo", "--threads", "0"], "--threads must be at least 1"),
        (["demo", "--threads", "-3"], "--threads must be at least 1"),
        (["demo", "--threads", "two"], "--threads must be a whole number, not 'two'"),
        (["demo", "--threads", "1.5"], "--threads must be a whole number"),
        (["demo", "--threads", "9999999"], "--threads must be at most"),
        (["demo", "--buffer", "lots"], "'lots' is not a size"),
        (["demo", "--buffer", "0"], "--buffer must be at least 1"),
        (["demo", "--buffer", "-1"], "--buffer"),
        (["demo", "--buffers", "0"], "--buffers must be at least 1"),
        (["demo", "--rounds", "0"], "--rounds must be at least 1"),
        (["demo", "--arena", "1.0001k"], "not a whole number of bytes"),
        (["info", "--arena", "1 parsec"], "'1 parsec' is not a size"),
        (["warmup", "now"], "unrecognized"),
    ],
)
def test_bad_input_is_one_line_and_2(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("realalloc") and err.count("\n") == 1 and err.endswith("\n")


def test_python_m_realalloc() -> None:
    assert child("--version", fresh=True) == (0, f"realalloc {__version__}\n", "")
    code, out, err = child("fly")
    assert (code, out) == (2, "") and err.count("\n") == 1


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(_self: object, _args: object) -> int:
        raise error

    monkeypatch.setattr(InfoCommand, "run", broken)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "realalloc info: interrupted\n"),
        (BadInput("no\nsuch \x1b[31mthing"), 2, r"realalloc info: error: no such \x1b[31mthing" + "\n"),
        (OutOfMemory("kmalloc(1): no"), 2, "realalloc info: error: kmalloc(1): no\n"),
        (OSError(28, "No space left on device"), 2, "realalloc info: error: [Errno 28] No space left on device\n"),
    ],
)
def test_funnel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    fail(monkeypatch, error)
    assert run(capsys, "info") == (code, "", line)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ValueError("a bug"), AssertionError()])
def test_bugs_stay_loud(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail(monkeypatch, error)
    from realalloc.cli import main

    with pytest.raises(type(error)):
        main(["info"])


def test_a_reader_that_went_away_is_141_and_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("info", "--arena", "1MiB", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (141, "")


def test_parser_never_exits_on_errors() -> None:
    with pytest.raises(BadInput, match="--help"):
        make_parser().parse_args(["nothing"])


def test_output_that_the_encoding_cannot_say_is_escaped() -> None:
    code = (
        "from realalloc.cli import main; from realalloc.cli.info import InfoCommand; import sys\n"
        "InfoCommand.run = lambda self, args: print('\\u00e9\\u4e2d') or 0\n"
        "before = sys.stdout.errors; code = main(['info']); assert sys.stdout.errors == before; sys.exit(code)"
    )
    done = run_child(code, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\\u4e2d\n", "")


def test_entry_point_is_main() -> None:
    from importlib.metadata import entry_points

    from realalloc.cli import main

    (script,) = entry_points(group="console_scripts", name="realalloc")
    assert script.load() is main
    assert sys.modules["realalloc.cli"].main is main
