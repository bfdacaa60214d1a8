"""Who takes part inside jitted code: realalloc in a fresh arena, every native allocator that is there, and nobody.

Guarantees: a peer has one ``how`` a thread, and where a layer is around it one state a thread, for as long as it lives. When
``jitted_peers`` ends, the arena must be whole and empty: a workload that leaves objects behind is an error, not a result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

import realalloc as ra
from realalloc.lab import recorder
from realalloc.lab.latencies import Latency
from realalloc.lab.loops import bare, kinds, layers
from realalloc.lab.loops.kinds import Functions
from realalloc.lab.loops.layers import CHECKED, PLAIN, TIMED
from realalloc.lab.measure import WorkDiffers
from realalloc.lab.natives import Native

OURS: Final = "realalloc"
OURS_FINE: Final = "realalloc, fine classes"  # where memory is measured only
HARNESS: Final = "harness alone"
BARE: Final = "bare stacks"
RESERVE: Final = "1GiB"  # reserving costs nothing; no workload comes near it

_STATES: Final[dict[str, Callable[[], Any]]] = {TIMED: recorder.make, CHECKED: layers.make_tally}


class Peer:
    """An allocator with a layer around it: ``loops``, and ``how(thread)``, what they take first."""

    def __init__(self, name: str, functions: Functions, inner: Callable[[int], Any], layer: str = PLAIN) -> None:
        """Choose the layer; nothing is compiled yet."""
        self.name = name
        self.layer = layer
        self.loops: SimpleNamespace = layers.loops(functions, layer)
        self._functions = functions
        self._inner = inner
        self._hows: dict[int, Any] = {}
        self._states: dict[int, Any] = {}
        self._recorders: list[Any] = []

    def how(self, thread: int = 0) -> Any:
        """Return what a thread's loops take first: always the same for the same thread."""
        if thread not in self._hows:
            self._hows[thread] = self._inner(thread)
            if self.layer in _STATES:
                self._states[thread] = _STATES[self.layer]()
                self._hows[thread] = (self._hows[thread], self._states[thread])
        return self._hows[thread]

    def layered(self, layer: str) -> Peer:
        """Return the same allocator with another layer around it."""
        return Peer(self.name, self._functions, self._inner, layer)

    def recorder(self) -> Any:
        """Make a recorder for a loop that times requests itself; ``latencies`` tells what is in it."""
        self._recorders.append(recorder.make())
        return self._recorders[-1]

    def latencies(self) -> tuple[Latency, ...]:
        """Return what the layer ``timed`` recorded, and loops that time themselves."""
        return recorder.latencies([*self._recorders, *(self._states.values() if self.layer == TIMED else ())])

    def checksum(self) -> int:
        """Return what the layer ``checked`` counted."""
        return layers.checksum(list(self._states.values()))


def ours(words: Any) -> Peer:
    """Return realalloc, on an arena's words."""
    return Peer(OURS, kinds.OURS, lambda _thread: words)


def native(found: Native) -> Peer:
    """Return an allocator that is called by address."""
    how = np.array([found.alloc, found.free, found.realloc], np.int64)
    return Peer(found.name, kinds.NATIVE, lambda _thread: how)


def nobody(objects: int = kinds.FEW) -> Peer:
    """Return what costs nothing: objects that are there already."""
    return Peer(HARNESS, kinds.CONTROL, lambda thread: kinds.control_how(thread, objects))


@contextlib.contextmanager
def bare_stacks() -> Iterator[Peer]:
    """Give what is left of an allocator without checks, locks and threads: the floor under a row of one thread."""
    how, memory = bare.bare_how()
    yield Peer(BARE, bare.BARE, lambda _thread: how)
    how[0] = 0  # its addresses are nobody's from here on
    del memory


@contextlib.contextmanager
def jitted_peers(
    natives: Sequence[Native], *, with_ours: bool = True, reserve: str | int = RESERVE
) -> Iterator[list[Peer]]:
    """Give ours, in a fresh arena, and natives; WorkDiffers if anything is left afterwards, and structures must be sound."""
    others = [native(found) for found in natives]
    if not with_ours:
        yield others
        return
    with ra.Arena(reserve) as arena:
        yield [ours(arena.words), *others]
        try:
            arena.validate()
        except ra.CorruptionError as error:
            raise WorkDiffers(f"the arena was damaged: {error}") from error
        stats = arena.stats()
        left = stats.live_objects + stats.live_blocks + stats.live_areas
        if left:
            raise WorkDiffers(f"{left} objects were left behind")
