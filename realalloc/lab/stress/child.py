"""An extra process of a stress run: ``python -m realalloc.lab.stress.child``, spoken to in lines of JSON.

    parent → child   {"name": ..., "options": {...}}, then ``go``, then ``stop`` or the end of the pipe
    child → parent   {"ready": true}, {"tick": {...}} twice a second, {"result": {...}}

Guarantees: the run ends when the parent says so, dies or closes the pipe, and is freed, checked and reported then too. Exit
code 0 if a result was given, whatever it says. May not: read standard input through Python's buffers, since a thread that
is inside of them when the interpreter ends would end it badly.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from realalloc.lab.stress.engine import Engine
from realalloc.lab.stress.options import Options
from realalloc.lab.stress.records import Tick

TICK_SECONDS = 0.5


def read_line(fd: int = 0) -> str:
    """Read up to a newline, without reading ahead; what is left at the end of the pipe."""
    found = b""
    while not found.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            break
        found += byte
    return found.decode().rstrip("\n")


def say(**what: Any) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _listen(engine: Engine) -> None:
    read_line()
    engine.stop()


def main() -> int:
    """Be the process."""
    given = json.loads(read_line())
    engine = Engine(Options.from_dict(given["options"]), given["name"])
    last = [time.monotonic()]

    def tell(tick: Tick) -> None:
        if time.monotonic() - last[0] >= TICK_SECONDS:
            last[0] = time.monotonic()
            say(tick=asdict(tick))

    try:
        engine.prepare()
        say(ready=True)
        if read_line() == "go":
            threading.Thread(target=_listen, args=(engine,), daemon=True).start()
            engine.run(tell)
        say(result=engine.finish().as_dict())
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
