"""The memoryview is the lease: exporters that give their block back when the last view of it is gone.

A block reaches Python as ``memoryview(exporter)``. Slices, casts and ``np.frombuffer`` arrays share that view's managed
buffer, which holds the exporter; when the last of them dies, the exporter's ``tp_dealloc`` frees the block: once, on
whatever thread, inside a collection or at interpreter exit. This package alone knows CPython's C API, all of it stable
ABI; the slots of the exporter type and the allocating builtins are numba cfuncs, made when the first arena is.

Guarantees: between taking a block and owning it there is no Python bytecode, so no signal can lose it. H_LEASES counts
live exporters; the mapping stays while there are any. Machine code, type and method tables are never freed.
Invariant: H_LEASES = live exporters + builtins in flight, H_LINGERING = those with TAG_LINGERS.
Without jit the same exporter type is a Python subclass with ``__del__``, and the builtins are closures.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from typing import Any

from realalloc.errors import InvalidFree
from realalloc.lease.blocks import OWNER_SHIFT, TAG_LINGERS, VERB_MASK, linger
from realalloc.lease.capi import immortal, store_at
from realalloc.lease.exporter import Jitted
from realalloc.lease.plain import Plain
from realalloc.lease.slots import CONTEXT_WORDS, X_GATE, X_LENGTH, X_OWNER, X_TAG
from realalloc.lease.spares import E_LENGTH, E_TAG
from realalloc.mm.jit import JIT, Words
from realalloc.mm.layout import H_OWNER, WORD_BYTES

_made: list[Jitted | Plain] = []


def factory() -> Jitted | Plain:
    """Return the one maker of leases, built (and compiled) at the first call."""
    if not _made:
        _made.append(Jitted() if JIT else Plain())
    return _made[0]


def make_context(gate: Any, owner: int, length: int, tag: int) -> Any:
    """Make the context words of an allocating builtin."""
    context = (ctypes.c_int64 * CONTEXT_WORDS)()
    context[X_GATE // WORD_BYTES] = ctypes.addressof(gate)
    context[X_OWNER // WORD_BYTES] = owner
    context[X_LENGTH // WORD_BYTES] = length
    context[X_TAG // WORD_BYTES] = tag
    return context


_shut_gate = immortal((ctypes.c_int64 * 1)(0))


def shut(context: Any) -> int:
    """Make a builtin refuse its fast path: its cache or pool goes. Return what :func:`reopen` needs if it stays after all."""
    gate = int(context[X_GATE // WORD_BYTES])
    context[X_GATE // WORD_BYTES] = ctypes.addressof(_shut_gate)
    return gate


def reopen(context: Any, gate: int) -> None:
    """Let a builtin go on."""
    context[X_GATE // WORD_BYTES] = gate


def tag_of(verb: int, owner: int = 0) -> int:
    """Return the tag of a block that goes back by ``verb`` to ``owner``."""
    return verb | owner << OWNER_SHIFT


def exporter_of(view: memoryview) -> Any:
    """Return the exporter behind a view, None if it is not one of ours or the view was released."""
    try:
        exporter = view.obj
    except ValueError:
        return None
    return exporter if type(exporter) is factory().type else None


def live_exporter(view: Any, base: int, verbs: tuple[int, ...], who: str, owner: int = 0) -> Any:
    """Return the exporter of a handle of the arena at ``base`` that goes back by one of ``verbs`` (to ``owner``, if not 0).

    TypeError if it is no memoryview; InvalidFree, ``who`` in front, if it is not the handle that was handed out, still live.
    """
    if not isinstance(view, memoryview):
        raise TypeError(f"{who} takes the memoryview that was handed out, not {type(view).__name__}")
    exporter = exporter_of(view)
    if exporter is None or exporter.base != base:
        raise InvalidFree(f"{who}: not a live buffer of this arena (freed already, or foreign)")
    tag = exporter.tag
    whole = view.nbytes == exporter.length and view.format == "B" and view.ndim == 1 and view.contiguous
    if not whole or tag & TAG_LINGERS:
        raise InvalidFree(f"{who}: a slice or a view of a freed block, not the buffer that was handed out")
    if tag & VERB_MASK not in verbs or (owner != 0 and tag >> OWNER_SHIFT != owner):
        raise InvalidFree(f"{who}: the buffer is of another allocator, another cache or another pool; free it there")
    return exporter


def free_handles(views: Iterable[memoryview], check: Callable[[memoryview], Any], words: Words, who: str) -> None:
    """Release many handles; all pass ``check`` before the first goes, and none may be named twice."""
    given = list(views)
    if len({id(view) for view in given}) != len(given):
        raise InvalidFree(f"{who}: a buffer is named twice")
    for view in given:
        check(view)
    for view in given:
        release_handle(view, exporter_of(view), words)


def set_length(exporter: Any, length: int) -> None:
    """Change the length that views made from now on will have."""
    store_at(id(exporter) + E_LENGTH, length)


def _references(_first: Any, exporter: Any, _last: Any) -> int:
    return sys.getrefcount(exporter)


_ALONE = _references(None, object(), None)  # what a call of release_handle sees of an exporter without views


def release_handle(view: memoryview, exporter: Any, words: Words) -> None:
    """Release a handle that was freed; if other views of the block live on, mark the lease as lingering.

    ``exporter`` must be an expression of the call, not a name of the caller. Raises BufferError, with nothing changed,
    where somebody holds an export of this very view.
    """
    view.release()
    if sys.getrefcount(exporter) > _ALONE:
        linger(words, id(exporter) + E_TAG)


def abandon_handle(exporter: Any, words: Words) -> None:
    """Mark the lease of a handle that cannot be released, since others export it, as lingering."""
    linger(words, id(exporter) + E_TAG)


def pin(words: Words, mapping: Any) -> None:
    """Make the arena own its mapping, until its last lease after it was closed."""
    immortal(mapping)
    words[H_OWNER] = id(mapping)
