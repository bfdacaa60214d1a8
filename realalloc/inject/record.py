"""The part of ``realalloc record``: it puts the hooks in place. NumPy is met when the program imports it, not before.

May not: import this package, numba or NumPy; raise; say anything on stdout or stderr: the recorder tells what was not met.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

PYTHON_DOMAINS = {"raw": 0, "mem": 1, "obj": 2}  # PyMemAllocatorDomain; NumPy is 3
NUMPY = 3
DEFAULT_HANDLER = 306  # PyDataMem_DefaultHandler in NumPy's C API
CONTROL_SYMBOL = "realalloc_trace_control"
HANDLER_CTX = 128  # bytes: PyDataMem_Handler has a name and a version before it
MAP_SHARED_RW = 1, 3  # flags, protection
WORD = 8
DOMAIN_WORDS = 8


def immortal(value: Any) -> Any:
    """Keep an object for the life of the process, also while the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


def load_hooks(path: str, control: int) -> list[int]:
    """Load the object files; return the addresses of malloc, calloc, realloc, free, and of what a child of fork calls."""
    import llvmlite.binding as llvm

    with open(path, "rb") as file:
        index = json.loads(file.readline())
        parts = [(symbol, file.read(length)) for symbol, length in index]
    llvm.add_symbol(CONTROL_SYMBOL, control)
    for start in ("initialize_native_target", "initialize_native_asmprinter"):
        getattr(llvm, start)()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=3, jit=True)
    engine = immortal(llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine))
    for _, code in parts:
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return [engine.get_function_address(symbol) for symbol, _ in parts]


class Recording:
    """The log, mapped, and the records of the domains that are met."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Map the log and load the hooks; nothing is met yet."""
        self.at = config["layout"]
        self.config = config
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        flags, protection = MAP_SHARED_RW
        fd = os.open(config["log"], os.O_RDWR | os.O_CLOEXEC)
        base = libc.mmap(None, config["mapped"], protection, flags, fd, 0)
        os.close(fd)
        if base in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self.header = (ctypes.c_int64 * 8).from_address(base)
        words = immortal((ctypes.c_int64 * (config["control_words"] + 8))())
        start = -ctypes.addressof(words) % 64 // WORD
        self.control = (ctypes.c_int64 * config["control_words"]).from_buffer(words, start * WORD)
        path = immortal(ctypes.create_string_buffer(os.fsencode(config["log"])))
        given = {"FILE": base, "RING": base + config["header_bytes"], "PATH": ctypes.addressof(path)}
        given |= {"LIMIT": config["limit"], "READY": config["ready"], "LEAST": config["least"]}
        if config["least"]:
            given["FILTER"] = ctypes.addressof(immortal((ctypes.c_int64 * config["filter_words"])()))
        for name, value in given.items():
            self.control[self.at[name]] = value
        *self.hooks, forked = load_hooks(config["objects"], ctypes.addressof(self.control))
        atfork = libc["__register_atfork"]  # all that glibc exports of pthread_atfork
        atfork.argtypes = [ctypes.c_void_p] * 4
        atfork(None, None, forked, None)

    def record_of(self, domain: int, original: list[int], *, nests: bool) -> int:
        """Make the record of a domain over the allocator that was there: ctx and four functions."""
        record = immortal(
            (ctypes.c_int64 * DOMAIN_WORDS)(*original, domain, ctypes.addressof(self.control), int(nests))
        )
        self.header[self.at["ATTACHED"]] |= 1 << domain
        return ctypes.addressof(record)

    def meet_python(self, name: str) -> None:
        """Stand before one of Python's three allocators (PyMem_SetAllocator)."""
        domain = PYTHON_DOMAINS[name]
        table = (ctypes.c_int64 * 5)()  # PyMemAllocatorEx
        ctypes.pythonapi.PyMem_GetAllocator(domain, table)
        record = self.record_of(domain, list(table), nests=name != "raw")
        table[:] = [record, *self.hooks]
        ctypes.pythonapi.PyMem_SetAllocator(domain, table)

    def meet_numpy(self, numpy: Any) -> None:
        """Stand before the functions of NumPy's default handler, in its own struct: it stays the default handler."""
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )
        api = ctypes.cast(pointer(numpy._core.multiarray._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
        capsule = ctypes.cast(api[DEFAULT_HANDLER], ctypes.POINTER(ctypes.py_object)).contents.value
        table = (ctypes.c_int64 * 5).from_address(pointer(capsule, b"mem_handler") + HANDLER_CTX)
        record = self.record_of(NUMPY, list(table), nests=True)  # NumPy 2.5's handler calls PyMem_RawMalloc
        table[:] = [record, *self.hooks]


def meet(recording: Recording, numpy: ModuleType) -> None:
    """Meet NumPy; one that keeps its handler elsewhere is not recorded, and the recorder says so."""
    with contextlib.suppress(AttributeError, ValueError, TypeError):
        recording.meet_numpy(numpy)


def begin(config: dict[str, Any], meet_numpy: Callable[[Callable[[ModuleType], None]], None]) -> None:
    """Begin to record."""
    recording = Recording(config)
    if "numpy" in config["domains"]:
        meet_numpy(lambda numpy: meet(recording, numpy))
    for name in PYTHON_DOMAINS:
        if name in config["domains"]:
            recording.meet_python(name)
    recording.control[recording.at["ON"]] = 1
