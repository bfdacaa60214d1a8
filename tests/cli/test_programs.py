"""What Python shall run: what is there passes unchanged, what is not is one line, and nothing is imported on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from realalloc.cli.problems import BadInput
from realalloc.cli.programs import checked_command, this_python


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "program.py").write_text("raise SystemExit('was run')")
    (tmp_path / "module_of_mine.py").write_text("raise SystemExit('was imported')")
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "program",
    [
        ["program.py"],
        ["program.py", "-m", "--x"],
        ["-m", "module_of_mine", "arg"],
        ["-m", "package.below"],
        ["-m", "json.tool"],
        ["-m", "sys"],
        ["-m", "zipimport"],
        ["-c", "print(1)", "a"],
        ["-c", ""],
    ],
)
def test_what_is_there_passes_as_it_is(here: Path, program: list[str]) -> None:
    before = set(sys.modules)
    assert checked_command("run", program) == program
    assert checked_command("run", ["--", *program]) == program
    assert {"module_of_mine", "package"}.isdisjoint(set(sys.modules) - before)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ([], r"^no program is given: realalloc run program.py \[arguments\]$"),
        (["--"], "^no program is given"),
        (["-m"], "^-m needs the name of a module$"),
        (["-m", "nowhere.to.be.found"], "^no module named 'nowhere.to.be.found'$"),
        (["-c"], "^-c needs code$"),
        (["-x", "program.py"], "^unknown option -x: options of the program come after its name$"),
        (["--", "--"], "^unknown option --"),
        (["nowhere.py"], "^nowhere.py: No such file or directory$"),
    ],
)
def test_what_is_not_is_one_line(here: Path, program: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        checked_command("run", program)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(here: Path) -> None:
    (here / "program.py").chmod(0)
    with pytest.raises(BadInput, match=r"^program.py: Permission denied$"):
        checked_command("run", ["program.py"])


def test_a_directory_with_a_main_is_a_program(here: Path) -> None:
    assert checked_command("record", ["package"]) == ["package"]  # what is in it is Python's to say


def test_this_python_runs_with_its_options() -> None:
    command = this_python()
    assert command[0] == sys.executable
    code = "import sys; print(sys.flags.dont_write_bytecode, sys.flags.optimize, sys.stdout.write_through)"
    given = [
        sys.executable,
        "-B",
        "-O",
        "-u",
        "-c",
        "from realalloc.cli.programs import this_python; print(*this_python())",
    ]
    made = subprocess.run(given, capture_output=True, text=True, check=True).stdout.split()
    out = subprocess.run([*made, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made[0] == sys.executable and out == "1 1 True\n"


@pytest.mark.parametrize("flag", ["isolated", "ignore_environment", "no_site"])
def test_a_python_that_does_not_listen_is_refused(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {name: int(name == flag) for name in ("isolated", "ignore_environment", "no_site")}
    monkeypatch.setattr(sys, "flags", SimpleNamespace(**flags))
    with pytest.raises(BadInput, match="start Python without -I, -E and -S$"):
        this_python()


def test_a_python_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BadInput, match="does not know where its interpreter is"):
        this_python()
