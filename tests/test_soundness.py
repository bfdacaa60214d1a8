"""Walkers on damaged arenas: whatever one word says, ``validate`` reports or passes; nothing crashes, nothing goes round."""

from __future__ import annotations

import subprocess
import sys

import damage
import numpy as np
import pytest
from checks import meanwhile, some
from support import JIT

import realalloc as ra
from realalloc.mm import layout as at
from realalloc.mm.header import is_whole
from realalloc.soundness import check

SEED = 20


def test_no_damaged_word_ends_a_walker() -> None:
    share = some(20, 1) / 1000
    done = subprocess.run(
        [sys.executable, damage.__file__, str(SEED), str(share)], capture_output=True, text=True, check=False
    )
    *ended, last = done.stdout.splitlines()
    assert (ended, done.stderr, done.returncode) == ([], "", 0)
    words, _, reported, _ = last.split()
    assert int(words) > some(100, 5) and int(reported) > some(500, 5)


def test_the_first_broken_invariant_is_named_and_the_header_is_the_first() -> None:
    arena = ra.Arena("1MiB")
    words = arena.words
    seen: list[str] = []

    def walk(name: str, status: int):
        def run(_words: object) -> int:
            seen.append(name)
            return status

        return run

    check(words, walk("a", at.OK), walk("b", at.OK))
    with pytest.raises(ra.CorruptionError, match="watermarks"):
        check(words, walk("c", at.BAD_MARKS), walk("d", at.BAD_BUDGET))
    words[at.H_CACHES] += 8
    with pytest.raises(ra.CorruptionError, match="header"):
        check(words, walk("e", at.OK))
    words[at.H_CACHES] -= 8
    assert seen == ["a", "b", "c"]
    arena.close()


def test_a_distance_that_was_never_given_out_is_not_read() -> None:
    arena = ra.Arena("1MiB")
    words = arena.words
    old = int(words[at.KEPT_AT])
    words[at.KEPT_AT] = 1 << 40
    with pytest.raises(ra.CorruptionError, match="header"):
        check(words)
    words[at.KEPT_AT] = old
    check(words)
    arena.close()


def test_a_header_is_whole_while_threads_are_at_work() -> None:
    with ra.Arena("32MiB", lock="64KiB") as arena:

        def work() -> None:
            for n in (64, 3000, 9000, 70_000, 5 << 20):
                arena.kmalloc(n).release()
            arena.trim()

        with meanwhile(work, 2):
            assert [is_whole(arena.words) for _ in range(some(3000, 300))] == [True] * some(3000, 300)
            for _ in range(some(20, 2)):
                arena.validate()


def test_each_face_looks_at_the_header_first() -> None:
    arena = ra.Arena("4MiB")
    cache = arena.kmem_cache("c", 100)
    pools = [arena.mempool(2, size=64), arena.mempool(2, alloc_fn=lambda _data, _gfp: bytearray(8), free_fn=id)]
    faces = (arena, cache, *pools)
    for face in faces:
        face.validate()
    arena.words[at.H_VMAP] -= np.int64(1)
    for face in faces:
        with pytest.raises(ra.CorruptionError, match="header"):
            face.validate()
    arena.words[at.H_VMAP] += np.int64(1)
    for face in faces:
        face.validate()
    arena.close()


def test_the_damage_is_of_every_kind() -> None:
    """What is tried is what there is: words of each table, of descriptors, sheaves and records."""
    arena, _kept, _walks = damage.lived_in()
    found = set(damage.places(arena.words))
    words = arena.words
    heads = [int(words[name]) for name in (at.H_POOLS, at.H_BUDGETS, at.H_IDLE_RECORDS)]
    tables = [int(words[name]) for name in (at.H_CACHES, at.H_RESMAP, at.H_MOBILITY, at.H_VMAP)]
    assert {*range(at.INFOS), *tables, *(heads if JIT else heads[:2])} <= found
    barns = [
        (int(words[c + at.C_NR_BARN_FULL]), int(words[c + at.C_NR_BARN_EMPTY]))
        for c in range(tables[0], tables[0] + int(words[at.H_NR_CACHES]) * at.CACHE_WORDS, at.CACHE_WORDS)
    ]
    assert max(barns) > (1, 0) and max(empty for _, empty in barns) > 0
    assert all(int(words[head]) != 0 for head in (at.H_VM_FREE, at.H_VM_LAZY, at.H_VM_AREAS))
    del _kept, _walks
    arena.close()
