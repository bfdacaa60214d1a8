"""The one decorator of every kernel, how kernels call each other and are called, and the warm-up.

Importing this module compiles nothing; what is compiled is kept on disk (:mod:`realalloc.mm.jitcache`).

May not: know what any kernel does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar, cast

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.extending import _Intrinsic

from realalloc.mm import jitcache
from realalloc.mm.jitcache import CACHE_DIR, cached_names, in_cache
from realalloc.mm.passes import Building, EntryCompiler, KernelCompiler

Words = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

JIT = jitcache.JIT  # whether there is machine code at all
ARRAY_TYPE = types.Array(types.int64, 1, "C")
# Kernels see the words as a bare pointer: an array argument costs seven registers and two atomic reference counts for each
# call (a pair of kmalloc and kfree took 100 ns with arrays, 9 with pointers). Only bounds checking needs the array.
POINTERS = JIT and not numba.config.BOUNDSCHECK  # type: ignore[attr-defined]
WORDS_TYPE = types.CPointer(types.int64) if POINTERS else ARRAY_TYPE

_ENTRIES: list[Entry] = []
_AS_C = "_as_c"  # ends the symbol of an entry's C function

# A child of fork() may have to compile: the lock must not be with a thread that does not exist there.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=global_compiler_lock.release,
)


def kernel(func: F) -> F:
    """Jit a helper: nogil, C division, inlined into the entries that call it. Without jit the function itself.

    It is compiled for one signature only. Left to itself numba makes a copy for every combination of constant arguments:
    three times the work.
    """
    if not JIT:
        return func
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    if POINTERS:
        options["pipeline_class"] = KernelCompiler
    made = numba.njit(forceinline=True, **options)(func)
    resolve = made.get_call_template
    made.get_call_template = lambda args, kws: resolve(_plain(args), kws)
    return cast("F", made)


def verb(func: F) -> F:
    """Jit a function for users' jitted code: typed when called, with default arguments. Without jit the function itself."""
    return cast("F", numba.njit(nogil=True, error_model="numpy", forceinline=True)(func)) if JIT else func


def _plain(args: Any) -> tuple[Any, ...]:
    return tuple(arg if isinstance(arg, (types.Array, types.CPointer)) else types.int64 for arg in args)


def pointer_of(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Emit the address of word 0, whether the words came as a pointer or as an array."""
    return context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value


def _bare(context: Any, words: Any) -> Any:  # noqa: ARG001  # intrinsics are typed by their parameters
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return pointer_of(context, builder, signature.args[0], args[0])

    return types.CPointer(types.int64)(words), emit


# The words as kernels take them. A user's function has an array, whose indices numba would check for being negative: six
# instructions for each access.
if POINTERS:
    _pointer: Any = _Intrinsic("bare", _bare)
    _pointer._register()
    bare = cast("Callable[[Words], Words]", _pointer)
else:

    def bare(words: Words) -> Words:
        """Return the words as kernels take them."""
        return words

    if JIT:
        bare = cast("Callable[[Words], Words]", numba.njit(bare))


def _callees(func: Any) -> Iterator[Entry]:
    """Find the entries that a function's machine code will call, through helpers too."""
    for name in func.__code__.co_names:
        used = func.__globals__.get(name)
        if isinstance(used, Entry):
            yield used
        elif hasattr(used, "py_func"):
            yield from _callees(used.py_func)


class Entry(_Intrinsic):  # type: ignore[misc]
    """A kernel that is compiled once, cached on disk, and called through its symbol: from Python and from jitted code.

    numba would link the whole tree below a callee into each of its callers and optimise it again there: 75 s for this
    room, and seconds for every jitted function of a user that says ``kmalloc``. A call through a symbol costs 2 ns.
    """

    __name__: str
    compiled: ClassVar[int] = 0
    on_compile: ClassVar[Callable[[str], None] | None] = None  # told the name before machine code is made

    def __init__(self, func: Callable[..., Any]) -> None:
        options: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "no_cpython_wrapper": POINTERS}
        if POINTERS:
            options["pipeline_class"] = EntryCompiler
        self.dispatcher = in_cache(lambda: numba.njit(**options)(func))
        self._ready = False
        self.room = func.__module__.rpartition(".")[2]
        self.symbol = f"realalloc_{CACHE_DIR.name}_{self.room}_{func.__name__}"
        super().__init__(func.__name__, _typer(func, self._emit_call, self.compile))
        self._register()
        self.__doc__ = func.__doc__

    def _emit_call(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wanted = [context.get_value_type(types.int64 if k == types.int64 else WORDS_TYPE) for k in signature.args]
        word = ir.IntType(64)
        if not POINTERS:  # through the C wrapper, which reports an IndexError of the bounds checks
            return builder.call(self._target(context, builder, ir.FunctionType(word, wanted)), args)
        # numba's own convention: results by reference, a status returned, which no kernel ever makes anything but 0. The
        # C wrapper around it would be a second call: 2 ns of 8.
        with builder.goto_entry_block():  # cgutils.alloca_once would zero them before each call
            result = builder.alloca(word)
            error = builder.alloca(ir.IntType(8).as_pointer())
        link = ir.FunctionType(ir.IntType(32), [result.type, error.type, *wanted])
        given = [pointer_of(context, builder, *pair) for pair in zip(signature.args, args, strict=True)]
        builder.call(self._target(context, builder, link), [result, error, *given])
        return builder.load(result)

    def _target(self, context: Any, builder: Any, link: Any) -> Any:
        if Building.depth > 0:
            return cgutils.get_or_insert_function(builder.module, link, self.symbol)
        # A user's function: by address, which numba will not write to its disk cache. Code with our symbol in it, loaded
        # before the symbol exists or after an upgrade, would end the process.
        slot = context.add_dynamic_addr(builder, self.address, info=self.symbol)
        return builder.bitcast(slot, link.as_pointer())

    def compile(self) -> None:
        """Compile or load from the cache, callees first: code that is linked before its symbols exist ends the process."""
        if not self._ready:
            with global_compiler_lock:  # one thread compiles; the others find it done
                if not self._ready:
                    self._compile()

    def _compile(self) -> None:
        for callee in _callees(self.dispatcher.py_func):
            callee.compile()
        if Entry.on_compile is not None and f"{self.room}.{self.__name__}" not in cached_names():
            Entry.on_compile(self.__name__)
        wanted = signature(self.dispatcher.py_func)
        with Entry.own_code():
            self.dispatcher.compile(wanted)
        self.dispatcher.disable_compile()
        Entry.compiled += not self.dispatcher.stats.cache_hits
        (made,) = self.dispatcher.overloads.values()
        names = made.fndesc.llvm_func_name, made.fndesc.llvm_cfunc_wrapper_name
        native, wrapper = map(made.library.get_pointer_to_function, names)
        self.address = native if POINTERS else wrapper
        llvmlite.binding.add_symbol(self.symbol, self.address)
        llvmlite.binding.add_symbol(self.symbol + _AS_C, wrapper)
        kinds = [ctypes.c_int64 if kind == types.int64 else ctypes.c_void_p for kind in wanted.args]
        self._call = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(wrapper)
        self._ready = True

    @staticmethod
    @contextlib.contextmanager
    def own_code() -> Iterator[None]:
        """Compile code of this package: calls by symbol. Without the cyclic collector: 12 % of a cold start."""
        enabled = gc.isenabled()
        gc.disable()
        Building.depth += 1
        try:
            yield
        finally:
            Building.depth -= 1
            if enabled:
                gc.enable()

    def __call__(self, *args: Any) -> int:  # type: ignore[override]
        """Call from Python, without the GIL. TypeError for floats and for arrays that are not ``int64[::1]``."""
        self.compile()
        if not POINTERS:  # the dispatcher checks arrays, and would truncate a float
            return int(self.dispatcher(*[arg if isinstance(arg, np.ndarray) else operator.index(arg) for arg in args]))
        result: int = self._call(*[_word(arg) if isinstance(arg, np.ndarray) else operator.index(arg) for arg in args])
        return result

    def __reduce__(self) -> Any:
        """Pickle by name, as functions are."""
        return _find, (self.dispatcher.__module__, self.__name__)


def _word(array: npt.NDArray[Any]) -> int:
    if array.dtype != np.int64 or array.ndim != 1 or not array.flags.c_contiguous or not array.flags.writeable:
        raise TypeError(f"a kernel takes a writable int64[::1], not {array.dtype} of {array.ndim} dimensions")
    address: int = array.__array_interface__["data"][0]
    return address


def _find(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def entry(func: F) -> F:
    """Make a kernel an :class:`Entry`, compiled when first needed. Without jit the function itself."""
    if not JIT:
        return func
    made = Entry(func)
    _ENTRIES.append(made)
    return cast("F", made)


def unbroken(kernel: Any, *arrays: Words) -> tuple[Any, ...]:
    """Return an entry as a C function, and arrays as that takes them: a call runs no bytecode before machine code, where
    the handler of a Ctrl-C could raise. Without jit the function itself.
    """
    if not JIT:
        return kernel, *arrays
    kernel.compile()
    return (kernel._call, *map(_word, arrays)) if POINTERS else (kernel.dispatcher, *arrays)


def signature(func: Callable[..., Any]) -> Any:
    """Return the numba signature of an entry: parameters named ``words`` or ``out`` are arrays, all others int64."""
    names = inspect.signature(func).parameters
    return types.int64(*(WORDS_TYPE if name in ("words", "out") else types.int64 for name in names))


def warm_up() -> int:
    """Compile every entry or load it from the cache; return how many were compiled in this process so far."""
    for made in _ENTRIES:
        made.compile()
    return Entry.compiled


_callback: Any = importlib.import_module("numba.core.ccallback")  # whose annotations do not tell what is used here


class _BareCompiler(_callback._CFuncCompiler):  # type: ignore[misc]
    def _customize_flags(self, flags: Any) -> Any:
        flags = super()._customize_flags(flags)
        flags.no_cfunc_wrapper = POINTERS
        return flags


class CFunction(_callback.CFunc):  # type: ignore[misc]
    """A C callback like ``numba.cfunc``'s, whose body is in the C function itself.

    numba makes the body a function of its own, which hands its result over through memory, and forbids to inline the call:
    2 to 3 ns. Bodies may not raise: no status is looked at. (With bounds checks, which raise, it is numba's own.)
    """

    def __init__(self, func: Callable[..., Any], wanted: Any) -> None:
        options = {"nopython": True, "nogil": True, "error_model": "numpy", "forceinline": POINTERS}
        super().__init__(func, (wanted.args, wanted.return_type), locals={}, options=options)
        self._compiler = _BareCompiler(func, self._targetdescr, options, {}, EntryCompiler if POINTERS else Compiler)

    def _compile_uncached(self) -> Any:
        made = super()._compile_uncached()
        if POINTERS:
            self._add_function(made.library, made.fndesc)
        return made

    def _add_function(self, library: Any, body: Any) -> None:
        context = self._targetdescr.target_context
        module = library.create_ir_module("c_function")
        callee = context.declare_function(module, body)
        kinds = [context.get_value_type(kind) for kind in (body.restype, *body.argtypes)]
        nothing = self._sig.return_type == types.void
        link = ir.FunctionType(ir.VoidType() if nothing else kinds[0], kinds[1:])
        function = ir.Function(module, link, body.llvm_cfunc_wrapper_name)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        _, result = context.call_conv.call_function(builder, callee, body.restype, body.argtypes, function.args)
        if nothing:
            builder.ret_void()
        else:
            builder.ret(result)
        library.add_ir_module(module)
        library._final_module.get_function(body.llvm_func_name).linkage = "internal"  # inlined: no code of its own


def at_end(made: F) -> F:
    """Make an intrinsic that calls an entry as C does: at the end of a :class:`CFunction` it becomes a jump, and the function
    needs no stack for what it seldom does.
    """
    if not POINTERS:
        return made
    called = cast("Entry", made)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        link = ir.FunctionType(ir.IntType(64), [context.get_value_type(kind) for kind in signature.args])
        return builder.call(cgutils.get_or_insert_function(builder.module, link, called.symbol + _AS_C), args)

    return cast("F", Native(called.dispatcher.py_func, emit))


def c_function(func: Callable[..., Any], wanted: Any) -> CFunction:
    """Compile a C function or load it from the cache. What it calls must be compiled. Keep it while C may call it."""

    def make() -> CFunction:
        made = CFunction(func, wanted)
        made.enable_caching()
        return made

    made = in_cache(make)
    with Entry.own_code():
        made.compile()
    return cast("CFunction", made)


def _typer(
    twin: Callable[..., Any], emit: Callable[[Any, Any, Any, Any], Any], prepare: Callable[[], None] | None = None
) -> Callable[..., Any]:
    """Make the typing function of an intrinsic that takes ``words`` arrays and integers and returns an int64."""

    def typer(_typing_context: Any, *args: Any) -> Any:
        if any(isinstance(arg, types.Array) and arg != ARRAY_TYPE for arg in args):
            return None
        if prepare is not None:
            prepare()
        return types.int64(*_plain(args)), emit

    typer.__name__ = twin.__name__
    typer.__doc__ = twin.__doc__
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inspect.signature(twin).parameters.values()
    typer.__signature__ = inspect.Signature([context, *given])  # type: ignore[attr-defined]
    return typer


class Native(_Intrinsic):  # type: ignore[misc]
    """An intrinsic that Python can call too: there it is its plain twin."""

    __name__: str

    def __init__(self, twin: Callable[..., Any], emit: Callable[[Any, Any, Any, Any], Any]) -> None:
        self.twin = twin
        super().__init__(twin.__name__, _typer(twin, emit))
        self._register()
        self.__doc__ = twin.__doc__

    def __call__(self, *args: Any) -> Any:
        """Run the twin."""
        return self.twin(*args)

    def __reduce__(self) -> Any:
        """Pickle by name, as functions are."""
        return _find, (self.twin.__module__, self.__name__)


def native(emit: Callable[[Any, Any, Any, Any], Any]) -> Callable[[F], F]:
    """Turn a plain function into an intrinsic made by ``emit``; without jit the plain function is used as it is.

    ``emit(context, builder, signature, args)`` returns an LLVM i64. The plain twin keeps the no-jit leg alive and says
    in Python what the instruction does.
    """

    def decorate(twin: F) -> F:
        return cast("F", Native(twin, emit)) if JIT else twin

    return decorate
