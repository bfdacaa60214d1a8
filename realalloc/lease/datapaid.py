"""Blocks for NumPy that a budget pays for: it is asked before a block is taken, and has it back when the block is free.

Guarantee: R_BUDGET is charged for what the blocks of the arena hold whole (``charged_bytes``), whatever fails; blocks of
NumPy's default handler are nobody's.
"""

from __future__ import annotations

from realalloc.lease.capi import load_at
from realalloc.lease.datablocks import (
    LARGEST,
    call_default,
    copy_bytes,
    data_free_slow,
    data_resize,
    hand_out,
    owns,
    rounded,
    take_block,
    tally,
)
from realalloc.lease.datarecord import R_ALIGN, R_BASE, R_BUDGET, R_FALLBACK, R_FALLBACKS, R_REALLOCS, R_REFUSED
from realalloc.mm.charge import charge, recharge, uncharge
from realalloc.mm.jit import Words, entry, kernel
from realalloc.mm.kmalloc import charged_bytes, kfree_slow, usable_bytes
from realalloc.mm.layout import CHARGE_ARRAYS, OK


@kernel
def _whole(words: Words, record: int, nbytes: int) -> int:
    """Return what the block that NumPy will get for ``nbytes`` charges."""
    return usable_bytes(words, rounded(words, load_at(record + R_ALIGN), nbytes), 0)


@entry
def data_alloc_charged(words: Words, record: int, nbytes: int, gfp: int) -> int:
    """Allocate what a budget pays for; where that refuses, as where there is no memory."""
    block = 0
    if 0 <= nbytes < LARGEST:
        whole = _whole(words, record, nbytes)
        if charge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole) == OK:
            block = take_block(words, record, nbytes, gfp)
            if block == 0:
                uncharge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole)
    return hand_out(record, block, nbytes, gfp)


@entry
def data_free_charged(words: Words, record: int, block: int, nbytes: int) -> int:
    """Free what a budget paid for, or what NumPy's default handler gave."""
    owned = block != 0 and owns(record, block) == 1
    whole = charged_bytes(words, block - load_at(record + R_BASE)) if owned else 0
    data_free_slow(words, record, block, nbytes)
    if whole > 0:
        uncharge(words, load_at(record + R_BUDGET), CHARGE_ARRAYS, whole)
    return OK


@entry
def data_resize_charged(words: Words, record: int, block: int, nbytes: int) -> int:
    """Return a block of ``nbytes`` with the old contents; the budget pays for what is more, beforehand."""
    base = load_at(record + R_BASE)
    b = load_at(record + R_BUDGET)
    old = charged_bytes(words, block - base) if owns(record, block) == 1 else 0
    if old <= 0:
        return data_resize(words, record, block, nbytes)
    more = max(0, _whole(words, record, nbytes) - old) if 0 <= nbytes < LARGEST else 0
    if more > 0 and recharge(words, b, CHARGE_ARRAYS, more) != OK:
        tally(record, R_REALLOCS, 1)
        moved = 0
        if load_at(record + R_FALLBACK) != 0:
            tally(record, R_FALLBACKS, 1)
            moved = call_default(record, 1, nbytes, 0)
        if moved == 0:
            tally(record, R_REFUSED, 1)
            return 0
        copy_bytes(moved, block, old)
        kfree_slow(words, block - base)
        uncharge(words, b, CHARGE_ARRAYS, old)
        return moved
    moved = data_resize(words, record, block, nbytes)
    if moved == 0:
        recharge(words, b, CHARGE_ARRAYS, -more)
    elif owns(record, moved) == 1:
        recharge(words, b, CHARGE_ARRAYS, charged_bytes(words, moved - base) - old - more)
    else:
        uncharge(words, b, CHARGE_ARRAYS, old + more)
    return moved
