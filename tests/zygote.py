"""Children that need not start from nothing: an interpreter that has loaded numba and all machine code forks for each.

``launch()`` is ``subprocess.Popen`` of this Python, for half a hundredth of the seconds. The fork sets up what a start of the
interpreter would (streams, arguments, environment, directory, signals), runs the code in an empty ``__main__``, and falls off
the end of the main program: exit handlers, the end of threads and the finalization are those of any interpreter.

What a fork is not: it has imported realalloc, had an arena, and its fork handlers have run. Tests of starts, of imports and
of what is resident pass ``fresh=True``; what cannot be given to a fork (options but ``-W``, variables that are read early,
terminals) is started afresh in any case, and so is everything when the parent of forks has failed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import CodeType
from typing import Any

FIRST = 280  # seconds: without a cache, the first one compiles
LATE = {"PYTEST_CURRENT_TEST", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM"}  # variables that nothing reads early
POPEN = {"stdin", "stdout", "stderr", "text", "encoding", "errors", "env", "cwd", "start_new_session"}
BOOT = "import sys; sys.path.insert(0, {path!r}); import zygote; del sys.path[0]; exec(zygote.serve({fd}))"

# -- the parent of forks -----------------------------------------------------------------------------------------------


PRELOAD = """
import asyncio
import realalloc as ra
from realalloc.lab import stress
from realalloc.mm.jit import warm_up
with ra.Arena("4MiB") as arena:
    pool = arena.mempool(1, size=100)
    pool.alloc().release()
    arena.kmalloc(100).release()
    arena.validate()
    pool.destroy()
warm_up()
"""


def load(code: str) -> None:
    """Load what children need: modules, machine code, what the first arena of a process makes."""
    sys.path.insert(0, str(Path(__file__).parent))
    exec(code, {})
    del sys.path[0]
    gc.collect()
    gc.freeze()  # a collection would make a copy of every page


def serve(fd: int) -> CodeType:
    """Fork for each request until the other side is closed. Returns in children only: what ``__main__`` is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    control = socket.socket(fileno=fd)
    known = {""}
    load(PRELOAD)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([control.fileno(), *running], [], [])[0]:
            if ready in running:
                pid, answer = running.pop(ready)
                status = os.waitpid(pid, 0)[1]
                with contextlib.suppress(OSError), answer:
                    answer.send(json.dumps(status).encode())
                os.close(ready)
                continue
            data, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not data:
                for pidfd in running:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os._exit(0)
            asked = json.loads(data)
            if asked["first"] not in known:
                known.add(asked["first"])
                load(asked["first"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's library of linear algebra has a thread
                pid = os.fork()
            if pid == 0:
                for number, given in enumerate(fds[1:]):
                    os.dup2(given, number)
                for each in (*fds, *running):
                    os.close(each)
                for _, answer in running.values():
                    answer.close()
                control.close()
                return become(asked)
            for given in fds[1:]:
                os.close(given)
            answer, pidfd = socket.socket(fileno=fds[0]), os.pidfd_open(pid)
            running[pidfd] = pid, answer
            with contextlib.suppress(OSError):
                socket.send_fds(answer, [json.dumps(pid).encode()], [pidfd])


def become(asked: dict[str, Any]) -> CodeType:
    """Make this process what an interpreter would be that was just started so; return what it is to run."""
    main = vars(sys.modules["__main__"])
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not asked["frozen"]:
        gc.unfreeze()
    for name in os.environ.keys() - asked["env"].keys():
        del os.environ[name]
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    if asked["session"]:
        os.setsid()
    sys.orig_argv[1:] = asked["command"]
    sys.argv[:] = ["-c", *asked["argv"]]
    sys.warnoptions.extend(asked["warn"])
    warnings._processoptions(asked["warn"])  # type: ignore[attr-defined]
    kind, what = asked["kind"], asked["what"]
    if kind == "-m":
        sys.path[0] = asked["cwd"]
        what = f"__import__('runpy')._run_module_as_main({what!r})"
    elif kind == "":
        sys.path[0] = os.path.dirname(os.path.abspath(what))
        sys.argv[0] = main["__file__"] = what
        return compile(Path(what).read_bytes(), what, "exec", dont_inherit=True)
    return compile(what, "<string>", "exec", dont_inherit=True)


# -- the side of the tests ---------------------------------------------------------------------------------------------


class Zygote:
    """The parent of forks: started when first needed, ended by ``close()``, or by its socket when this process ends."""

    def __init__(self) -> None:
        self.environ = dict(os.environ)  # as the session began: tests change it
        self.usable = hasattr(os, "pidfd_open")
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            boot = BOOT.format(path=str(Path(__file__).parent), fd=its.fileno())
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", boot], pass_fds=[its.fileno()], env=self.environ, **pipes
                )
        return self._control

    def fork(self, asked: dict[str, Any], streams: list[int]) -> tuple[int, int, socket.socket]:
        """Fork; return the pid, a descriptor of the process, and a socket that will tell its status."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its, self._lock:
                socket.send_fds(self._started(), [json.dumps(asked).encode()], [its.fileno(), *streams])
            mine.settimeout(FIRST)
            data, fds, _, _ = socket.recv_fds(mine, 100, 1)
            return json.loads(data), fds[0], mine
        except (OSError, ValueError, IndexError):
            mine.close()
            raise

    def close(self) -> None:
        """End it, and what it has forked that still runs."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                try:
                    self._process.communicate(timeout=20)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.communicate()
            self._control = self._process = None


ZYGOTE = Zygote()


def parsed(command: list[str]) -> dict[str, Any] | None:
    """Take an interpreter's arguments apart; None if there is one that a fork cannot have."""
    at, warn = 0, []
    while command[at : at + 1] == ["-W"]:
        warn.append(command[at + 1])
        at += 2
    kind = command[at] if command[at].startswith("-") else ""
    if kind not in ("-c", "-m", ""):
        return None
    at += kind != ""
    return {"command": command, "kind": kind, "what": command[at], "argv": command[at + 1 :], "warn": warn}


class Forked(subprocess.Popen[Any]):
    """A child that the zygote forked: all that ``Popen`` does, but who waits for it is the zygote."""

    def __init__(self, asked: dict[str, Any], **options: Any) -> None:
        self._asked = asked
        self._pidfd = -1
        super().__init__([sys.executable, *asked["command"]], **options)

    def _execute_child(self, *args: Any) -> None:
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = args[10:16]
        streams = [given if given != -1 else number for number, given in enumerate((p2cread, c2pwrite, errwrite))]
        if any(os.isatty(each) for each in streams):
            raise OSError("a terminal needs an interpreter that finds it when it starts")
        self.pid, self._pidfd, self._answer = ZYGOTE.fork(self._asked, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _look(self, timeout: float | None) -> int | None:
        """Wait so long for the end; return the exit code."""
        if self.returncode is None and select.select([self._answer], [], [], timeout)[0]:
            data = self._answer.recv(100)  # empty when the zygote died
            self.returncode = os.waitstatus_to_exitcode(json.loads(data)) if data else -signal.SIGKILL
            self._answer.close()
            os.close(self._pidfd)
        return self.returncode

    def _internal_poll(self, *_args: Any, **_options: Any) -> int | None:
        return self._look(0)

    def _wait(self, timeout: float | None) -> int:
        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sig)


def launch(
    *command: str, fresh: bool = False, frozen: bool = False, first: str = "", **options: Any
) -> subprocess.Popen[Any]:
    """Start this Python with arguments, as ``subprocess.Popen`` does: by a fork if a fork can be what is asked for.

    If frozen, collections look past what the fork came with, the last ones at its end too: 0.3 s less.
    ``first`` is code that the parent of forks runs once, to compile what many children need.
    """
    env = options["env"] = dict(options.get("env") or os.environ)  # readline sets variables behind Python's back
    asked = parsed(list(command))
    changed = {name for name, _ in env.items() ^ ZYGOTE.environ.items()} - LATE
    if ZYGOTE.usable and not fresh and asked is not None and not changed and options.keys() <= POPEN:
        asked |= {
            "frozen": frozen,
            "first": first,
            "session": options.get("start_new_session", False),
            "env": env,
            "cwd": os.path.abspath(options.get("cwd") or os.getcwd()),
        }
        with contextlib.suppress(OSError, ValueError, IndexError):
            return Forked(asked, **options)
    return subprocess.Popen([sys.executable, *command], **options)


def run(*command: str, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Start this Python with arguments, and wait for its end: ``subprocess.run`` with output captured as text."""
    with launch(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
