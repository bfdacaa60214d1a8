"""Who takes part where NumPy allocates: each peer is a process of its own, started with another C library's allocator or none.

Guarantees: an allocator that is preloaded is the process's ``malloc`` (the child looks, and says so), else it does not take
part; who is missing is named. Children are asked one after the other: nobody works while another is measured.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ARENA, DEFAULT = "arena", "default"
MOST = 32 << 20  # the highest threshold that glibc takes
NEVER = str(1 << 40)
CLEARED = ("LD_PRELOAD", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "REALALLOC_NUMPY", "REALALLOC_RUN")
PRELOADED = {
    "jemalloc": "libjemalloc.so.2",
    "mimalloc 2": "libmimalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
}


class Peer(NamedTuple):
    """``environment``: what its process is started with; ``library``: whose ``malloc`` it must have, "" for any."""

    name: str
    environment: dict[str, str]
    library: str = ""


def peers() -> tuple[list[Peer], list[str]]:
    """Return who is there, the arena and the default first, and a line for each that is not."""
    tuned = {"MALLOC_TRIM_THRESHOLD_": NEVER, "MALLOC_MMAP_THRESHOLD_": str(MOST)}
    found = [Peer(ARENA, {}), Peer(DEFAULT, {}), Peer("glibc tuned", tuned)]
    found.append(Peer("glibc heap only", {"MALLOC_TRIM_THRESHOLD_": NEVER, "MALLOC_MMAP_MAX_": "0"}))
    missing = []
    libraries = {name: _path(soname) for name, soname in PRELOADED.items()} | {"mimalloc 3": _mimalloc()}
    for name, library in libraries.items():
        if library:
            found.append(Peer(name, {"LD_PRELOAD": library}, library))
        else:
            missing.append(f"{name}: not found")
    return found, missing


def _path(soname: str) -> str:
    """Return where the loader finds a library, without loading it here; "" if nowhere."""
    code = f"import ctypes; ctypes.CDLL({soname!r}); print(open('/proc/self/maps').read())"
    room = os.environ | {"GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=32768"}  # for jemalloc
    command = [sys.executable, "-S", "-c", code]
    maps = subprocess.run(command, env=room, capture_output=True, text=True, check=False).stdout
    return next((line.split()[-1] for line in maps.splitlines() if f"/{soname.partition('.so')[0]}.so" in line), "")


def _mimalloc() -> str:
    """Return the library of the package cmeel-mimalloc; "" without it."""
    try:
        files = importlib.metadata.distribution("cmeel-mimalloc").files or ()
    except importlib.metadata.PackageNotFoundError:
        return ""
    return next((str(file.locate()) for file in files if file.name == "libmimalloc.so.3"), "")


def whose_malloc() -> str:
    """Return the file that this process's ``malloc`` is in."""
    address = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, _, high = line.split()[0].partition("-")
        if int(low, 16) <= address < int(high, 16):
            return line.split()[-1]
    return ""


class Child:
    """A process of one peer that answers questions: JSON, a line each way."""

    def __init__(self, peer: Peer, module: str) -> None:
        """Start ``python -m module``; RuntimeError if the allocator is not the peer's."""
        self.peer = peer
        environment = {name: value for name, value in os.environ.items() if name not in CLEARED}
        path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        command = [sys.executable, "-m", module, "--child", *(["--arena"] if peer.name == ARENA else [])]
        self._process = subprocess.Popen(
            command,
            env=environment | peer.environment | {"PYTHONPATH": path},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        malloc = self.ask({})["malloc"]
        if peer.library and not (malloc and Path(malloc).samefile(peer.library)):
            self.close()
            raise RuntimeError(f"{peer.name}: malloc is that of {malloc}")

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question and wait for the answer; RuntimeError if the child has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.peer.name} ended with {self._process.wait()} when it was asked {question}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def start(module: str, chosen: list[Peer]) -> tuple[list[Child], list[str]]:
    """Start the children; a line for each that is not what it should be."""
    children, missing = [], []
    for peer in chosen:
        try:
            children.append(Child(peer, module))
        except RuntimeError as error:
            missing.append(str(error))
    return children, missing


def install_arena(size: str = "16GiB") -> Any:
    """Let NumPy allocate from an arena, in a child; return the arena."""
    import realalloc as ra
    import realalloc.numpy

    arena = ra.Arena(size)
    realalloc.numpy.install(arena)
    return arena


def answer(respond: Any) -> None:
    """Answer questions until there are no more; an empty one with whose ``malloc`` this is."""
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(respond(**question) if question else {"malloc": whose_malloc()}), flush=True)
