"""The decorators of stress kernels: with the compiler machine code that needs no GIL, without it the function itself."""

from __future__ import annotations

import threading

import numpy as np
from support import JIT

from realalloc.lab.stress.compiled import compiled, loop


def _double(value):
    return 2 * value


def test_without_the_compiler_the_function_is_what_was_given() -> None:
    for decorate in (compiled, loop):
        assert (decorate(_double) is _double) == (not JIT)


def test_a_part_is_used_in_a_loop_and_called_from_python() -> None:
    double = compiled(_double)

    @loop
    def total(count):
        found = 0
        for k in range(count):
            found += double(k)
        return found

    assert double(21) == 42 and total(10) == 90


def test_a_division_by_zero_is_the_processors() -> None:
    """Kernels raise nothing: with the compiler they follow NumPy's rules."""
    ratio = compiled(lambda a, b: a / b)
    if JIT:
        assert np.isinf(ratio(1.0, 0.0))
    assert ratio(1.0, 2.0) == 0.5


def test_two_threads_that_wait_for_each_other_end() -> None:
    """Each spins until the other has come: with the GIL held by one of them that would be never."""

    @loop
    def meet(flags, mine, other):
        flags[mine] = 1
        rounds = 0
        while flags[other] == 0:
            rounds += 1
            flags[2 + mine] = rounds  # a store, so that the load is not moved out of the loop
        return rounds

    flags = np.zeros(4, np.int64)
    meet(np.ones(4, np.int64), 0, 1)  # compiled before the threads start
    threads = [threading.Thread(target=meet, args=(flags, k, 1 - k), daemon=True) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
