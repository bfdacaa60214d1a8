"""The record behind NumPy's handler: the ``PyDataMem_Handler`` that NumPy reads, with options and counters behind it.

Its ``ctx`` points at itself. The R_ names are offsets in bytes. A record is read by machine code for as long as an array that
was made with it lives: whoever makes a capsule of it keeps its memory.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from realalloc.lease.capi import load_at
from realalloc.mm.layout import H_TOTAL_WORDS, HUGE_ORDER, PAGE_BYTES, WORD_BYTES

NAME_BYTES: Final = 127
R_CTX: Final = 128  # PyDataMem_Handler: name, version, then ctx and the four functions
R_FUNCTIONS: Final = 136
R_BASE: Final = 168
R_END: Final = 176  # bytes of the range
R_ALIGN: Final = 184  # a power of two, 16 to 2 MiB
R_FALLBACK: Final = 192  # 1: what the arena refuses comes from NumPy's default handler
R_DEFAULT: Final = 200  # ctx, malloc, calloc, realloc, free of that handler
R_ALLOCS: Final = 240
R_ZEROED: Final = 248
R_REALLOCS: Final = 256
R_IN_PLACE: Final = 264
R_FREES: Final = 272
R_REFUSED: Final = 280
R_FALLBACKS: Final = 288
R_BYTES: Final = 296  # ever asked for
R_BUDGET: Final = 304  # word index of the budget that pays, for the charged functions
RECORD_BYTES: Final = 312
HUGE_BYTES: Final = PAGE_BYTES << HUGE_ORDER
MIN_ALIGN: Final = 16  # what NumPy's own handler gives
MAX_ALIGN: Final = HUGE_BYTES


class Record:
    """A ``PyDataMem_Handler`` over the arena at ``base``; it may be read for ever, and outlives what it counts.

    ``default`` are the ctx and the functions of NumPy's default handler.
    """

    def __init__(
        self,
        base: int,
        align: int,
        default: tuple[int, ...],
        functions: tuple[int, ...],
        *,
        fallback: bool,
        budget: int = 0,
    ) -> None:
        """Fill it in. ``align``: a power of two, 16 to 2 MiB. ``budget``: word index of who pays, for charged functions."""
        self.memory = bytearray(RECORD_BYTES)
        self.words = memoryview(self.memory).cast("q")  # keeps it from being resized
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        struct.pack_into(f"{NAME_BYTES}sB", self.memory, 0, b"realalloc", 1)
        end = load_at(base + H_TOTAL_WORDS * WORD_BYTES) * WORD_BYTES
        given = (self.address, *functions, base, end, align, int(fallback), *default)
        struct.pack_into(f"{len(given)}q", self.memory, R_CTX, *given)
        struct.pack_into("q", self.memory, R_BUDGET, budget)

    def __getitem__(self, at: int) -> int:
        """Read a word by its R_ name."""
        return int(self.words[at // WORD_BYTES])
