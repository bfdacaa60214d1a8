"""The extra processes, as the first one sees them: started anew (no fork of a process with threads), told, heard, waited for.

Guarantees: a child that was started is waited for, and killed if it does not end in time; what it said last is kept. Ctrl-C
goes to the parent only, who tells them. A child that gives no result is in ``lost`` with its exit code and its last words.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import realalloc
from realalloc.lab.stress.options import Options
from realalloc.lab.stress.records import ProcessResult, Tick

READY_SECONDS = 600.0  # to compile everything on a slow machine that has nothing cached
END_SECONDS = 120.0  # to free, check and report
LAST_WORDS = 2000
MODULE = "realalloc.lab.stress.child"


class Child:
    """One extra process."""

    def __init__(self, name: str, options: Options, module: str = MODULE) -> None:
        """Start it and tell it its options."""
        self.name = name
        self.ready = threading.Event()
        self.tick: Tick | None = None
        self.result: ProcessResult | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by finish
        package = str(Path(realalloc.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, name=f"realalloc-stress-{name}", daemon=True)
        self._listener.start()
        self.tell(json.dumps({"name": name, "options": options.as_dict()}))

    def tell(self, line: str) -> None:
        """Send a line; a child that is gone is found out later."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._hear(json.loads(line))
        except ValueError:  # half a line, of one that died, or a pipe that was closed
            pass
        self.ready.set()  # or it never will be

    def _hear(self, said: dict[str, Any]) -> None:
        if "ready" in said:
            self.ready.set()
        elif "tick" in said:
            self.tick = Tick(**said["tick"])
        elif "result" in said:
            self.result = ProcessResult.from_dict(said["result"])

    def finish(self, seconds: float) -> str | None:
        """Wait until it has ended, kill it if that takes longer; return why there is no result, or None."""
        late = False
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
            self._process.kill()
            self._process.wait()
        self._listener.join(10)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        self._stderr.seek(0)
        words = self._stderr.read()[-LAST_WORDS:].decode(errors="replace").strip()
        self._stderr.close()
        if self.result is not None and self._process.returncode == 0:
            return None
        self.result = None
        code = f"killed after {seconds:g} s without an answer" if late else f"exit {self._process.returncode}"
        return f"{self.name}: {code}; {' | '.join(words.splitlines()[-4:]) or 'it said nothing'}"


class Children:
    """All of them; a context manager that leaves none behind."""

    def __init__(self, options: Options) -> None:
        """Start as many as the options say, each with a seed of its own."""
        self.all: list[Child] = []
        self.lost: list[str] = []
        try:
            for number in range(1, options.processes + 1):
                alone = options.but(processes=0, seed=child_seed(options.seed, number))
                self.all.append(Child(f"process {number}", alone))
        except BaseException:
            self.end(0.0)
            raise

    def wait_ready(self) -> None:
        """Wait until all have compiled what they need."""
        for child in self.all:
            child.ready.wait(READY_SECONDS)

    def go(self) -> None:
        """Let them run."""
        for child in self.all:
            child.tell("go")

    def stop(self) -> None:
        """Let them end."""
        for child in self.all:
            child.tell("stop")

    def end(self, seconds: float = END_SECONDS) -> list[ProcessResult]:
        """Tell all to stop, wait for them, and return what they found."""
        self.stop()
        for child in self.all:
            reason = child.finish(seconds)
            if reason is not None:
                self.lost.append(reason)
        found = [child.result for child in self.all if child.result is not None]
        self.all = []
        return found

    def running(self) -> bool:
        """Tell whether one of them still has to answer."""
        return any(child.result is None and child._process.poll() is None for child in self.all)

    def __enter__(self) -> Self:
        """Return them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill who is left."""
        self.end(0.0)


def child_seed(seed: int, number: int) -> int:
    """Return the seed of an extra process; with it a run of one process does what that process did."""
    return (seed + number * 0x9E3779B1) & ((1 << 48) - 1)
