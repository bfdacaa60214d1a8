"""``python -m bench.instructions [WHAT ...]``: what a lease is spent on, in instructions of each function, by callgrind.

Each way of leasing runs twice in a child under ``valgrind --tool=callgrind``, with 1024 and with 11 264 leases: the
difference, divided, is one lease with its turn of the loop, and repeatable, whatever the machine does meanwhile. An empty
loop's is subtracted. Functions without a name are numba's machine code: realalloc's. Needs valgrind; takes minutes.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FEW, MANY = 1024, 11_264
BULK = 32
WAYS = (
    "cache.alloc()",
    "arena.kmalloc(256)",
    "pool.alloc(), ready views",
    "memoryview(bytearray(256))",
    "cache.alloc_bulk(32), each",
    "[cache.alloc(), 32 times], each",
)
OURS = "machine code of realalloc"
OTHERS = ("blas_thread_server",)  # threads that spin meanwhile
PLAIN_CPU = {"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}  # what valgrind knows, or all is compiled there


def lease(what: str, number: int) -> None:
    """Lease and release, in this process."""
    import realalloc as ra  # in the child only

    arena = ra.Arena("64MiB")
    kmalloc = arena.kmalloc
    cache = arena.kmem_cache("c", 256)
    bulk = cache.alloc_bulk
    allocs = {
        "cache.alloc()": cache.alloc,
        "pool.alloc(), ready views": arena.mempool(8, size=256, views="ready").alloc,
    }
    gc.disable()
    for count in (200, number):
        if what in allocs:
            alloc = allocs[what]
            for _ in range(count):
                alloc()
        elif what == "arena.kmalloc(256)":
            for _ in range(count):
                kmalloc(256)
        elif what == "memoryview(bytearray(256))":
            for _ in range(count):
                memoryview(bytearray(256))
        elif what == "cache.alloc_bulk(32), each":
            for _ in range(count // BULK):
                bulk(BULK)
        elif what == "[cache.alloc(), 32 times], each":
            alloc = allocs["cache.alloc()"]
            for _ in range(count // BULK):
                [alloc() for _ in range(BULK)]
        else:
            for _ in range(count):
                pass
    os._exit(0)  # the end of the interpreter is no lease


def counted(what: str, number: int, where: Path) -> Counter[str]:
    """Count the instructions of a child, by function."""
    out = where / f"{number}.out"
    child = [sys.executable, "-m", "bench.instructions", "--child", what, str(number)]
    environ = os.environ | PLAIN_CPU | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(child, env=environ, check=True)  # compiles
    grind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q", *child]
    subprocess.run(grind, env=environ, check=True, stderr=subprocess.DEVNULL)
    annotate = ["callgrind_annotate", "--threshold=100", "--show-percs=no", str(out)]
    found: Counter[str] = Counter()
    for line in subprocess.run(annotate, capture_output=True, text=True, check=True).stdout.splitlines():
        match = re.match(r"\s*([\d,]+)\s+[^\s:]+:(\S+)", line)
        if match:
            name = re.sub(r"'\d+$", "", match[2])
            found[OURS if name.startswith("0x") else name] += int(match[1].replace(",", ""))
    return found


def per_lease(what: str) -> dict[str, float]:
    """Return the instructions of one turn of the loop, by function."""
    with tempfile.TemporaryDirectory() as where:
        few, many = (counted(what, number, Path(where)) for number in (FEW, MANY))
    return {name: (many[name] - few[name]) / (MANY - FEW) for name in many if name not in OTHERS}


def main() -> None:
    """Print a table for each way that was asked for, or for all."""
    if sys.argv[1:2] == ["--child"]:
        lease(sys.argv[2], int(sys.argv[3]))
    if shutil.which("valgrind") is None:
        sys.exit("bench.instructions needs valgrind")
    loop = per_lease("the loop alone")
    for what in [way for way in WAYS if not sys.argv[1:] or way in sys.argv[1:]]:
        spent = per_lease(what)
        turns = 1 / BULK if what.endswith("each") else 1
        net = {name: count - turns * loop.get(name, 0) for name, count in spent.items()}
        print(f"{what}: {sum(net.values()):.0f} instructions")
        for name, count in sorted(net.items(), key=lambda row: -row[1]):
            if abs(count) >= 1:
                print(f"    {count:6.0f}  {name}")


if __name__ == "__main__":
    main()
