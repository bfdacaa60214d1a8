"""What numba does for a kernel, cut down to what kernels need: a quarter of a cold start less.

A kernel is words and integers in loops and branches. It has no closures, context managers, exceptions, array expressions or
literal arguments, so numba's passes for these find nothing in it, and it comes out the same without them. Its operators are
those of integers, and are looked up once for all. And it is inlined into an entry, where it is optimised: passes over a whole
module and machine code are of no use before. Users' code gets kernels that numba finished, as any function that it calls: its
pairs are 5 % faster than with raw ones, since machine code is made of a module that is laid out for it already.

May not: know what any kernel does. Only where kernels take pointers: bounds checks raise, and are numba's own business.
"""

from __future__ import annotations

from typing import Any, ClassVar

from numba import types
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager

_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)
_SCALARS = frozenset([types.int64, types.boolean])


class Building:
    """Whether code of this package is compiled, which links kernels as they are; numba's compiler lock guards it."""

    depth: ClassVar[int] = 0


class _Typing:
    """numba's typing context, but it remembers the operators of plain integers: it tries all that NumPy can do each time."""

    _known: ClassVar[dict[Any, Any]] = {}

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """Return the signature of a call."""
        if kws or type(func) is not types.Function or not _SCALARS.issuperset(args):
            return self._context.resolve_function_type(func, args, kws)
        key = func, tuple(args)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._context.resolve_function_type(func, args, kws)
        return found


class EntryCompiler(Compiler):
    """Compiles what gets machine code of its own."""

    def __init__(self, typing: Any, *args: Any) -> None:
        super().__init__(_Typing(typing), *args)

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        passes = PassManager("kernel")
        for each in _PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class KernelCompiler(EntryCompiler):
    """Compiles what is only ever inlined."""

    def __init__(self, typing: Any, target: Any, library: Any, *args: Any) -> None:
        given = _Inlined(target.codegen(), "kernel") if library is None else library
        super().__init__(typing, target, given, *args)


class _Inlined(JITCodeLibrary):
    """Code that others link: raw if it is this package, finished if it is a user's function."""

    _finished: JITCodeLibrary | None = None

    @property
    def codegen(self) -> Any:
        """Be what numba asks to store an environment: the word for it exists in machine code only."""
        return self

    def set_env(self, _name: str, _env: Any) -> None:
        """Store nothing."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        if Building.depth > 0:
            return super()._get_module_for_linking()
        if self._finished is None:
            made = JITCodeLibrary(self._codegen, self.name)
            made._final_module = self._final_module.clone()
            made._optimize_final_module()
            made._finalize_final_module()
            self._finished = made
        return self._finished._get_module_for_linking()
