"""A slice of NumPy's own tests has the same outcomes on an arena as without (all of them: ``python -m bench.numpy_suite``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import JIT


@pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")
def test_a_slice_of_numpys_tests() -> None:
    command = [sys.executable, "-m", "bench.numpy_suite", "--part", "numpy.fft", "--keep", "not test_threadsafety"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "numpy.fft: " in done.stdout
