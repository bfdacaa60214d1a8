"""Run a Python program unchanged, and log what it allocates.

The program runs in a child, as Python itself would run it: hooks are put in place by ``realalloc/inject`` before
anything else. This process waits, passes signals on, and turns the log into a trace however the program ended: by its end,
``os._exit``, ``exec``, a signal. A log is kept beside the trace and removed when the trace is written.

Guarantees: what can be refused is refused before the program starts; a trace is written whole or not at all; if writing it
fails, the log stays, is named, and can be read as a trace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from realalloc.lab.clock import ns_per_tick
from realalloc.lab.trace import raw
from realalloc.lab.trace.format import write_trace
from realalloc.lab.trace.hooks import objects
from realalloc.lab.trace.resolve import resolve

INJECT: Final = Path(__file__).parents[2] / "inject"
VARIABLE: Final = "REALALLOC_RECORD"
PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Options:
    """What to record. ``least``: smallest size in bytes; ``events``: how many at most."""

    domains: tuple[str, ...] = raw.DOMAINS
    least: int = 0
    events: int = raw.DEFAULT_EVENTS


def python_flags() -> list[str]:
    """Return the options this Python was started with; RuntimeError for those that keep a recording from beginning."""
    for flag in ("isolated", "ignore_environment", "no_site"):
        if getattr(sys.flags, flag):
            raise RuntimeError("recording begins through PYTHONPATH and site: start Python without -I, -E and -S")
    return subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]


def program_name(command: Sequence[str]) -> str:
    """Name a program as traces do: the file without its directory and ending, or the module."""
    if command[0] == "-m":
        return command[1]
    return "command" if command[0] == "-c" else Path(command[0]).stem


@contextmanager
def new_log(directory: Path, name: str, options: Options) -> Iterator[Path]:
    """Make a log with room for its first chunk; removed if the block raises. OSError where it cannot be."""
    facts = {
        "program": name,
        "domains": list(options.domains),
        "least": options.least,
        "limit": options.events,
        "ns_per_tick": ns_per_tick(),
    }
    fd, path = tempfile.mkstemp(prefix=f".{name}-", suffix=".rawtrace", dir=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, raw.file_bytes(1))
            file.write(raw.header(facts))
        yield Path(path).absolute()
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def environment(log: Path, options: Options) -> dict[str, str]:
    """Return the environment in which a program records into a log."""
    outer = os.environ.get("PYTHONPATH")
    config: dict[str, Any] = {
        "log": str(log),
        "objects": str(objects()),
        "mapped": raw.file_bytes(options.events),
        "header_bytes": raw.HEADER_BYTES,
        "control_words": raw.CONTROL_WORDS,
        "filter_words": raw.FILTER_WORDS,
        "limit": options.events,
        "ready": min(raw.CHUNK_EVENTS, options.events),
        "least": options.least,
        "domains": list(options.domains),
        "layout": {
            name: getattr(raw, f"C_{name}")
            for name in ("ON", "FILE", "RING", "PATH", "LIMIT", "READY", "LEAST", "FILTER")
        },
        "pythonpath": outer,
    }
    config["layout"]["ATTACHED"] = raw.H_ATTACHED
    paths = [str(INJECT), *([outer] if outer else [])]
    return {**os.environ, VARIABLE: json.dumps(config), "PYTHONPATH": os.pathsep.join(paths)}


def run(command: Sequence[str], log: Path, options: Options, **streams: Any) -> int:
    """Run ``python *command`` to its end, recording into a log; return its exit code, 128 + n if signal n ended it.

    ``streams``: stdin, stdout and stderr of the program, as Popen takes them; this process's own otherwise.

    Signals of the terminal reach the program by themselves; those that others send to this process are passed on.
    """
    whole = [sys.executable, *python_flags(), *command]
    process = subprocess.Popen(whole, env=environment(log, options), **streams)  # noqa: S603
    with _signals(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Wait: the program has got it, too."""

    handlers: dict[signal.Signals, Any] = dict.fromkeys(PASSED_ON, pass_on) | dict.fromkeys(
        (signal.SIGINT, signal.SIGQUIT), ignore
    )
    saved = {number: signal.getsignal(number) for number in handlers}
    try:
        for number, handler in handlers.items():
            if saved[number] != signal.SIG_IGN:  # else the program ignores it as well
                signal.signal(number, handler)
        yield
    finally:
        for number, before in saved.items():
            signal.signal(number, before)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of it. ``problem``: why there is no trace; ``remarks``: what is not in it."""

    code: int
    events: int = 0
    threads: int = 0
    remarks: tuple[str, ...] = ()
    problem: str = ""


def record(command: Sequence[str], output: Path, options: Options, **streams: Any) -> Recorded:
    """Run a program to its end and write its trace; ``streams`` as :func:`run` has them.

    OSError, RuntimeError, ValueError: it was not started.
    """
    with new_log(output.absolute().parent, program_name(command), options) as log:
        code = run(command, log, options, **streams)
    try:
        found = raw.read_log(log)
        events, facts = resolve(found)
        write_trace(output, events, facts)
    except (OSError, MemoryError) as error:
        return Recorded(
            code, problem=f"{error.strerror if isinstance(error, OSError) else error}: {output}; the log is kept: {log}"
        )
    except BaseException:
        sys.stderr.write(f"the log is kept: {log}\n")
        raise
    log.unlink()
    return Recorded(code, len(events), facts["threads"], tuple(_remarks(found)))


def _remarks(log: raw.Log) -> Iterator[str]:
    met = [name for k, name in enumerate(raw.DOMAINS) if log.attached >> k & 1]
    if not log.attached:
        yield "the program's Python did not start recording"
    elif "numpy" in log.facts["domains"] and "numpy" not in met:
        yield "NumPy was not imported"
    if log.state == raw.LIMIT_REACHED:
        yield f"recording stopped after {log.facts['limit']:,} events (--events)"
    if log.state == raw.NO_SPACE:
        yield f"recording stopped: no space for more than {len(log.events):,} events"
    if log.torn:
        yield f"{log.torn} events were not finished"
