"""tests/ mirrors realalloc/, a file for a file, where each module's contract is tried by itself.

Two kinds of folder are tested whole, by the file that is named after them: one whose files are of one kind, each of which its
tests go through, and one whose files are a machine that only works together.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import realalloc

PACKAGE = Path(realalloc.__file__).parent
TESTS = Path(__file__).parent
TOGETHER = {
    "lab/workloads": "lab/workloads/test_workloads.py",  # every workload against every peer
    "lab/trace/programs": "lab/trace/test_programs.py",
    "inject": "cli/test_run.py",  # what is put into other people's processes; also lab/trace/test_recorder.py
    "lease": "test_lease.py",  # the C type and what its slots call; parts that stand alone have files of their own
}
ALONE = {"context": "test_arrays.py"}  # the `with` block of arrays
MODULES = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_its_tests_in_the_place_that_mirrors_it(module: Path) -> None:
    mirrored = TESTS / module.with_name(f"test_{module.name}")
    if not mirrored.is_file():
        by = TOGETHER.get(str(module.parent)) or ALONE.get(str(module.with_suffix("")))
        assert by is not None, f"there is no {mirrored.relative_to(TESTS.parent)}"
        mirrored = TESTS / by
    assert "\ndef test_" in mirrored.read_text()


@pytest.mark.parametrize("where", [*TOGETHER, *ALONE])
def test_an_exception_is_for_what_is_there(where: str) -> None:
    assert (PACKAGE / where).is_dir() or (PACKAGE / f"{where}.py").is_file()
