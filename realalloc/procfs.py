"""An arena in the kernel's columns, so that tools which parse /proc parse ours.

Reads words without the lock: each number is right, numbers of one text may be a few operations apart.
"""

from __future__ import annotations

from realalloc import fragmentation
from realalloc.mm import layout as at
from realalloc.mm.jit import Words
from realalloc.views import cache_stats, caches, stats
from realalloc.zones import (
    PAGE,
    ZONE_NAMES,
    free_blocks,
    page_blocks,
    unmovable_blocks,
    zone_free_pages,
    zone_pages,
    zone_words,
)

ORDERS_SHOWN = 11


def buddyinfo(words: Words) -> str:
    """Free blocks by order, a line a zone, as /proc/buddyinfo; as many columns as the arena has orders, at least 11."""
    lines = []
    for zone in range(int(words[at.H_NR_ZONES]) - 1, -1, -1):
        counts = free_blocks(words, zone)
        counts += [0] * (ORDERS_SHOWN - len(counts))
        lines.append(f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} " + "".join(f"{count:6d} " for count in counts) + "\n")
    return "".join(lines)


def _type_line(zone: int, name: str, counts: list[int]) -> str:
    columns = "".join(f"{'>' if count >= 100000 else ''}{min(count, 100000):6d} " for count in counts)
    return f"Node {0:4d}, zone {ZONE_NAMES[zone]:>8}, type {name:>12} {columns}\n"


def pagetypeinfo(words: Words) -> str:
    """Free blocks by migrate type, as /proc/pagetypeinfo. Where a zone is too small to be grouped all is Unmovable."""
    block_order = min(at.HUGE_ORDER, int(words[at.H_MAX_ORDER]))
    orders = max(ORDERS_SHOWN, int(words[at.H_MAX_ORDER]) + 1)
    text = f"Page block order: {block_order}\nPages per block:  {1 << block_order}\n\n"
    text += f"{'Free pages count per migrate type at order':<43} " + "".join(f"{k:6d} " for k in range(orders)) + "\n"
    rows = range(int(words[at.H_NR_ZONES]) - 1, -1, -1)
    for zone in rows:
        own = unmovable_blocks(words, zone)
        others = [every - mine for every, mine in zip(free_blocks(words, zone), own, strict=True)]
        more = [0] * (orders - len(own))
        text += _type_line(zone, "Unmovable", own + more) + _type_line(zone, "Movable", others + more)
    text += f"\n{'Number of blocks type ':<23}{'Unmovable':>12} {'Movable':>12} \n"
    for zone in rows:
        unmovable, movable = page_blocks(words, zone)
        text += f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} {unmovable:12d} {movable:12d} \n"
    return text


def zoneinfo(words: Words) -> str:
    """Zones in the columns of /proc/zoneinfo, pages."""
    text = ""
    for zone in range(int(words[at.H_NR_ZONES]) - 1, -1, -1):
        z = zone_words(words, zone)
        spanned = z[at.Z_END_PFN] - z[at.Z_START_PFN]
        rows = {
            "min": z[at.Z_MIN_PAGES],
            "low": z[at.Z_LOW_PAGES],
            "high": z[at.Z_HIGH_PAGES],
            "spanned": spanned,
            "present": spanned,
            "managed": zone_pages(words, zone),
        }
        text += f"Node {0:d}, zone {ZONE_NAMES[zone]:>8}\n  pages free     {zone_free_pages(words, zone)}\n"
        text += "".join(f"        {name:<8} {pages}\n" for name, pages in rows.items())
        text += f"  start_pfn:           {z[at.Z_START_PFN]}\n"
    return text


def _index_lines(words: Words, which: int) -> str:
    lines = []
    for zone in range(int(words[at.H_NR_ZONES]) - 1, -1, -1):
        every = fragmentation.indices(free_blocks(words, zone))[which]
        columns = "".join(f"{fragmentation.thousandths(index)} " for index in every)
        lines.append(f"Node {0:d}, zone {ZONE_NAMES[zone]:>8} {columns}\n")
    return "".join(lines)


def extfrag_index(words: Words) -> str:
    """Say why requests of each order fail, a line a zone, as /sys/kernel/debug/extfrag/extfrag_index."""
    return _index_lines(words, 0)


def unusable_index(words: Words) -> str:
    """Share of free pages of no use to each order, a line a zone, as /sys/kernel/debug/extfrag/unusable_index."""
    return _index_lines(words, 1)


def slabinfo(words: Words) -> str:
    """Caches, as /proc/slabinfo version 2.1."""
    text = "slabinfo - version: 2.1\n"
    text += "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    text += " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
    for c in caches(words):
        s = cache_stats(words, c)
        text += f"{s.name:<17} {s.active_objects:6d} {s.total_objects:6d} {s.stride_bytes:6d} "
        text += f"{s.objects_per_slab:4d} {1 << s.order:4d} : tunables {0:4d} {0:4d} {0:4d} : slabdata "
        text += f"{s.slabs - s.empty_slabs:6d} {s.slabs:6d} {0:6d}\n"
    return text


def vmallocinfo(words: Words) -> str:
    """Areas with their guard pages, as /proc/vmallocinfo; addresses are offsets in the arena."""
    text = ""
    granule = 1
    while granule < words[at.H_VM_FRONTIER]:
        area = int(words[at.H_VMAP]) + granule * at.AREA_WORDS
        kind = int(words[area + at.V_INFO]) & at.AREA_KIND_MASK
        if kind in (at.AREA_LIVE, at.AREA_LAZY):
            pages = int(words[area + at.V_PAGES])
            start = int(words[at.H_VM_START_BYTES]) + (granule << at.GRANULE_SHIFT)
            nbytes = (pages + 1) * PAGE
            what = f"realalloc pages={pages} vmalloc N0={pages}" if kind == at.AREA_LIVE else "unpurged vm_area"
            text += f"0x{start:016x}-0x{start + nbytes:016x} {nbytes:7d} {what}\n"
        granule += int(words[area + at.V_INFO]) >> at.AREA_GRANULES_SHIFT
    return text


def meminfo(words: Words) -> str:
    """Totals, as /proc/meminfo."""
    s = stats(words, int(words[at.H_END_PFN]) * PAGE)
    managed = s.size - s.metadata
    empty = sum(c.empty_slabs << c.order for c in (cache_stats(words, c) for c in caches(words))) * PAGE
    rows = {
        "MemTotal": managed,
        "MemFree": s.free,
        "MemAvailable": s.free + s.vmalloc_lazy + empty,
        "Mlocked": (int(words[at.ZONES + at.ZONE_WORDS + at.Z_END_PFN]) - s.metadata // PAGE) * PAGE,
        "Slab": s.slab,
        "SReclaimable": empty,
        "SUnreclaim": s.slab - empty,
        "CommitLimit": s.limit,
        "Committed_AS": s.committed,
        "VmallocTotal": int(words[at.H_VM_GRANULES]) << at.GRANULE_SHIFT,
        "VmallocUsed": s.vmalloc,
        "VmallocChunk": 0,
    }
    return "".join(f"{name + ':':<16}{value // 1024:8d} kB\n" for name, value in rows.items())
