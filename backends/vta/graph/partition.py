"""Which calls of a lowered module run on the accelerator, decided by Relax's own passes.

`FuseOpsByPattern` finds the calls of kernels that have a program and makes each a function for the
code generator called vta; `RunCodegen` puts calls of external functions in their place; `transfers`
writes out what such a call does: operands into an image of DRAM, the program, results out of it.
`MergeCompositeFunctions` has nothing to merge, for between two products there is always a float
epilogue, and every product is a program of its own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.dpl import is_op, wildcard
from tvm.relax.dpl.pattern import GlobalVarPattern
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.transform import FuseOpsByPattern, FusionPattern, RunCodegen

from sqcompile.backends.vta.graph.offload import Offload
from sqcompile.runtime.vta import ADD, EXECUTE, LENGTHS, PACK, UNPACK

CODEGEN = "vta"
"""The name of the code generator, which is the prefix of the pattern's."""


def partitioned(module: tvm.IRModule, offloads: Mapping[str, Sequence[Offload]]) -> tvm.IRModule:
    """A lowered module in which calls of the kernels in `offloads` run on the accelerator; kernels
    that nothing calls any more are gone."""
    entries = [
        variable.name_hint
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function)
    ]
    grouped = FuseOpsByPattern([_pattern(offloads)], bind_constants=False, annotate_codegen=True)
    found = grouped(module)
    symbols = _symbols(found)
    external = RunCodegen(entry_functions=entries)(found)
    explicit = transfers(external, {name: offloads[kernel] for name, kernel in symbols.items()})
    called = {name for entry in entries for name in _kernels(explicit[entry])}
    kept = {
        variable: function
        for variable, function in explicit.functions.items()
        if variable.name_hint in called or variable.name_hint in entries
    }
    return tvm.IRModule(kept, attrs=explicit.attrs)


def _pattern(offloads: Mapping[str, Sequence[Offload]]) -> FusionPattern:
    """A call of one of the kernels."""

    def chosen(context: Any) -> bool:
        return context.matched_expr.args[0].name_hint in offloads

    call = is_op("relax.call_tir")(GlobalVarPattern(""), wildcard())
    return FusionPattern(f"{CODEGEN}.product", call, {}, chosen)


def _symbols(module: tvm.IRModule) -> dict[str, str]:
    """The kernel that each function for the code generator calls, by the function's name."""
    found: dict[str, str] = {}
    for variable, function in module.functions.items():
        if function.attrs and function.attrs.get("Codegen") == CODEGEN:
            (found[variable.name_hint],) = _kernels(function)
    return found


def _kernels(function: relax.Function) -> list[str]:
    """The kernels that a function calls, in it or in its local functions."""
    names: list[str] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and expr.op == tvm.ir.Op.get("relax.call_tir"):
            names.append(expr.args[0].name_hint)

    relax.analysis.post_order_visit(function, visit)
    return names


def _generated(functions: Sequence[Any], options: Any, constants: Any) -> list[Any]:
    """What RunCodegen asks for: runtime modules. Programs are data, so there is none."""
    return []


tvm_ffi.register_global_func(f"relax.ext.{CODEGEN}", _generated, override=True)


def transfers(module: tvm.IRModule, offloads: Mapping[str, Sequence[Offload]]) -> tvm.IRModule:
    """A module in which a call of an external function, by name in `offloads`, is three: PACK
    gives an image of DRAM with the operands, EXECUTE what a program makes of it, UNPACK the
    product. Where the program is written in the run, LENGTHS says first for which lengths of
    groups, and the others take that too. A product in parts has those calls for each of them,
    and ADD their sum."""
    writer = _Transfers(module, offloads)
    for variable, function in module.functions.items():
        if isinstance(function, relax.Function):
            writer.builder_.update_func(variable, writer.visit_expr(function))
    return writer.builder_.get()


@mutator
class _Transfers(PyExprMutator):
    def __init__(self, module: tvm.IRModule, offloads: Mapping[str, Sequence[Offload]]) -> None:
        super().__init__(module)
        self.offloads = offloads

    def visit_call_(self, call: Any) -> Any:
        """Write out a call of a program."""
        call = self.visit_expr_post_order(call)
        if call.op != tvm.ir.Op.get("relax.call_dps_packed"):
            return call
        symbol = str(call.args[0].global_symbol)
        if symbol not in self.offloads:
            return call
        operands, (result,) = list(call.args[1].fields), call.ty_args
        parts = [self._part(one, operands, result) for one in self.offloads[symbol]]
        if len(parts) == 1:
            return parts[0]
        return relax.call_dps_packed(ADD, [self.builder_.emit(part) for part in parts], result)

    def _part(self, offload: Offload, operands: list[Any], result: Any) -> Any:
        """The last of the calls for a program: UNPACK."""
        identity, cut = (tvm.ir.StringImm(one) for one in (offload.identity, offload.cut))
        if offload.cut:
            result = relax.TensorType(result.shape, "int32")
        if offload.rows:
            (whole,) = operands
            operands = [self.builder_.emit(relax.op.reshape(whole, offload.rows))]
        lengths = self._lengths(offload, identity, operands)
        dram = relax.TensorType((offload.dram,), "uint8")
        before = self._emit(PACK, [identity, cut, *operands, *lengths], dram)
        after = self._emit(EXECUTE, [identity, before, *lengths], dram)
        return relax.call_dps_packed(UNPACK, [identity, cut, after, *operands, *lengths], result)

    def _lengths(self, offload: Offload, identity: Any, operands: list[Any]) -> list[Any]:
        """The lengths of groups that the program is written for, if it is."""
        if not offload.written_for:
            return []
        of_exponent = json.dumps(json.loads(offload.cut)[2:]) if offload.cut else ""
        kind = relax.TensorType((offload.written_for,), "int32")
        return [self._emit(LENGTHS, [identity, tvm.ir.StringImm(of_exponent), operands[2]], kind)]

    def _emit(self, symbol: str, arguments: list[Any], result: Any) -> Any:
        return self.builder_.emit(relax.call_dps_packed(symbol, arguments, result))
