"""``realalloc.numpy.uninstall`` on other threads, and interpreters and NumPys that ``install`` does not know."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support import JIT

import realalloc as ra
import realalloc.numpy
from realalloc.context import hook

needs_jit = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")


def name(array: np.ndarray) -> str:
    return str(np._core.multiarray.get_handler_name(array))


@needs_jit
def test_uninstalling_on_another_thread(arena: ra.Arena) -> None:
    ra.numpy.install(arena)
    a = np.ones(3)
    thread = threading.Thread(target=ra.numpy.uninstall)
    thread.start()
    thread.join()
    assert ra.numpy.installed() is None
    assert arena.owns(a)
    assert name(np.ones(3)) == "default_allocator"


@needs_jit
def test_uninstalling_on_another_thread_leaves_a_named_handler(arena: ra.Arena) -> None:
    def work() -> None:
        with other.numpy():
            ra.numpy.install(arena)
            thread = threading.Thread(target=ra.numpy.uninstall)
            thread.start()
            thread.join()
            assert arena.owns(np.ones(3))  # nobody can set another context's variable
        assert name(np.ones(3)) == "default_allocator"
        done.append(True)

    done: list[bool] = []
    with ra.Arena("16MiB") as other:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert done == [True]


def test_an_old_numpy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hook.cache_clear()
    try:
        monkeypatch.delattr(np._core.multiarray, "get_handler_name")
        with pytest.raises(RuntimeError, match=r"no allocator hook \(NEP 49\): NumPy 2\.0 or later"):
            hook()
    finally:
        hook.cache_clear()


@needs_jit
@pytest.mark.parametrize("field", ["NAME_AT", "DEFAULT_AT"])
def test_another_layout_of_context_variables_is_refused(
    arena: ra.Arena, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(ra.numpy, field, 8)  # where the type is
    with pytest.raises(RuntimeError, match="context variables in another way"):
        ra.numpy.install(arena)
    assert ra.numpy.installed() is None
    assert name(np.ones(3)) == "default_allocator"
