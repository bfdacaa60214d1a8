"""Making a pool: ``arena.mempool`` has one verb for all kinds; here its options are checked, and the kind is chosen.

``size``, ``cache``, ``order`` and ``struct`` make a :class:`realalloc.mempool.MemPool` of memory. ``alloc_fn`` makes an
:class:`realalloc.objectpool.ObjectPool` of any Python objects, or a :class:`realalloc.callpool.CallPool` if it is native.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from realalloc.budget import Budget, check_budget
from realalloc.callpool import CallPool, is_machine_code
from realalloc.elements import Struct
from realalloc.gfp import GFP_DMA
from realalloc.mempool import MemPool
from realalloc.mm import layout
from realalloc.objectpool import ObjectPool
from realalloc.sizes import as_gfp, as_int

if TYPE_CHECKING:
    from realalloc.arena import Arena
    from realalloc.cache import KmemCache

ORDERS = {
    "reserve-first": layout.ORDER_RESERVE_FIRST,
    "alloc-first": layout.ORDER_ALLOC_FIRST,
    "reserve-only": layout.ORDER_RESERVE_ONLY,
}
WIPES = ("never", "on_alloc", "on_free")


def make_pool(
    arena: Arena,
    min_nr: int,
    *,
    size: int | None = None,
    cache: KmemCache | None = None,
    pages: int | None = None,
    order: int | str = "reserve-first",
    struct: Any = None,
    ctor: Callable[[Any], object] | None = None,
    alloc_fn: Callable[[Any, int], Any] | None = None,
    free_fn: Callable[[Any], object] | None = None,
    pool_data: Any = None,
    gfp: int = 0,
    locked: bool = False,
    zero: str = "never",
    poison: str = "never",
    low: int = 0,
    high: int | None = None,
    track: bool = False,
    views: str = "fresh",
    budget: Budget | None = None,
) -> MemPool | ObjectPool | CallPool:
    """Make a pool of ``min_nr`` reserved elements, all of them allocated (and prefaulted) now.

    Exactly one backing: ``size=bytes`` (kmalloc), ``cache=``, ``order=n`` with an integer (blocks of ``4096 << n`` bytes,
    also ``pages=n``), ``struct=`` (a ctypes Structure or NumPy dtype, whose instances are handed out, each initialised once by
    ``ctor``), or ``alloc_fn=`` with ``free_fn=``, both Python functions or both of ``numba.cfunc``. ``order="alloc-first"``
    asks the backing before the reserve, ``"reserve-only"`` waits instead of asking it: there are never more than ``min_nr``.
    ``gfp=GFP_DMA`` or ``locked=True`` takes elements from the locked zone. ``zero`` and ``poison`` ("never", "on_alloc",
    "on_free") overwrite elements; free elements' poison is checked. A free that leaves fewer than ``low`` elements in the
    reserve tops it up to ``high``. ``track`` notes who takes elements, for ``holders()``. ``views="ready"`` builds the view of
    an element when it comes back, not when it is taken: ``alloc()`` then costs a third, and a release more.
    ``budget`` pays for every element, in reserve or out; where the pool stands on a cache, give it to the cache.
    Raises OutOfMemory, with nothing kept, if the reserve cannot be filled.
    """
    if not isinstance(order, str):
        if pages is not None:
            raise ValueError("give order or pages, not both")
        order, pages = "reserve-first", as_int(order, "order")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, or an integer, not {order!r}")
    backings = {"size": size, "cache": cache, "order": pages, "struct": struct, "alloc_fn": alloc_fn}
    given = [name for name, value in backings.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"a pool needs exactly one of {', '.join(backings)}; got {', '.join(given) or 'none'}")
    count = as_int(min_nr, "min_nr")
    check_budget(arena, budget)
    if budget is not None and (cache is not None or alloc_fn is not None):
        raise ValueError("budget is for memory of the pool's own: give it to the cache, or enter it in alloc_fn")
    marks = _watermarks(count, low, high)
    if views not in ("fresh", "ready"):
        raise ValueError(f'views must be "fresh" or "ready", not {views!r}')
    if views == "ready" and (track or order == "alloc-first" or (zero, poison) != ("never", "never")):
        raise ValueError('views="ready" serves the reserve as it is: not with alloc-first, zero, poison or track')
    if views == "ready" and (struct is not None or alloc_fn is not None):
        raise ValueError('views="ready" is for memoryviews, not for struct or alloc_fn')
    if alloc_fn is not None:
        if free_fn is None:
            raise ValueError("alloc_fn needs free_fn")
        if locked or gfp or (zero, poison) != ("never", "never"):
            raise ValueError("locked, gfp, zero and poison are for memory, not for the objects of an alloc_fn")
        asked = ORDERS[order]
        if is_machine_code(alloc_fn) or is_machine_code(free_fn):
            if track:
                raise ValueError("track is not for pools of machine code")
            return CallPool(arena, count, alloc_fn, free_fn, pool_data, order=asked, watermarks=marks)
        return ObjectPool(arena, count, alloc_fn, free_fn, pool_data, order=asked, watermarks=marks, track=track)
    if free_fn is not None:
        raise ValueError("free_fn needs alloc_fn")
    if ctor is not None and struct is None:
        raise ValueError("ctor needs struct; for bytes give it to the cache")
    flags = as_gfp(gfp) | (GFP_DMA if locked else 0)
    kind = None if struct is None else Struct(struct)
    wipe = _wipe_bits(zero, poison)
    own = None
    if kind is not None:
        size = kind.nbytes
        if ctor is not None:
            make = kind.maker(ctor)
            own = cache = arena.kmem_cache(
                f"mempool-{kind.name}"[:31], size, align=kind.align, ctor=make, gfp=flags, budget=budget
            )
            size = budget = None
    if cache is not None and cache._ctor is not None and wipe:
        raise ValueError("zero and poison would destroy the constructed state of the cache's objects")
    try:
        return MemPool(
            arena, count, size=size, cache=cache, pages=pages, order=ORDERS[order], gfp=flags, kind=kind,
            wipe=wipe, watermarks=marks, track=track, own=own, ready=views == "ready", budget=budget,
        )  # fmt: skip
    except BaseException:
        if own is not None:
            own.destroy()
        raise


def _watermarks(count: int, low: Any, high: Any) -> tuple[int, int]:
    below = as_int(low, "low")
    above = max(1, count) if high is None else as_int(high, "high")
    if not below <= above <= max(1, count):
        raise ValueError(f"low <= high <= min_nr must hold, not {below}, {above}, {count}")
    return below, above


def _wipe_bits(zero: str, poison: str) -> int:
    for name, value in (("zero", zero), ("poison", poison)):
        if value not in WIPES:
            raise ValueError(f"{name} must be one of {', '.join(WIPES)}, not {value!r}")
    if zero == poison != "never":
        raise ValueError(f"zero and poison cannot both be {zero!r}")
    bits = (0, layout.WIPE_ZERO_ON_ALLOC, layout.WIPE_ZERO_ON_FREE)[WIPES.index(zero)]
    return bits | (0, layout.WIPE_POISON_ON_ALLOC, layout.WIPE_POISON_ON_FREE)[WIPES.index(poison)]
