"""Shared by the tests: raw arenas for the kernels, the walkers, children."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import zygote

from realalloc.memory import Memory
from realalloc.mm import geometry, layout
from realalloc.mm.buddy import validate_buddy
from realalloc.mm.budget import validate_budgets
from realalloc.mm.jit import JIT
from realalloc.mm.kmalloc import create_classes, validate_vmalloc
from realalloc.mm.kmem_cache import validate_caches
from realalloc.mm.mempool_life import validate_pools
from realalloc.mm.pcp_walkers import validate_kept_blocks
from realalloc.mm.watermark import validate_marks

PAGE = layout.PAGE_BYTES
MIB = 1 << 20


class RawArena:
    """Words of an arena without the Python faces, for tests of kernels."""

    def __init__(
        self,
        size: int = MIB,
        max_order: int = 4,
        dma: int = 0,
        limit: int | None = None,
        *,
        sheaves: bool = True,
        huge: int = layout.HUGE_NEVER,
        sizes: tuple[int, ...] = layout.KMALLOC_SIZES,
    ) -> None:
        self.plan = geometry.plan(size, max_order, dma, limit)
        self.memory = Memory(self.plan.total_bytes, self.plan.align_bytes, self.plan.window_start_bytes)
        self.words = self.memory.words
        geometry.format_words(self.words, self.plan, huge)
        self.sizes = sizes
        create_classes(self.words, sizes)
        if not sheaves:  # nothing is kept: what was freed is free
            self.words[layout.H_SHEAVES] = 0

    @property
    def pages(self) -> int:
        """Pages that the buddy manages."""
        return self.plan.end_pfn - self.plan.meta_pages

    def validate(self) -> None:
        """Run every walker."""
        walkers = (
            validate_buddy,
            validate_caches,
            validate_kept_blocks,
            validate_vmalloc,
            validate_pools,
            validate_budgets,
            validate_marks,
        )
        assert [int(walk(self.words)) for walk in walkers] == [0] * len(walkers)

    def out(self, count: int = 1) -> Any:
        """Make an output array for a kernel."""
        return np.zeros(max(count, 1), np.int64)


def run_child(code: str, *options: str, timeout: float = 240, env: dict[str, str] | None = None, **how: Any) -> Any:
    """Run code in a child, forked or ``fresh`` (see zygote.py); return the finished process (returncode, stdout, stderr)."""
    return zygote.run(*options, "-c", code, timeout=timeout, env={**os.environ, **(env or {})}, **how)


__all__ = ["JIT", "MIB", "PAGE", "RawArena", "run_child"]
