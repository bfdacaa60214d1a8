"""Copy a large file past the page cache through eight buffers, compare digests, watch the resident set.

python docs/examples/copy_file.py [--mib 1024] [--dir DIRECTORY]     needs twice that much disk space, and removes it
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import realalloc as ra
from realalloc.adapters.block import BlockReader, BlockWriter, copy_file
from realalloc.rss import RssSampler

MIB = 1 << 20
ORDER = 8  # buffers of 1 MiB
MIN_NR = 8
MAX_GROWTH_BYTES = 16 * MIB


def make_source(path: Path, pool: ra.MemPool, mib: int) -> str:
    """Write ``mib`` MiB, no two alike, and an odd tail; return the digest."""
    noise, digest = os.urandom(MIB - 8), hashlib.sha256()
    with BlockWriter(path, pool) as writer:
        for number in range(mib):
            for part in (number.to_bytes(8, "little"), noise):
                digest.update(part)
                writer.write(part)
        digest.update(b"tail")
        writer.write(b"tail")
        writer.flush()
    return digest.hexdigest()


def digest_of(path: Path, pool: ra.MemPool) -> str:
    """Read a file through the pool and return its digest."""
    digest = hashlib.sha256()
    with BlockReader(path, pool) as reader:
        for block in reader:
            for view in block.views:
                digest.update(view)
    return digest.hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file is on the device, and forget its pages."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def timed(what: str, nbytes: int, target: Path, copy: Callable[[], object]) -> int:
    """Copy, wait for the device, say how fast it was; return the growth of the resident set in bytes."""
    with RssSampler() as sampler:
        begun = time.perf_counter()
        copy()
        copied = time.perf_counter() - begun
        to_disk(target)
        seconds = time.perf_counter() - begun
    print(
        f"{what:16} {nbytes / copied / 1e6:7.0f} MB/s, {nbytes / seconds / 1e6:7.0f} MB/s until on the device, "
        f"RSS +{sampler.growth / MIB:.2f} MiB"
    )
    return sampler.growth


def main() -> int:
    """Run; exit status 1 if digests differ or the resident set grew by 16 MiB."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--dir", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name, ra.Arena("64MiB") as arena:
        source, target = Path(name) / "source", Path(name) / "target"
        pool = arena.mempool(MIN_NR, order=ORDER)
        digest = make_source(source, pool, options.mib)
        nbytes = source.stat().st_size
        to_disk(source)
        growth = timed("copy_file", nbytes, target, lambda: copy_file(source, target, pool))
        same = digest_of(target, pool) == digest
        target.unlink()
        to_disk(source)
        timed("shutil.copyfile", nbytes, target, lambda: shutil.copyfile(source, target))
        print(f"{nbytes} bytes, digests {'equal' if same else 'DIFFER'}, from the arena: {pool.stats().gets_alloc}")
        pool.destroy()
    return 0 if same and growth < MAX_GROWTH_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
