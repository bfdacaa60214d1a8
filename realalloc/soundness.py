"""Walkers, run where something may be damaged: what is broken becomes a CorruptionError, never a crash.

The header comes first, since walkers go by it; then each walker looks at an index before it follows it.
"""

from __future__ import annotations

from collections.abc import Callable

from realalloc.errors import CorruptionError, describe_broken
from realalloc.lease.threadword import is_taken
from realalloc.mm import layout
from realalloc.mm.header import is_whole
from realalloc.mm.jit import Words


def check(words: Words, *walks: Callable[[Words], int]) -> None:
    """Run walkers; CorruptionError names the first broken invariant."""
    kept_at = int(words[layout.KEPT_AT])  # what is there is read in the thread's descriptor
    if not is_whole(words) or (kept_at != 0 and not is_taken(kept_at)):
        raise CorruptionError(describe_broken(layout.BAD_HEADER))
    for walk in walks:
        status = int(walk(words))
        if status != layout.OK:
            raise CorruptionError(describe_broken(status))
