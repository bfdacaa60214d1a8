"""How kernels are compiled: what is left out makes no difference, and what is remembered is what numba would say again."""

from __future__ import annotations

import itertools
import operator
import re
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.compiler import Compiler
from numba.core.registry import cpu_target
from support import MIB, RawArena, run_child

from realalloc.mm.bits import order_of_pages
from realalloc.mm.jit import POINTERS, WORDS_TYPE, kernel, warm_up
from realalloc.mm.objects import page_info, put_object
from realalloc.mm.passes import Building, EntryCompiler, _Inlined, _Lower, _Typing
from realalloc.mm.sheaf import exchange
from realalloc.mm.threads import own_slot

pytestmark = pytest.mark.skipif(not POINTERS, reason="kernels take pointers in machine code only")

WORD = numba.types.int64


def code_of(func: Any, count: int, pipeline: Any, words: bool) -> str:
    """Compile a function by a pipeline, and return its IR without what names a single compilation."""
    made = numba.njit(error_model="numpy", nogil=True, no_cpython_wrapper=True, pipeline_class=pipeline)(func)
    made.compile((*([WORDS_TYPE] if words else []), *[WORD] * count))
    (result,) = made.overloads.values()
    text = re.sub(r"(_ZN|cfunc\._ZN|_ZN08NumbaEnv|\.const\.)[\w.]*", "NAME", result.library.get_llvm_str())
    return "".join(map(renumbered, re.split(r"(?m)^(?=define)", text)))


def renumbered(part: str) -> str:
    """Number a function's values anew: an instruction that is gone takes a number with it."""
    numbers: dict[str, str] = {}
    part = re.sub(r"%\.[\w.]+", lambda found: numbers.setdefault(found[0], f"%.{len(numbers)}"), part)
    return "\n".join(line for line in part.splitlines() if not line.startswith((";", "source_filename", "target")))


@pytest.mark.parametrize(
    ("body", "count"),
    [(order_of_pages, 1), (page_info, 1), (put_object, 3), (exchange, 1), (own_slot, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_left_out_makes_no_difference(body: Any, count: int) -> None:
    words = body is not order_of_pages
    ours = code_of(body.py_func, count, EntryCompiler, words)
    assert "define" in ours
    assert ours == code_of(body.py_func, count, Compiler, words)


def test_what_is_remembered_is_what_numba_says() -> None:
    warm_up()
    RawArena(MIB)
    order_of_pages.compile((WORD,))  # type: ignore[attr-defined]
    code_of(order_of_pages.py_func, 1, EntryCompiler, words=False)  # type: ignore[attr-defined]
    known = dict(_Typing._known)
    assert known
    for (func, args), found in known.items():
        assert cpu_target.typing_context.resolve_function_type(func, args, {}) == found, (func, args)


def test_lowered_operators_are_what_numba_says() -> None:
    code_of(page_info.py_func, 1, EntryCompiler, words=True)  # type: ignore[attr-defined]
    known = dict(_Lower._known)
    assert known
    for (op, args), (function, found) in known.items():
        assert function == cpu_target.typing_context.resolve_value_type(op)
        assert function.get_call_type(cpu_target.typing_context, args, {}) == found, (op, args)


def test_a_constant_is_typed_as_numba_types_it() -> None:
    context = _Typing(cpu_target.typing_context)
    constants = [numba.types.literal(7), WORD]
    for op in (operator.add, operator.lshift, operator.eq, operator.floordiv, operator.pow, max, range):
        function = cpu_target.typing_context.resolve_value_type(op)
        for args in itertools.product(constants, constants):
            found = context.resolve_function_type(function, args, {})
            assert found == cpu_target.typing_context.resolve_function_type(function, args, {}), (op, args)


def test_a_kernel_has_machine_code_for_users_only() -> None:
    made: Any = kernel(lambda number: number * 3 + 1)

    @numba.njit
    def of_user(number: int) -> int:
        result: int = made(number)
        return result

    made.compile((WORD,))
    (result,) = made.overloads.values()
    assert isinstance(result.library, _Inlined)
    assert result.library.get_pointer_to_function(result.fndesc.llvm_func_name) == 0
    assert of_user(5) == 16
    assert result.library._finished is not None
    assert Building.depth == 0


@pytest.mark.parametrize("users_first", [False, True])
def test_users_code_and_ours_share_a_kernel_in_either_order(users_first: bool) -> None:
    use = "pairs(arena.words, 100)"
    ours = "a = ra.Arena('1MiB'); cache = a.kmem_cache('c', 64); cache.alloc_bulk(3); a.kmalloc(64); a.close()"
    first, second = (use, ours) if users_first else (ours, use)
    code = f"""
import numba, realalloc as ra
from realalloc.jit import kmalloc, kfree
@numba.njit
def pairs(words, number):
    for _ in range(number):
        kfree(words, kmalloc(words, 64))
arena = ra.Arena('1MiB')
{first}
{second}
arena.validate()
print(arena.stats().live_objects)
"""
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_other_types_are_not_remembered() -> None:
    context = _Typing(cpu_target.typing_context)
    before = len(_Typing._known)
    plus = cpu_target.typing_context.resolve_value_type(np.add)
    assert plus is not None
    context.resolve_function_type(plus, (numba.types.float64, numba.types.float64), {})
    assert len(_Typing._known) == before
