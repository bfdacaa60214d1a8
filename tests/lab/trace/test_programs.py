"""The programs that are recorded: each runs on its own, proves what it did, does it again, and more where more is asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import run_child

from realalloc.lab.trace import programs

FOLDER = Path(programs.__file__).parent
SAYS = {
    "http_server": r"(?P<work>\d+) answers, [1-9]\d* documents\n",
    "json_csv": r"(?P<work>\d+) nights: [0-9a-f]{16}\n",
    "numpy_pipeline": r"(?P<work>\d+) batches: [1-9]\d*\n",
}


def run(name: str, *argv: str) -> str:
    path = str(FOLDER / f"{name}.py")
    done = run_child(f"import runpy, sys; sys.argv = {[name, *argv]!r}; runpy.run_path({path!r}, run_name='__main__')")
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_a_program_says_what_it_did_and_does_it_again(name: str) -> None:
    once, twice = run(name), run(name, "2")
    work = [int(re.fullmatch(SAYS[name], said)["work"]) for said in (once, twice)]  # type: ignore[index]
    assert work[1] == 2 * work[0] > 0
    if name != "http_server":  # whose clients race for the documents
        assert run(name) == once != twice


def test_the_standard_library_and_numpy_are_all_it_takes() -> None:
    for path in FOLDER.glob("*.py"):
        imported = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
        assert imported <= {
            "__future__",
            "collections",
            "csv",
            "hashlib",
            "http",
            "io",
            "json",
            "numpy",
            "random",
            "sys",
        } | {
            "threading",
            "typing",
        }
