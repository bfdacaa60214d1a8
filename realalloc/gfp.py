"""Allocation flags, named and combined as in the kernel (``include/linux/gfp_types.h``), double underscores dropped.

Flags without a meaning in an arena are left out. The values of the bits are ours; GFP_DMA is bit 0 and GFP_ZERO bit 8.
"""

from __future__ import annotations

from typing import Final

GFP_DMA: Final = 0x01  # from the locked zone
GFP_HIGH: Final = 0x20  # high priority
GFP_IO: Final = 0x40  # part of GFP_KERNEL; no effect
GFP_FS: Final = 0x80  # part of GFP_KERNEL; no effect
GFP_ZERO: Final = 0x100  # the block reads as zero
GFP_DIRECT_RECLAIM: Final = 0x400  # the caller may wait
GFP_KSWAPD_RECLAIM: Final = 0x800
GFP_NOWARN: Final = 0x2000
GFP_RETRY_MAYFAIL: Final = 0x4000  # tries all there is, and may fail; also for a contiguous block of kvmalloc
GFP_NOFAIL: Final = 0x8000  # waits until it is served
GFP_NORETRY: Final = 0x10000  # takes memory back once
GFP_MEMALLOC: Final = 0x20000  # down to the last page
GFP_NOMEMALLOC: Final = 0x80000  # no part of the reserve for not waiting; wins over GFP_MEMALLOC

GFP_RECLAIM: Final = GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM
GFP_KERNEL: Final = GFP_RECLAIM | GFP_IO | GFP_FS
GFP_NOIO: Final = GFP_RECLAIM
GFP_NOFS: Final = GFP_RECLAIM | GFP_IO
GFP_NOWAIT: Final = GFP_KSWAPD_RECLAIM | GFP_NOWARN
GFP_ATOMIC: Final = GFP_HIGH | GFP_KSWAPD_RECLAIM

_RETRIES: Final = GFP_NORETRY | GFP_RETRY_MAYFAIL | GFP_NOFAIL
ALL_FLAGS: Final = GFP_KERNEL | GFP_DMA | GFP_HIGH | GFP_ZERO | GFP_NOWARN | _RETRIES | GFP_MEMALLOC | GFP_NOMEMALLOC

_NAMES = {
    "GFP_KERNEL": GFP_KERNEL,
    "GFP_NOFS": GFP_NOFS,
    "GFP_NOIO": GFP_NOIO,
    "GFP_NOWAIT": GFP_NOWAIT,
    "GFP_ATOMIC": GFP_ATOMIC,
    "__GFP_DMA": GFP_DMA,
    "__GFP_HIGH": GFP_HIGH,
    "__GFP_IO": GFP_IO,
    "__GFP_FS": GFP_FS,
    "__GFP_ZERO": GFP_ZERO,
    "__GFP_DIRECT_RECLAIM": GFP_DIRECT_RECLAIM,
    "__GFP_KSWAPD_RECLAIM": GFP_KSWAPD_RECLAIM,
    "__GFP_NOWARN": GFP_NOWARN,
    "__GFP_RETRY_MAYFAIL": GFP_RETRY_MAYFAIL,
    "__GFP_NOFAIL": GFP_NOFAIL,
    "__GFP_NORETRY": GFP_NORETRY,
    "__GFP_MEMALLOC": GFP_MEMALLOC,
    "__GFP_NOMEMALLOC": GFP_NOMEMALLOC,
}


def gfp_names(gfp: int) -> str:
    """Spell flags as the kernel's ``%pGg`` does: ``GFP_KERNEL|__GFP_ZERO``."""
    left = gfp
    names = []
    for name, bits in _NAMES.items():
        if left & bits == bits:
            names.append(name)
            left &= ~bits
    return "|".join([*names, *([hex(left)] if left else [])]) or "0"
