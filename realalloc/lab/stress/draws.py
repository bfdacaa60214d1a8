"""Sizes and kinds, drawn ahead of a run from its seed.

Guarantee: the same options give the same streams, on every machine. Streams have ``STREAM`` entries, a power of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from realalloc.lab.stress.kernels import FIFO, LIFO, RANDOM, STREAM
from realalloc.lab.stress.options import STYLES, Sizes

STYLE_CODES = dict(zip(STYLES, (RANDOM, FIFO, LIFO), strict=True))
Stream = npt.NDArray[np.int64]


def draw_sizes(text: str, rng: np.random.Generator) -> Stream:
    """Draw sizes in bytes from a distribution as :class:`Sizes` reads it."""
    drawn = Sizes.parse(text)
    if drawn.form == "fixed":
        return np.full(STREAM, drawn.sizes[0], np.int64)
    if drawn.form == "mix":
        weights = np.array(drawn.weights)
        return rng.choice(np.array(drawn.sizes, np.int64), STREAM, p=weights / weights.sum())
    low, high = drawn.sizes
    if drawn.form == "uniform":
        return rng.integers(low, high, STREAM, np.int64, endpoint=True)
    exact = np.exp(rng.uniform(np.log(low), np.log(high + 1), STREAM))
    return exact.astype(np.int64).clip(low, high)


def draw_kinds(
    weights: dict[str, float], kinds: tuple[str, ...], first: int, rng: np.random.Generator
) -> Stream | None:
    """Draw kinds, numbered from ``first``, by their weights; None if all of these weights are 0."""
    shares: Any = np.array([weights.get(kind, 0.0) for kind in kinds])
    if not shares.sum() > 0:
        return None
    return rng.choice(np.arange(first, first + len(kinds), dtype=np.int64), STREAM, p=shares / shares.sum())
