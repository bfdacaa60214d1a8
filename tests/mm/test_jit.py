"""The decorator: what is compiled, what the cache on disk may be used for, what a kernel refuses."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import random
import re
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest
from support import MIB, RawArena, run_child

import realalloc.mm
from realalloc.mm.bits import popcount
from realalloc.mm.commit import set_limit
from realalloc.mm.jit import JIT, signature, warm_up
from realalloc.mm.kmalloc import kfree, kmalloc
from realalloc.mm.layout import ENOMEM

jitted = pytest.mark.skipif(not JIT, reason="says something about machine code")
BOUNDSCHECK = bool(numba.config.BOUNDSCHECK)

MODULES = [importlib.import_module(f"realalloc.mm.{info.name}") for info in pkgutil.iter_modules(realalloc.mm.__path__)]


def defined(kind: str) -> dict[str, Any]:
    """Find all kernels of a kind, by file and name."""
    if not JIT:
        return {}
    found = {}
    for module in MODULES:
        for name, value in vars(module).items():
            if type(value).__name__ == kind and value.__reduce__()[1][0] == module.__name__:
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = value
    return found


ENTRIES, NATIVES = defined("Entry"), defined("Native")


def test_importing_compiles_nothing() -> None:
    done = run_child(
        "import realalloc, realalloc.mm.jit as j, realalloc.mm.mempool; print(getattr(j.Entry, 'compiled'))",
        fresh=True,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@jitted
def test_a_second_process_compiles_nothing() -> None:
    warm_up()
    code = "import realalloc.mm.mempool; from realalloc.mm.jit import warm_up; print(warm_up())"
    done = run_child(code, fresh=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def machine_text(made: Any) -> str:
    """Read the LLVM code that an entry was made from; it is kept with cached machine code too."""
    made.compile()
    (compiled,) = made.dispatcher.overloads.values()
    text = str(compiled.library._get_module_for_linking())
    assert made.__name__ in text
    return text


@jitted
def test_the_text_of_machine_code_shows_calls_and_allocations() -> None:
    @numba.njit
    def allocate(n):
        return np.zeros(n)

    allocate(3)
    (compiled,) = allocate.overloads.values()
    assert "NRT_MemInfo_alloc" in str(compiled.library._get_module_for_linking())
    assert "declare" in machine_text(ENTRIES["kmalloc.kmalloc"])
    assert "_kmalloc_slow" in machine_text(ENTRIES["kmalloc.kmalloc"])


@jitted
def test_every_kernel_is_found() -> None:
    assert len(ENTRIES) > 50
    assert {
        "kmalloc.kmalloc",
        "buddy.grow",
        "objects.kmem_cache_free",
        "sheaf.refill_sheaf_locked",
        "pcp.keep_block_locked",
        "thread_exit.thread_ends",
        "mempool_life.pool_fill",
        "atomic.lock_contended",
    } <= set(ENTRIES)
    assert {"bits.ctz", "atomic.compare_and_swap", "prim.move_pages"} <= set(NATIVES)


@jitted
@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_calls_only_symbols_that_are_defined(name: str) -> None:
    made = ENTRIES[name]
    called = set(re.findall(r'declare [^@]*@"?(realalloc_\w+)"?\(', machine_text(made)))
    known = {entry.symbol: entry for entry in ENTRIES.values()}
    for symbol in called:
        assert symbol in known
        assert known[symbol].dispatcher.signatures
        assert llvmlite.binding.address_of_symbol(symbol)
    assert llvmlite.binding.address_of_symbol(made.symbol)


@jitted
@pytest.mark.skipif(BOUNDSCHECK, reason="bounds checks raise IndexError, which is an object")
@pytest.mark.parametrize("name", ENTRIES)
def test_a_kernel_makes_no_object_of_numbas_runtime(name: str) -> None:
    assert "NRT_" not in machine_text(ENTRIES[name])


@jitted
@pytest.mark.parametrize("name", NATIVES)
def test_an_intrinsic_compiles_alone(name: str) -> None:
    made = NATIVES[name]
    parameters = list(signature(made.twin).args)
    names = ", ".join(f"a{k}" for k in range(len(parameters)))
    scope = {"made": made}
    exec(f"def alone({names}): return made({names})", scope)
    kinds = [numba.int64 if kind == numba.int64 else numba.int64[::1] for kind in parameters]
    compiled = numba.njit(numba.int64(*kinds))(scope["alone"])
    assert compiled.nopython_signatures[0].return_type == numba.int64


@jitted
@pytest.mark.parametrize("name", ["bits.ctz", "bits.clz", "bits.popcount", "bits.bit", "bits.low_mask"])
def test_an_intrinsic_agrees_with_its_twin_on_random_words(name: str) -> None:
    made = NATIVES[name]

    @numba.njit
    def alone(value):
        return made(value)

    rng = random.Random(name)
    for _ in range(2000):
        value = rng.getrandbits(64) - (1 << 63)
        if name == "bits.bit":
            value %= 64
        elif name == "bits.low_mask":
            value %= 65
        assert alone(value) == made.twin(value)


def bad_words(raw: RawArena) -> list[Any]:
    return [
        raw.words[::2],
        raw.words[:16].astype(np.float64),
        raw.words[:16].astype(np.int32),
        raw.words[:16].reshape(4, 4),
        [1, 2, 3],
    ]


@jitted
def test_a_kernel_refuses_floats_and_other_arrays(raw: RawArena) -> None:
    offset = kmalloc(raw.words, 64, 0)
    for wrong in (1.0, 64.5, np.float64(8), "8", None, [8]):
        with pytest.raises(TypeError):
            kmalloc(raw.words, wrong, 0)
        with pytest.raises(TypeError):
            kfree(raw.words, wrong)
    for words in bad_words(raw):
        with pytest.raises(TypeError):
            kfree(words, offset)
    with pytest.raises(TypeError):
        kmalloc(raw.words, 64)
    readonly = raw.words[:4096].view()
    readonly.flags.writeable = False
    with pytest.raises(TypeError):
        kfree(readonly, offset)
    assert kfree(raw.words, offset) == 0


@jitted
def test_jitted_code_refuses_other_arrays_and_truncates_no_float(raw: RawArena) -> None:
    @numba.njit
    def take(words, nbytes):
        return kmalloc(words, nbytes, 0)

    for words in bad_words(raw)[:4]:
        with pytest.raises(numba.TypingError):
            take(words, 64)
    offset = take(raw.words, 64)
    assert kfree(raw.words, offset) == 0


def test_kernels_are_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(kmalloc)) is kmalloc
    assert pickle.loads(pickle.dumps(popcount)) is popcount


def test_a_kernel_answers_with_an_int_and_status_codes() -> None:
    raw = RawArena(MIB, 4)
    for result in (kmalloc(raw.words, 8, 0), kmalloc(raw.words, 1 << 40, 0), set_limit(raw.words, -1)):
        assert isinstance(int(result), int)
    assert kmalloc(raw.words, 1 << 40, 0) == ENOMEM
    assert set_limit(raw.words, -1) == ENOMEM
