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
GFP_NORETRY: Final = 0x10000

GFP_RECLAIM: Final = GFP_DIRECT_RECLAIM | GFP_KSWAPD_RECLAIM
GFP_KERNEL: Final = GFP_RECLAIM | GFP_IO | GFP_FS
GFP_NOIO: Final = GFP_RECLAIM
GFP_NOFS: Final = GFP_RECLAIM | GFP_IO
GFP_NOWAIT: Final = GFP_KSWAPD_RECLAIM | GFP_NOWARN
GFP_ATOMIC: Final = GFP_HIGH | GFP_KSWAPD_RECLAIM

ALL_FLAGS: Final = GFP_KERNEL | GFP_DMA | GFP_HIGH | GFP_ZERO | GFP_NOWARN | GFP_NORETRY

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
    "__GFP_NORETRY": GFP_NORETRY,
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
