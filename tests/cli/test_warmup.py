"""``realalloc warmup``."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from commands import child, is_plain, on_terminal, run, start

from realalloc.mm.jit import JIT
from realalloc.mm.jitcache import CACHE_DIR

jitted = pytest.mark.skipif(not JIT, reason="nothing is compiled without jit")


@jitted
def test_the_second_time_everything_is_loaded() -> None:
    first = child("warmup", "--json", fresh=True)
    assert first[0] == 0, first[2]
    code, out, err = child("warmup", "--json", fresh=True)
    done = json.loads(out)
    assert (code, err) == (0, "")
    assert done["jit"] and done["compiled"] == 0 and done["loaded"] == done["kernels"] > 20
    assert 0 < done["seconds"] < 60
    info = json.loads(child("info", "--json", fresh=True)[1])
    assert info["cached"] == f"{done['kernels']} of {done['kernels']} kernels (warm)"
    assert info["kernel cache"] == done["cache_dir"]


@jitted
def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "warmup")
    assert (code, err) == (0, "")
    assert "loaded from the cache" in out and f"cache: {CACHE_DIR}\n" in out
    assert is_plain(out)


def test_without_jit_there_is_nothing_to_do() -> None:
    env = {"NUMBA_DISABLE_JIT": "1"}
    assert child("warmup", env=env) == (
        0,
        "nothing to compile: NUMBA_DISABLE_JIT is set, kernels run as plain Python\n",
        "",
    )
    assert json.loads(child("warmup", "--json", env=env)[1])["kernels"] == 0


@jitted
def test_ctrl_c_while_compiling_keeps_what_is_compiled(tmp_path: Path) -> None:
    process = start("warmup", env={"REALALLOC_CACHE_DIR": str(tmp_path)})
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.nbi")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "realalloc warmup: interrupted\n")
    assert time.monotonic() - begun < 20
    assert list(tmp_path.rglob("*.nbi"))


@jitted
def test_a_cache_that_cannot_be_made_is_no_error() -> None:
    code, _, err = child("info", env={"REALALLOC_CACHE_DIR": "/proc/no/such/place"})
    assert (code, err) == (0, "")


@jitted
def test_on_a_terminal() -> None:
    code, seen = on_terminal("warmup")
    assert code == 0
    assert "kernels:" in seen and "Traceback" not in seen
