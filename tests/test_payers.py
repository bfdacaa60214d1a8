"""Which budget pays: blocks of threads, tasks, contexts and arenas, and what an interrupt leaves of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from checks import Worker

import realalloc as ra
from realalloc import payers


@pytest.fixture
def arena() -> Iterator[ra.Arena]:
    with ra.Arena("32MiB", decay=None, huge_pages=False) as made:
        yield made
        made.validate()


def used(*budgets: ra.Budget) -> tuple[int, ...]:
    return tuple(b.used for b in budgets)


def test_a_block_is_of_its_thread_and_ends_with_it(arena: ra.Arena) -> None:
    b = arena.budget("b")
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with b:
            inside.set()
            go.wait(60)

    worker = Worker(work)
    inside.wait(60)
    buf = arena.kmalloc(100)
    assert b.used == 0
    assert arena._kmalloc_gate[0] == 0
    go.set()
    worker.result()
    again = arena.kmalloc(100)  # the slow path, for the last time
    assert arena._kmalloc_gate[0] == arena.address
    del buf, again


def test_tasks_begin_with_their_makers_block(arena: ra.Arena) -> None:
    outer, inner = arena.budget("outer"), arena.budget("inner")
    held: list[memoryview] = []

    async def take(budget: ra.Budget | None) -> None:
        if budget is not None:
            with budget:
                await asyncio.sleep(0)
                held.append(arena.kmalloc(4096))
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.01)  # the block that it began in has ended
            held.append(arena.kmalloc(4096))

    async def main() -> None:
        with outer:
            tasks = [asyncio.create_task(take(budget)) for budget in (inner, None, inner, outer)]
        held.append(arena.kmalloc(4096))
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(held) == 5
    assert used(outer, inner) == (8192, 8192)
    held.clear()
    assert used(outer, inner) == (0, 0)


def test_blocks_of_two_arenas_do_not_meet(arena: ra.Arena) -> None:
    with ra.Arena("1MiB") as other:
        one, two = arena.budget("one"), other.budget("two")
        with one, two:
            a, b = arena.kmalloc(64), other.kmalloc(32)
        assert used(one, two) == (64, 32)
        del a, b


def test_a_copied_context_keeps_its_block(arena: ra.Arena) -> None:
    b = arena.budget("b")
    with b:
        context = contextvars.copy_context()
    buf = context.run(arena.kmalloc, 64)
    assert b.used == 64
    del buf
    del context
    arena.kmalloc(64).release()
    assert arena._kmalloc_gate[0] == arena.address


def test_blocks_are_left_in_order(arena: ra.Arena) -> None:
    one, two = arena.budget("one"), arena.budget("two")
    one.__enter__()
    two.__enter__()
    with pytest.raises(RuntimeError, match="innermost"):
        one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    one.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="innermost"):
        one.__exit__(None, None, None)


class Ringing:
    """A context variable after whose first assignment a Ctrl-C comes, as the interpreter looks for one after each call."""

    def __init__(self, variable: contextvars.ContextVar[Any]) -> None:
        self.get = variable.get
        self._set = variable.set
        self._rings = True

    def set(self, value: Any) -> Any:
        token = self._set(value)
        if self._rings:
            self._rings = False
            raise KeyboardInterrupt
        return token


def test_an_interrupt_that_comes_as_a_block_is_entered_leaves_it_closed(
    arena: ra.Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = arena.budget("outer"), arena.budget("inner")
    with outer:
        monkeypatch.setattr(payers, "_innermost", Ringing(payers._innermost))
        with pytest.raises(KeyboardInterrupt):
            inner.__enter__()
        buf = arena.kmalloc(64)
        assert used(outer, inner) == (64, 0)
    del buf
    arena.kmalloc(64).release()
    assert arena._kmalloc_gate[0] == arena.address
