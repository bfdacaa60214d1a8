"""What numba does for a kernel, cut down to what kernels need: a quarter of a cold start less.

A kernel is words and integers in loops and branches. It has no closures, context managers, exceptions, array expressions or
literal arguments, so numba's passes for these find nothing in it, and it comes out the same without them. Its operators are
those of integers, and are looked up once for all, with a constant or without. And it is inlined into an entry, where it is
optimised: passes over a whole module and machine code are of no use before. Users' code gets kernels that numba finished, as
any function that it calls: its pairs are 5 % faster than with raw ones, since machine code is made of a module that is laid
out for it already.

May not: know what any kernel does. Only where kernels take pointers: bounds checks raise, and are numba's own business.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from llvmlite import ir
from numba import types
from numba.core import cgutils, lowering, typed_passes, untyped_passes
from numba.core import ir as numba_ir
from numba.core.codegen import CPUCodegen, JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager, register_pass

# Before 0.62, whose LLVM has another pass manager, numba set the passes up once a module.
_ONE_FOR_ALL = "llvm_module" in inspect.signature(CPUCodegen._function_pass_manager).parameters
_SCALARS = frozenset([types.int64, types.boolean])


class Building:
    """Whether code of this package is compiled, which links kernels as they are; numba's compiler lock guards it."""

    depth: ClassVar[int] = 0


class _Typing:
    """numba's typing context, but it remembers the operators of plain integers: it tries all that NumPy can do each time.

    Beside a variable it types a constant as one, but where a function says that it wants constants.
    """

    _known: ClassVar[dict[Any, Any]] = {}

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """Return the signature of a call."""
        constant = [type(arg) is types.IntegerLiteral for arg in args]
        given = tuple(types.int64 if fixed else arg for fixed, arg in zip(constant, args, strict=True))
        if all(constant) or kws or type(func) is not types.Function or not _SCALARS.issuperset(given):
            return self._context.resolve_function_type(func, args, kws)
        key = func, given
        found = self._known.get(key)
        if found is None:
            wants = any(getattr(template, "prefer_literal", False) for template in func.templates)
            found = self._context.resolve_function_type(func, args if wants else given, kws)
            if not wants:
                self._known[key] = found
        return found


class _Lower(lowering.Lower):
    """numba's lowering, but it remembers the operators of plain integers, too, and a C function is a call and no more."""

    _known: ClassVar[dict[Any, Any]] = {}

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        """Emit an operator."""
        signature = self.fndesc.calltypes[expr]
        fixed = expr.static_lhs is not numba_ir.UNDEFINED or expr.static_rhs is not numba_ir.UNDEFINED
        if fixed or not _SCALARS.issuperset(signature.args):
            return super().lower_binop(resty, expr, op)
        key = op, signature.args
        if key not in self._known:
            function = self.context.typing_context.resolve_value_type(op)
            self._known[key] = function, function.get_call_type(self.context.typing_context, signature.args, {})
        emit = self.context.get_function(*self._known[key])
        names = expr.lhs.name, expr.rhs.name
        kinds = zip(names, signature.args, strict=True)
        given = [self.context.cast(self.builder, self.loadvar(name), self.typeof(name), kind) for name, kind in kinds]
        return self.context.cast(self.builder, emit(self.builder, given), signature.return_type, resty)

    def alloca_lltype(self, name: str, lltype: Any, datamodel: Any = None) -> Any:
        """Make a variable. Its size, for which numba parses a module of LLVM's text, is for debuggers only."""
        if self.flags.debuginfo:
            return super().alloca_lltype(name, lltype, datamodel=datamodel)
        return cgutils.alloca_once(self.builder, lltype, name=name)

    def storevar(self, value: Any, name: str, argidx: Any = None) -> None:
        """Store a variable; as above for one that is a parameter."""
        super().storevar(value, name, argidx=argidx if self.flags.debuginfo else None)

    def lower_normal_function(self, fndesc: Any) -> None:
        """Emit the function, and a C function around it if one is wanted: kernels do not raise, so no status is looked at."""
        super().lower_normal_function(fndesc)
        if self.flags.no_cfunc_wrapper:
            return
        kinds = [self.context.get_value_type(kind) for kind in (fndesc.restype, *fndesc.argtypes)]
        wrapper = ir.Function(self.module, ir.FunctionType(kinds[0], kinds[1:]), fndesc.llvm_cfunc_wrapper_name)
        builder = ir.IRBuilder(wrapper.append_basic_block("entry"))
        call = self.context.call_conv.call_function
        _, result = call(builder, self.function, fndesc.restype, fndesc.argtypes, wrapper.args, attrs=("noinline",))
        builder.ret(result)

    def create_cfunc_wrapper(self) -> None:
        """Make nothing: it is there."""


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(typed_passes.NativeLowering):
    _name = "realalloc_lowering"

    @property
    def lowering_class(self) -> Any:
        return _Lower


_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    _Lowering,
    typed_passes.NoPythonBackend,
)


class _Code(JITCodeLibrary):
    """Code as numba makes it, but no passes are set up for functions that are declared only: twenty of them for each body."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.enable_object_caching()

    def _optimize_functions(self, module: Any) -> None:
        if _ONE_FOR_ALL:
            super()._optimize_functions(module)
            return
        module.data_layout = self._codegen._data_layout
        for function in module.functions:
            if not function.is_declaration:
                passes, builder = self._codegen._function_pass_manager()
                passes.run(function, builder)


class EntryCompiler(Compiler):
    """Compiles what gets machine code of its own."""

    code: ClassVar[type[_Code]] = _Code

    def __init__(self, typing: Any, target: Any, library: Any, *args: Any) -> None:
        given = self.code(target.codegen(), "kernel") if library is None else library
        super().__init__(_Typing(typing), target, given, *args)

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        passes = PassManager("kernel")
        for each in _PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


class _Inlined(_Code):
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


class KernelCompiler(EntryCompiler):
    """Compiles what is only ever inlined."""

    code = _Inlined
