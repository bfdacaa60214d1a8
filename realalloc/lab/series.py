"""Numbers over time: the resident set while something runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

MOST_SAMPLES: Final = 2000  # of a line over time: more than a chart has pixels


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers over one time axis, all columns of its length; NaN where nothing was seen."""

    seconds: tuple[float, ...]
    columns: dict[str, tuple[float, ...]]
    unit: str = "bytes"

    def extent(self, column: str) -> tuple[float, float, float] | None:
        """Return the first, the largest and the last number of a column; None where nothing was seen."""
        seen = [value for value in self.columns[column] if math.isfinite(value)]
        return (seen[0], max(seen), seen[-1]) if seen else None

    def line(self, column: str, most: int = MOST_SAMPLES) -> tuple[list[float], list[float]]:
        """Return (seconds, values) to draw: all of them, or of equal stretches the smallest and the largest each."""
        values = np.asarray(self.columns[column], np.float64)
        if len(values) <= most:
            return list(self.seconds), values.tolist()
        kept: list[int] = []
        for part in np.array_split(np.arange(len(values)), max(most // 2, 1)):
            piece = values[part]
            ends = {0} if np.isnan(piece).all() else {int(np.nanargmin(piece)), int(np.nanargmax(piece))}
            kept += sorted(int(part[end]) for end in ends)
        return [self.seconds[k] for k in kept], values[kept].tolist()
