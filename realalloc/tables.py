"""What an arena tells of itself for Python: records, and text in the kernel's columns (:mod:`realalloc.procfs`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realalloc import procfs, views
from realalloc.fragmentation import Fragmentation
from realalloc.records import Stats


class TableMethods:
    """The part of :class:`realalloc.Arena` that is for looking."""

    if TYPE_CHECKING:
        _size: int

        @property
        def words(self) -> Any:
            """The arena's words."""

    def stats(self) -> Stats:
        """Return a cheap immutable record of where the memory is."""
        return views.stats(self.words, self._size)

    def buddyinfo(self) -> str:
        """Free blocks by order, as ``/proc/buddyinfo``."""
        return procfs.buddyinfo(self.words)

    def pagetypeinfo(self) -> str:
        """Free blocks by migrate type, as ``/proc/pagetypeinfo``."""
        return procfs.pagetypeinfo(self.words)

    def extfrag_index(self) -> str:
        """Why requests of each order would fail, as ``/sys/kernel/debug/extfrag/extfrag_index``; see docs/fragmentation.md."""
        return procfs.extfrag_index(self.words)

    def unusable_index(self) -> str:
        """Share of free pages of no use to each order, as ``/sys/kernel/debug/extfrag/unusable_index``."""
        return procfs.unusable_index(self.words)

    def fragmentation(self) -> Fragmentation:
        """Survey free blocks, the largest requests that can be served, waste in slabs. Walks every block, with the lock."""
        return views.report_fragmentation(self.words)

    def zoneinfo(self) -> str:
        """Zones and their watermarks, as ``/proc/zoneinfo``; see docs/watermarks.md."""
        return procfs.zoneinfo(self.words)

    def slabinfo(self) -> str:
        """Caches, as ``/proc/slabinfo`` version 2.1."""
        return procfs.slabinfo(self.words)

    def vmallocinfo(self) -> str:
        """Areas, as ``/proc/vmallocinfo``."""
        return procfs.vmallocinfo(self.words)

    def meminfo(self) -> str:
        """Totals, as ``/proc/meminfo``."""
        return procfs.meminfo(self.words)
