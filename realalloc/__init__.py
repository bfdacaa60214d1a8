"""The Linux kernel's memory stack in user space, for Python: buddy, slab, kmalloc, vmalloc, mempool over real memory.

``import realalloc`` is cheap: numba is imported when the first name that needs it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from realalloc.errors import ArenaClosed, CorruptionError, InvalidFree, OutOfMemory
from realalloc.gfp import (
    GFP_ATOMIC,
    GFP_DIRECT_RECLAIM,
    GFP_DMA,
    GFP_HIGH,
    GFP_KERNEL,
    GFP_KSWAPD_RECLAIM,
    GFP_MEMALLOC,
    GFP_NOFAIL,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NOMEMALLOC,
    GFP_NORETRY,
    GFP_NOWAIT,
    GFP_NOWARN,
    GFP_RECLAIM,
    GFP_RETRY_MAYFAIL,
    GFP_ZERO,
)

if TYPE_CHECKING:
    from realalloc.arena import Arena, default_arena
    from realalloc.blocks import Pages
    from realalloc.budget import Budget
    from realalloc.budget_stats import BudgetStats
    from realalloc.cache import KmemCache
    from realalloc.callpool import CallPool
    from realalloc.fragmentation import CacheWaste, Fragmentation, ZoneFragmentation
    from realalloc.mempool import MemPool
    from realalloc.objectpool import ObjectPool
    from realalloc.pressure import Pressure, PressureTrigger
    from realalloc.records import CacheStats, PoolStats, Residency, Stats
    from realalloc.shrinker import SHRINK_EMPTY, SHRINK_STOP, Shrinker, ShrinkerStats

__version__ = "0.1.0"

_LAZY = {
    "Arena": "realalloc.arena",
    "Pages": "realalloc.blocks",
    "default_arena": "realalloc.arena",
    "Budget": "realalloc.budget",
    "BudgetStats": "realalloc.budget_stats",
    "CallPool": "realalloc.callpool",
    "CacheWaste": "realalloc.fragmentation",
    "Fragmentation": "realalloc.fragmentation",
    "ZoneFragmentation": "realalloc.fragmentation",
    "KmemCache": "realalloc.cache",
    "MemPool": "realalloc.mempool",
    "ObjectPool": "realalloc.objectpool",
    "Pressure": "realalloc.pressure",
    "PressureTrigger": "realalloc.pressure",
    "SHRINK_EMPTY": "realalloc.shrinker",
    "SHRINK_STOP": "realalloc.shrinker",
    "Shrinker": "realalloc.shrinker",
    "ShrinkerStats": "realalloc.shrinker",
    "CacheStats": "realalloc.records",
    "PoolStats": "realalloc.records",
    "Residency": "realalloc.records",
    "Stats": "realalloc.records",
}

__all__ = [
    "GFP_ATOMIC",
    "GFP_DIRECT_RECLAIM",
    "GFP_DMA",
    "GFP_HIGH",
    "GFP_KERNEL",
    "GFP_KSWAPD_RECLAIM",
    "GFP_MEMALLOC",
    "GFP_NOFAIL",
    "GFP_NOFS",
    "GFP_NOIO",
    "GFP_NOMEMALLOC",
    "GFP_NORETRY",
    "GFP_NOWAIT",
    "GFP_NOWARN",
    "GFP_RECLAIM",
    "GFP_RETRY_MAYFAIL",
    "GFP_ZERO",
    "SHRINK_EMPTY",
    "SHRINK_STOP",
    "Arena",
    "ArenaClosed",
    "Budget",
    "BudgetStats",
    "CacheStats",
    "CacheWaste",
    "CallPool",
    "CorruptionError",
    "Fragmentation",
    "InvalidFree",
    "KmemCache",
    "MemPool",
    "ObjectPool",
    "OutOfMemory",
    "Pages",
    "PoolStats",
    "Pressure",
    "PressureTrigger",
    "Residency",
    "Shrinker",
    "ShrinkerStats",
    "Stats",
    "ZoneFragmentation",
    "default_arena",
]


def __getattr__(name: str) -> Any:
    """Import a class when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'realalloc' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List lazy names too."""
    return sorted([*globals(), *_LAZY])
