"""Children that are forked are what interpreters that were started are, as far as zygote.py says so; else they are started."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zygote
from support import run_child
from zygote import Forked, Zygote, launch

PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
LOOK = """
import sys, os, gc, signal, threading
print(sorted(n for n in globals() if n not in ('sys', 'os', 'gc', 'signal', 'threading')), __name__, __spec__, sys.argv)
print(sys.orig_argv, sys.path, sys.warnoptions, sys.flags, os.getcwd(), sorted(os.environ.items()))
print(os.listdir('/proc/self/fd'), os.getpgrp() == os.getpgid(os.getppid()), os.getsid(0) == os.getsid(os.getppid()))
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(0, []))
print(gc.isenabled(), gc.get_freeze_count() < 1000, gc.get_threshold(), threading.enumerate() == [threading.main_thread()])
print(sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stderr.line_buffering, sys.stdin.isatty())
print(sys.stdin.read(), os.stat(0).st_ino > 0, sys.getswitchinterval(), sys.gettrace(), sys.getrecursionlimit())
"""


def said(*command: str, **options: Any) -> tuple[int, str, str]:
    with launch(*command, **PIPES, **options) as child:
        out, err = child.communicate("typed", timeout=200)
    assert isinstance(child, Forked) is not options.get("fresh", False)
    return child.returncode, out, err


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "os._exit(4)", "os.kill(os.getpid(), 9)", "1 / 0", "sys.exit('why')"]
)
def test_a_fork_is_what_a_start_is(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "other")
    command = ("-W", "ignore::ResourceWarning", "-c", f"{LOOK}sys.stdout.flush()\n{end}", "a", "-b")
    code, out, err = said(*command, cwd=tmp_path)
    fresh_code, fresh_out, fresh_err = said(*command, cwd=tmp_path, fresh=True)
    assert (code, out.splitlines()) == (fresh_code, fresh_out.splitlines())
    assert err.splitlines()[-1:] == fresh_err.splitlines()[-1:]


def test_modules_and_files(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import sys; print(__name__, __file__, sys.argv, sys.path, __spec__ is None); sys.exit(2)"
    )
    for command in (["-m", "m", "x"], [str(tmp_path / "m.py"), "y"]):
        given = said(*command, cwd=tmp_path)
        assert given == said(*command, cwd=tmp_path, fresh=True)
        assert given[0] == 2


def test_everything_that_runs_at_an_end_runs() -> None:
    code = """
import atexit, gc, sys, threading, time
gc.disable()
class Last:
    def __init__(self, name): self.name = name; self.me = self
    def __del__(self, write=__import__('os').write): write(1, self.name)
kept = Last(b'global '); sys.kept = Last(b'in sys '); atexit.register(print, 'atexit', end=' ', flush=True)
threading.Thread(target=lambda: (threading.main_thread().join(), print('thread', end=' ', flush=True))).start()
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
"""
    status, out, err = said("-c", code)
    assert (status, err, out.split()[:2]) == (0, "", ["thread", "atexit"])
    assert out == said("-c", code, fresh=True)[1]


def test_it_has_loaded_everything() -> None:
    code = "import sys; print('numba' in sys.modules, 'realalloc.arena' in sys.modules, 'pytest' in sys.modules)"
    assert said("-c", code)[1] == "True True False\n"


def test_a_session_of_its_own() -> None:
    assert said("-c", "import os; print(os.getsid(0) == os.getpid())", start_new_session=True)[1] == "True\n"


def test_signals_and_who_waits_too_short() -> None:
    with launch("-c", "print(flush=True); import time; time.sleep(100)", **PIPES) as child:
        assert isinstance(child, Forked) and child.stdout is not None
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        assert child.poll() is None
        os.kill(child.pid, 0)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == child.poll() == -signal.SIGINT
        child.kill()  # of what has ended: nothing


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("-X", "dev", "-c", "pass"), {}),
        (("-I", "-c", "pass"), {}),
        (("-c", "pass"), {"fresh": True}),
        (("-c", "pass"), {"process_group": 0}),
        (("-c", "pass"), {"env": {**os.environ, "PYTHONMALLOC": "debug"}}),
        (("-c", "pass"), {"env": {key: value for key, value in os.environ.items() if key != "PATH"}}),
    ],
)
def test_what_a_fork_cannot_be_is_started(command: tuple[str, ...], options: Any) -> None:
    with launch(*command, **options) as child:
        assert not isinstance(child, Forked)
    assert child.returncode == 0


def test_a_terminal_is_given_to_an_interpreter_that_starts() -> None:
    mine, its = os.openpty()
    with launch("-c", "import sys; assert sys.stdout.isatty()", stdin=its, stdout=its, stderr=its) as child:
        assert not isinstance(child, Forked)
    os.close(its)
    os.close(mine)
    assert child.returncode == 0


def test_children_end_with_it_and_then_they_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "ZYGOTE", own := Zygote())
    with launch("-c", "import time; time.sleep(100)") as child:
        assert isinstance(child, Forked) and own._process is not None
        pid = own._process.pid
        own.close()
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with launch("-c", "pass") as child:
        assert isinstance(child, Forked) and own._process is not None
        own._process.kill()
        own._process.wait()
    done = run_child("print(7)")
    assert (done.returncode, done.stdout) == (0, "7\n")
    own.close()
