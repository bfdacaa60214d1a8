"""How much memory an arena holds, for Python: the limit, decay, trimming, and the books compared with the system.

Guarantees: what these give back is free memory alone; pages in use are never touched. Bytes that are returned as given back
did hold memory, by the books.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from realalloc import pressure, views, zones
from realalloc.lease import kswapd
from realalloc.mm import layout
from realalloc.mm.commit import purge, set_limit
from realalloc.mm.decay import serve, set_decay
from realalloc.mm.hollow import VECTOR_WORDS, hollow
from realalloc.mm.reclaim import reclaim, retreat, trim_span
from realalloc.mm.watermark import set_marks
from realalloc.pressure import Pressure, PressureTrigger
from realalloc.records import Residency
from realalloc.sizes import as_bytes, as_decay_ns, format_bytes
from realalloc.watermark import as_min_free, marks_of
from realalloc.zones import zone_pages

if TYPE_CHECKING:
    from realalloc.arena import Arena


class FootprintMethods:
    """What an arena says and does about the memory that it holds."""

    _is_served: bool
    _min_free: int | str

    if TYPE_CHECKING:

        @property
        def words(self) -> Any:
            """The arena's words."""

    def set_limit(self, limit: int | str | None) -> None:
        """Move the limit on committed bytes, None for all; free memory above it goes back at once. Watermarks move with it.

        ValueError, with the limit where it was, if more than that is in use, or ``min_free`` would leave nothing.
        """
        words = self.words
        start, end = (int(words[layout.ZONES + word]) for word in (layout.Z_START_PFN, layout.Z_END_PFN))
        pages = end if limit is None else as_bytes(limit, "limit", layout.PAGE_BYTES) >> layout.PAGE_SHIFT
        target = start - int(words[layout.H_META_PAGES]) + min(end - start, pages)
        marks = marks_of(self._min_free, min(end - start, pages))
        status = set_limit(words, target)
        if status != layout.OK:
            reclaim(words)
            status = set_limit(words, target)
        if status != layout.OK:
            used = format_bytes(int(words[layout.H_ALLOCATED_PAGES]) * layout.PAGE_BYTES)
            raise ValueError(f"limit {limit} is below what is in use: {used}; free some first")
        set_marks(words, layout.ZONE_NORMAL, *marks)

    def set_min_free(self, min_free: int | str) -> None:
        """Set what ordinary requests leave free, in bytes: the min watermark; "auto": by the kernel's formula, 0: nothing.

        ValueError, with the marks where they were, if the high one would be all there is. See docs/watermarks.md.
        """
        self._set_marks(as_min_free(min_free))

    def _set_marks(self, wanted: int | str) -> None:
        words = self.words
        marks = marks_of(wanted, zone_pages(words, layout.ZONE_NORMAL))
        self._min_free = wanted
        set_marks(words, layout.ZONE_NORMAL, *marks)
        self._serve()

    def set_decay(self, decay: float | None) -> None:
        """Set after how many seconds freed memory has gone back, from now on; 0: at once, None: never by itself."""
        decay_ns = as_decay_ns(decay)
        set_decay(self.words, decay_ns)
        self._serve()

    def _serve(self) -> None:
        """Have kswapd look after this arena, where it can and there is something to do."""
        words = self.words
        wanted = words[layout.DECAY + layout.Y_NS] >= 0 or words[layout.ZONES + layout.Z_LOW_PAGES] != 0
        if self._is_served and wanted and kswapd.start():
            serve(words, 1, kswapd.bell())

    def residency(self) -> Residency:
        """Compare the books with the system, page by page (mincore(2)); exact while nobody touches what is not allocated."""
        return views.residency(self.words)

    def pressure(self) -> Pressure:
        """Return how long allocations have stalled for want of memory; its text is that of /proc/pressure/memory."""
        return pressure.read(self.words)

    def pressure_trigger(self, kind: str = "some", *, stall: float = 0.15, window: float = 1.0) -> PressureTrigger:
        """Make an fd that becomes readable when allocations have stalled for ``stall`` seconds within ``window`` seconds.

        ``kind``: ``"some"`` or ``"full"``. ValueError or TypeError for what is none of that, or beyond 16 triggers.
        """
        return PressureTrigger(cast("Arena", self), kind, stall, window)

    def trim(self, keep: int | str = 0) -> int:
        """Give memory that is not in use back to the system, all but about ``keep`` bytes; return the bytes that went.

        With ``keep=0`` slabs that are partly in use give back the pages in them that are not; those stay committed.
        """
        words = self.words
        hollowed = 0
        before = int(words[layout.H_COMMITTED_PAGES])
        kept = as_bytes(keep, "keep") >> layout.PAGE_SHIFT
        reclaim(words)
        if kept:
            purge(words, max(0, zones.dirty_pages(words) - kept), 0, 1)
        else:
            dropped = np.zeros(1, np.int64)
            pfn = 0
            while (pfn := int(trim_span(words, layout.ZONE_NORMAL, pfn, dropped))) != 0:
                pass
            retreat(words, layout.ZONE_NORMAL)
            scratch = np.zeros(VECTOR_WORDS, np.int64)
            hollowed = sum(int(hollow(words, c, scratch)) for c in views.caches(words))
        return (max(0, before - int(words[layout.H_COMMITTED_PAGES])) + hollowed) << layout.PAGE_SHIFT
