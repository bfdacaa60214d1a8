"""Start-up: import alone, a warm arena in a fresh interpreter, a cold one that compiles; and the share of metadata."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import realalloc as ra
from bench.measure import Result

MAKE = "import realalloc as ra; ra.Arena('64MiB').kmalloc(100)"


def _run(code: str, cache: str | None = None) -> float:
    env = dict(os.environ) | ({"REALALLOC_CACHE_DIR": cache} if cache else {})
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env)
    return time.perf_counter() - begin


def startup(*, smoke: bool) -> list[Result]:
    """Seconds, as a share of the seconds allowed."""
    rounds = 1 if smoke else 7
    _run(MAKE)
    bare = statistics.median(_run("pass") for _ in range(rounds))
    rows = {
        "import realalloc": (statistics.median(_run("import realalloc") for _ in range(rounds)) - bare, 0.15),
        "python -c, warm arena and kmalloc": (statistics.median(_run(MAKE) for _ in range(rounds)), 1.5),
    }
    if not smoke:
        with tempfile.TemporaryDirectory() as cache:
            rows["python -c, cold arena and kmalloc"] = (_run(MAKE, cache), 20.0)
    results = [
        Result(name, "s", {"measured": spent, "allowed": most}, "measured", {"allowed": 1.0})
        for name, (spent, most) in rows.items()
    ]
    for size in ("16MiB", "1GiB", "1TiB"):
        with ra.Arena(size) as arena:
            stats = arena.stats()
        share = {"metadata": stats.metadata / stats.size * 100, "allowed": 2.0}
        results.append(Result(f"metadata of an arena of {size}", "%", share, "metadata", {"allowed": 1.0}))
    return results
