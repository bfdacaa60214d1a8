"""The watermarks of an arena for Python: what ``min_free`` means in pages.

    min     ``min_free``, or "auto":  sqrt(16 * kB) kB, 128 kB at least, 256 MiB at most (kernel: calculate_min_free_kbytes)
    low     min + delta,   high = low + delta,   delta = max(min / 4, zone / 1000) (kernel: __setup_per_zone_wmarks)

The zone counts with the pages that it may use: no more than the limit. Only the ordinary zone has marks.
"""

from __future__ import annotations

import math
from typing import Any, Final

from realalloc.mm import layout as at
from realalloc.sizes import as_bytes, format_bytes

MIN_KB: Final = 128
MAX_KB: Final = 256 << 10
SCALE: Final = 10  # of 10000: the kernel's watermark_scale_factor
AUTO_SHARE: Final = 8  # "auto" takes no more than this part of a small arena
AUTO: Final = "auto"

Marks = tuple[int, int, int]


def as_min_free(value: Any) -> int | str:
    """Return ``min_free`` as whole pages, or "auto"; ValueError or TypeError for what is neither."""
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    return -(-as_bytes(value, "min_free") // at.PAGE_BYTES)


def auto_pages(managed: int) -> int:
    """Return the kernel's min mark of a zone of so many pages."""
    kilobytes = managed * (at.PAGE_BYTES >> 10)
    lowest = max(MIN_KB, min(math.isqrt(kilobytes * 16), MAX_KB))
    return min(lowest // (at.PAGE_BYTES >> 10), managed // AUTO_SHARE)


def marks_of(min_free: int | str, managed: int) -> Marks:
    """Return min, low and high in pages; ValueError where high would be the whole zone."""
    lowest = auto_pages(managed) if isinstance(min_free, str) else min_free
    if lowest == 0:
        return 0, 0, 0
    delta = max(lowest // 4, managed * SCALE // 10000)
    marks = (lowest, lowest + delta, lowest + 2 * delta)
    if marks[2] >= managed:
        raise ValueError(
            f"min_free={format_bytes(lowest * at.PAGE_BYTES)} leaves nothing: the high mark would be "
            f"{format_bytes(marks[2] * at.PAGE_BYTES)} of {format_bytes(managed * at.PAGE_BYTES)}"
        )
    return marks
