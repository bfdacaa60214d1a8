"""The range of an arena: reserved, advised on huge pages, locked and prefaulted where asked, and formatted.

From then on forks, and threads that end, know of it (:mod:`realalloc.lease.forks`), and it stays mapped while its words live.
"""

from __future__ import annotations

from realalloc.errors import OutOfMemory
from realalloc.lease import (
    forks,
    pin,
)
from realalloc.memory import Memory
from realalloc.mm import geometry, layout
from realalloc.mm.atomic import bias
from realalloc.mm.buddy import reach
from realalloc.mm.kmalloc import create_classes
from realalloc.sizes import format_bytes


def reserve_range(plan: geometry.Plan, huge: int, sizes: tuple[int, ...], *, prefault: bool) -> Memory:
    """Reserve, advise, lock and format the range of an arena; OutOfMemory, with nothing kept, names the knob."""
    page = layout.PAGE_BYTES
    wanted = min(plan.end_pfn - plan.dma_end_pfn, plan.limit_pages)
    if huge == layout.HUGE_ALWAYS and wanted < plan.end_pfn - plan.dma_end_pfn:  # no unit of 2 MiB is half committed
        wanted = max(0, ((plan.dma_end_pfn + wanted) & -layout.HUGE_PAGES) - plan.dma_end_pfn)
    normal = (plan.dma_end_pfn * page, wanted * page)
    locked = (plan.meta_pages * page, (plan.dma_end_pfn - plan.meta_pages) * page)
    knob = "the address space (ulimit -v, vm.overcommit_memory)"
    try:
        memory = Memory(plan.total_bytes, plan.align_bytes, plan.window_start_bytes)
        memory.advise_huge(0, plan.window_start_bytes, wanted=huge == layout.HUGE_ALWAYS)
        memory.advise_huge(0, plan.meta_pages * page, wanted=False)
        tail = (plan.end_pfn & -layout.HUGE_PAGES) * page  # what is no whole unit of the arena's stays in small pages
        if tail < plan.window_start_bytes:
            memory.advise_huge(tail, plan.window_start_bytes - tail, wanted=False)
        if locked[1]:
            knob = f"RLIMIT_MEMLOCK (ulimit -l) for lock={locked[1]}"
            memory.lock(*locked)
        if prefault and wanted:
            knob = "memory for prefault=True, or lower limit="
            memory.commit(*normal)
    except OSError as error:
        raise OutOfMemory(f"cannot reserve {format_bytes(plan.total_bytes)}: {error.strerror}; raise {knob}") from None
    words = memory.words
    geometry.format_words(words, plan, huge)
    create_classes(words, sizes)
    if locked[1]:
        reach(words, layout.ZONE_DMA, locked[1] // page)
    if prefault:
        reach(words, layout.ZONE_NORMAL, wanted)
    pin(words, memory.mapping)
    forks.watch(memory.address)
    bias(words)
    return memory
