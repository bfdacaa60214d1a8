"""The examples of docs/examples run, in a small size, say what they say and nothing on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
import zygote
from checks import some

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
SMALL = {
    "copy_file.py": (["--mib", "64"], "67108868 bytes, digests equal, from the arena: 0"),
    "scsi_disk.py": (["--commands", str(some(2000, 200))], "from the arena 0; arena grew by 0"),
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_examples_run(name: str, tmp_path: Path) -> None:
    options, expect = SMALL[name]
    options += ["--dir", str(tmp_path)] if name == "copy_file.py" else []
    child = zygote.run("-W", "error::ResourceWarning", str(EXAMPLES / name), *options, timeout=240)
    assert (child.returncode, child.stderr) == (0, ""), f"{child.stdout}\n{child.stderr}"
    assert expect in child.stdout


def test_every_example_is_run() -> None:
    served = {"echo_server.py"}  # by tests/adapters/test_examples.py, with a client
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL) | served
