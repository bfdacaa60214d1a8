"""Shared by the tests of the command line: run it here, in a child, or in a child on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import zygote

from realalloc.cli import main

RICH_LESS = "import sys; sys.modules['rich'] = None; from realalloc.cli import main; sys.exit(main(sys.argv[1:]))"
TIMEOUT = 240
SIZES = (0, 1, 4095, 4096, 4097, 65536, 3 * 65536 + 17)


def make_tree(root: Path) -> Path:
    """Make files around every boundary, in directories, beside what must not be read."""
    deep = root / "a" / "b"
    deep.mkdir(parents=True)
    (root / "empty directory").mkdir()
    for number, size in enumerate(SIZES):
        (deep if number % 2 else root).joinpath(f"file {number}").write_bytes(os.urandom(size))
    (deep / "loop").symlink_to(root)
    (deep / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    return root


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run the command line in this process; return code, stdout, stderr."""
    code = main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def environment(env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a child: no colours are forced on it, and its terminal can move the cursor."""
    given = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    return {**given, "TERM": "xterm", **env}


def start(*argv: str, code: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start ``python -m realalloc`` in a child (see zygote.py for what ``fresh`` is)."""
    how = ["-m", "realalloc"] if code is None else ["-c", code]
    env = environment(options.pop("env", {}))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return zygote.launch(*how, *argv, env=env, frozen=True, **pipes)


def child(*argv: str, **options: Any) -> tuple[int, str, str]:
    """Run ``python -m realalloc`` in a child; return code, stdout, stderr."""
    with start(*argv, **options) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def on_terminal(*argv: str, code: str | None = None) -> tuple[int, str]:
    """Run in a child whose stdin, stdout and stderr are one terminal; return code and what it showed."""
    mine, its = pty.openpty()
    process = start(*argv, code=code, stdin=its, stdout=its, stderr=its)
    os.close(its)
    seen = b""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if not select.select([mine], [], [], 1)[0]:
            continue
        try:
            part = os.read(mine, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(mine)
    return process.wait(TIMEOUT), seen.decode(errors="replace")


def is_plain(text: str) -> bool:
    """Say whether text is lines without control characters."""
    return all(line.isprintable() for line in text.split("\n"))
