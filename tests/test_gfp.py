"""Flags: the kernel's names and combinations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from realalloc import gfp
from realalloc.gfp import ALL_FLAGS, gfp_names
from realalloc.mm import layout

BITS = {name: value for name, value in vars(gfp).items() if name.startswith("GFP_") and value.bit_count() == 1}


def test_combinations_are_the_kernels() -> None:
    assert gfp.GFP_RECLAIM == gfp.GFP_DIRECT_RECLAIM | gfp.GFP_KSWAPD_RECLAIM
    assert gfp.GFP_KERNEL == gfp.GFP_RECLAIM | gfp.GFP_IO | gfp.GFP_FS
    assert gfp.GFP_NOFS == gfp.GFP_KERNEL & ~gfp.GFP_FS and gfp.GFP_NOIO == gfp.GFP_NOFS & ~gfp.GFP_IO
    assert not (gfp.GFP_NOWAIT | gfp.GFP_ATOMIC) & gfp.GFP_DIRECT_RECLAIM, "neither may wait"


def test_bits_are_distinct_and_all_of_them_are_known() -> None:
    assert sum(BITS.values()) == ALL_FLAGS


def test_kernels_look_at_the_same_bits() -> None:
    assert (layout.GFP_DMA_BIT, layout.GFP_ZERO_BIT) == (gfp.GFP_DMA, gfp.GFP_ZERO)
    assert (layout.GFP_WAIT_BIT, layout.GFP_KSWAPD_BIT) == (gfp.GFP_DIRECT_RECLAIM, gfp.GFP_KSWAPD_RECLAIM)
    assert (layout.GFP_HIGH_BIT, layout.GFP_NOFAIL_BIT, layout.GFP_NORETRY_BIT) == (
        gfp.GFP_HIGH,
        gfp.GFP_NOFAIL,
        gfp.GFP_NORETRY,
    )
    assert (layout.GFP_MEMALLOC_BIT, layout.GFP_NOMEMALLOC_BIT) == (gfp.GFP_MEMALLOC, gfp.GFP_NOMEMALLOC)
    assert layout.GFP_ORDINARY == gfp.GFP_RECLAIM


def test_names_are_spelled_as_the_kernel_spells_them() -> None:
    assert gfp_names(0) == "0"
    assert gfp_names(gfp.GFP_KERNEL) == "GFP_KERNEL"
    assert gfp_names(gfp.GFP_KERNEL | gfp.GFP_ZERO) == "GFP_KERNEL|__GFP_ZERO"
    assert gfp_names(gfp.GFP_NOWAIT | gfp.GFP_DMA) == "GFP_NOWAIT|__GFP_DMA"
    assert gfp_names(gfp.GFP_ATOMIC) == "GFP_ATOMIC"
    assert gfp_names(gfp.GFP_NOIO | gfp.GFP_NORETRY) == "GFP_NOIO|__GFP_NORETRY"
    assert gfp_names(1 << 40) == "0x10000000000"


@given(st.integers(0, 2**20))
def test_names_say_every_bit_once(flags: int) -> None:
    total = 0
    for name in gfp_names(flags).split("|"):
        value = int(name, 16) if name[0] == "0" else getattr(gfp, name.removeprefix("__"))
        assert not total & value
        total |= value
    assert total == flags
