"""What the workloads ask for: sizes and slots as int32 arrays, drawn once with fixed seeds, or read from recorded traces."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST = 8  # every object has its first 8 bytes written
SMALL_MIX = (16, 32, 48, 64, 96, 128, 192, 256)
SH6_STARTS = (1, 2, 4, 7, 11, 17, 26, 40, 61, 92, 139, 209, 314, 472, 709)
XMALLOC_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# How often alloc-test goes to a range of its slots, and how many of them are in it: 80 to 20, seven times.
PARETO_OFTEN = (0.262, 0.393, 0.246, 0.082, 0.0154, 0.0015, 0.0001)
PARETO_WIDE = (0.0001, 0.0015, 0.0154, 0.082, 0.246, 0.393, 0.262)
SH8_COUNTS = {
    8: 1000,
    16: 5000,
    48: 1000,
    72: 100,
    148: 100,
    200: 100,
    520: 10,
    1056: 5,
    4096: 3,
    9162: 1,
    34562: 1,
    168524: 1,
}


class Operations(NamedTuple):
    """A stream of (slot, size): allocate into the slot, or free it where the size is negative."""

    name: str
    places: int
    warm: int  # so many operations only build the initial heap
    slots: Array
    sizes: Array


def _dice(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def slots(places: int, number: int, seed: int = 1) -> Array:
    """Draw slots uniformly."""
    return _dice(seed).integers(0, places, number, dtype=np.int32)


def log_uniform(low: int, high: int, number: int, seed: int = 2) -> Array:
    """Draw sizes whose logarithms are uniform."""
    return np.exp(_dice(seed).uniform(np.log(low), np.log(high + 1), number)).astype(np.int32)


def uniform(low: int, high: int, number: int, seed: int = 3) -> Array:
    """Draw sizes from low to high - 1."""
    return _dice(seed).integers(low, high, number, dtype=np.int32)


def inverse_square(low: int, high: int, number: int, seed: int = 4) -> Array:
    """Draw sizes with a density ~ 1 / size squared."""
    share = _dice(seed).uniform(0, 1, number)
    return np.maximum(1 / (1 / low - share * (1 / low - 1 / high)), LEAST).astype(np.int32)


def mix(number: int, seed: int = 5) -> Array:
    """Draw from eight small sizes."""
    return _dice(seed).choice(np.array(SMALL_MIX, np.int32), number)


def xmalloc(number: int, seed: int = 16) -> Array:
    """Draw from the sizes of xmalloc."""
    return _dice(seed).choice(np.array(XMALLOC_SIZES, np.int32), number)


def tents(low: int, high: int, number: int, seed: int = 17) -> Array:
    """Draw the sizes of rptest, most of them small; multiples of 8."""
    u = _dice(seed).uniform(0, 1, (3, number))
    return (low + (high - low) * u[2] * np.abs(1 - u[0] - u[1])).astype(np.int32) & ~7


def ruler(number: int, seed: int = 18) -> Array:
    """Draw the sizes of alloc-test: half of them up to 8, a quarter up to 16, and so on up to 1024."""
    order = np.minimum(_dice(seed).geometric(0.5, number) - 1, 7)
    return np.maximum((_dice(seed + 1).uniform(1, 2, number) * (4 << order)).astype(np.int32) + 1, LEAST)


def pareto(places: int, number: int, seed: int = 20) -> Array:
    """Draw slots, most of them few, these all over the place."""
    dice = _dice(seed)
    ends = np.cumsum(PARETO_WIDE) / sum(PARETO_WIDE) * places
    which = dice.choice(len(ends), number, p=np.array(PARETO_OFTEN) / sum(PARETO_OFTEN))
    drawn = dice.uniform(np.concatenate([[0], ends[:-1]])[which], ends[which]).astype(np.int64)
    return dice.permutation(places)[np.minimum(drawn, places - 1)].astype(np.int32)


def order(kind: str, count: int, seed: int = 6) -> Array:
    """Return in which order a batch is freed: LIFO, FIFO, shuffled, or glibc-simple: half in order, the rest backwards."""
    inorder = np.arange(count, dtype=np.int32)
    if kind == "LIFO":
        return inorder[::-1].copy()
    if kind == "glibc-simple":
        return np.concatenate([inorder[: count // 2], inorder[count // 2 :][::-1]])
    return inorder if kind == "FIFO" else _dice(seed).permutation(inorder)


def sh6_sizes() -> list[int]:
    """Return runs of one size each, halved again and again."""
    out = []
    for start in SH6_STARTS:
        size = start
        while size:
            out += [max(size, LEAST)] * (250 if size < 100 else 50)
            size //= 2
    return out


def sh8_sizes() -> list[int]:
    """Return a histogram, round robin."""
    return [size for turn in range(max(SH8_COUNTS.values())) for size, count in SH8_COUNTS.items() if turn < count]


def ring(name: str, sizes: list[int], places: int, passes: int) -> Operations:
    """Fill a ring of slots again and again; before each pass free all but a window that moves on by a fifth.

    Below the window in the order of allocation, above it backwards. The stream ends with nothing allocated.
    """
    made_slots, made_sizes = [], []
    taken = 0
    width = places // 5
    start, end = 0, 0
    for _ in range(passes):
        fresh = np.concatenate([np.arange(start), np.arange(end, places)])
        made_slots.append(fresh)
        made_sizes.append(np.array([sizes[(taken + k) % len(sizes)] for k in range(len(fresh))]))
        taken += len(fresh)
        start = end if end < places else 0
        end = min(start + width, places)
        freed = np.concatenate([np.arange(start), np.arange(end, places)[::-1]])
        made_slots.append(freed)
        made_sizes.append(np.full(len(freed), -1))
    made_slots.append(np.arange(start, end))
    made_sizes.append(np.full(end - start, -1))
    joined = [np.concatenate(part).astype(np.int32) for part in (made_slots, made_sizes)]
    return Operations(name, places, 0, *joined)


def load_traces(directory: str) -> list[Operations]:
    """Read the recorded traces, ``*.trc.xz``: int32 slots, warm, operations; then pairs of slot and size, -1 frees."""
    found = []
    for path in sorted(Path(directory).glob("*.trc.xz")):
        data = np.frombuffer(lzma.decompress(path.read_bytes()), np.dtype("<i4")).astype(np.int32)
        places, warm, number = (int(value) for value in data[:3])
        pairs = data[3 : 3 + 2 * number].reshape(-1, 2)
        sizes = np.where(pairs[:, 1] < 0, -1, np.maximum(pairs[:, 1], LEAST))
        found.append(Operations(path.name.partition(".")[0], places, warm, pairs[:, 0].copy(), sizes.astype(np.int32)))
    return found


def bursts(number: int, mean_burst: int, mean_gap_ns: float, seed: int = 21) -> Array:
    """Draw when requests are due, in ns from 0: bursts of a geometric number at once, exponential pauses between them."""
    dice = _dice(seed)
    sizes = dice.geometric(1 / mean_burst, number)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    starts = starts[starts < number].astype(np.int64)
    pauses = dice.exponential(mean_gap_ns * mean_burst, len(starts))
    when = np.zeros(number)
    when[starts] = pauses
    return np.cumsum(when)
