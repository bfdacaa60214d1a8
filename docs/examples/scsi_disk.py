"""A disk in a file behind a SCSI command queue: random reads and writes, and the books of the arena before and after.

python docs/examples/scsi_disk.py [--commands 20000]
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
from pathlib import Path

import realalloc as ra
from realalloc.adapters import scsi

BLOCKS = 4096  # of 512 bytes
BLOCKS_EACH = 8


def capacity(queue: scsi.CommandQueue) -> int:
    """Ask the disk how many blocks it has."""
    with queue.submit(scsi.read_capacity_10(), receive_bytes=8) as request:
        assert request.wait() == scsi.Status.GOOD
        last_lba, _block_bytes = struct.unpack(">II", request.data[0])
    return int(last_lba) + 1


def exchange(queue: scsi.CommandQueue, model: bytearray, commands: int) -> int:
    """Write and read extents at random, as many in flight as there are tags; return how many reads differed from the model."""
    chance, wrong = random.Random(1), 0  # noqa: S311
    in_flight: dict[int, tuple[scsi.Request, int, bytes]] = {}
    done = 0
    while done < commands or in_flight:
        busy = {lba for _, lba, _ in in_flight.values()}
        lba = chance.randrange(BLOCKS // BLOCKS_EACH) * BLOCKS_EACH
        if done < commands and queue.free_tags and lba not in busy:
            begin, end = lba * scsi.BLOCK_BYTES, (lba + BLOCKS_EACH) * scsi.BLOCK_BYTES
            if chance.random() < 0.5:
                model[begin:end] = chance.randbytes(end - begin)
                request = queue.submit(scsi.write_10(lba, BLOCKS_EACH), data=model[begin:end])
                in_flight[request.tag] = request, lba, b""
            else:
                request = queue.submit(scsi.read_10(lba, BLOCKS_EACH), receive_bytes=end - begin)
                in_flight[request.tag] = request, lba, bytes(model[begin:end])
            done += 1
            continue
        with queue.reap() as request:
            _, _, expected = in_flight.pop(request.tag)
            good = request.wait() == scsi.Status.GOOD
            wrong += not good or b"".join(request.data if expected else ()) != expected
    return wrong


def main() -> int:
    """Run; exit status 1 if anything differed or anything was allocated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--commands", type=int, default=20_000)
    commands = parser.parse_args().commands
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name) / "disk"
        disk.write_bytes(bytes(BLOCKS * scsi.BLOCK_BYTES))
        with (
            ra.Arena("16MiB") as arena,
            scsi.FileTarget({0: disk}) as target,
            scsi.CommandQueue(arena, target, depth=16, nr_buffers=16, buffer_bytes=4096) as queue,
        ):
            assert capacity(queue) == BLOCKS
            before, model, begun = arena.stats(), bytearray(BLOCKS * scsi.BLOCK_BYTES), time.perf_counter()
            wrong = exchange(queue, model, commands)
            seconds = time.perf_counter() - begun
            after, data = arena.stats(), queue.data_pool.stats()
            grown = after.committed - before.committed + after.live_objects - before.live_objects
            print(f"{commands} commands, {commands / seconds:.0f} a second, {wrong} wrong")
            print(
                f"buffers from the reserve {data.gets_reserve}, from the arena {data.gets_alloc}; arena grew by {grown}"
            )
        wrong += disk.read_bytes() != bytes(model)
    return 1 if wrong or data.gets_alloc or grown else 0


if __name__ == "__main__":
    sys.exit(main())
