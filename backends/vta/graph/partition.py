"""Which calls of a lowered module run on the accelerator, decided by Relax's own passes.

`FuseOpsByPattern` finds the calls of kernels that have a program, each alone or a product with the
ReLU of its result. `MergeCompositeFunctions` makes regions of those that hang together, a product
and the sums of its channels, for the code generator called vta, and `RunCodegen` puts calls of
external functions in their place. `Transfers` writes out what such a call does: operands into an
image of DRAM, the program, results out of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.dpl import is_op, is_tuple, wildcard
from tvm.relax.dpl.pattern import GlobalVarPattern
from tvm.relax.transform import (
    FuseOpsByPattern,
    FusionPattern,
    MergeCompositeFunctions,
    RunCodegen,
)

from sqcompile.backends.vta.graph.fused import Fusions
from sqcompile.backends.vta.graph.offload import Offload
from sqcompile.backends.vta.graph.regions import Region, region_of
from sqcompile.backends.vta.graph.transfers import Transfers

CODEGEN = "vta"
"""The name of the code generator, which is the prefix of the patterns'."""
_MAIN = "main"
"""The one function that MergeCompositeFunctions looks at."""


class Partitioned(NamedTuple):
    """A module whose products run on the accelerator, and the programs that it calls: of a kernel,
    or of two in one program, by their names with a "+" between them."""

    module: tvm.IRModule
    programs: dict[str, list[Offload]]


def partitioned(
    module: tvm.IRModule, offloads: Mapping[str, Sequence[Offload]], fusions: Fusions
) -> Partitioned:
    """A lowered module in which calls of the kernels in `offloads` run on the accelerator; kernels
    that nothing calls any more are gone."""
    entries = [
        variable
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function)
    ]
    grouped = FuseOpsByPattern(_patterns(offloads, fusions), bind_constants=False)(module)
    kept: dict[Any, Any] = {}
    programs: dict[str, list[Offload]] = {}
    for entry in entries:
        function, regions = _external(grouped, entry)
        writer = Transfers(module, regions, offloads, fusions)
        kept[entry] = writer.visit_expr(function)
        programs |= writer.programs
    called = {name for function in kept.values() for name in kernels_of(function)}
    kept |= {
        variable: function
        for variable, function in module.functions.items()
        if variable.name_hint in called
    }
    return Partitioned(tvm.IRModule(kept, attrs=module.attrs), programs)


def _patterns(offloads: Mapping[str, Sequence[Offload]], fusions: Fusions) -> list[FusionPattern]:
    """A product with its ReLU, where that has a program; a kernel that has one."""

    def chosen(context: Any) -> bool:
        return context.matched_expr.args[0].name_hint in offloads

    def rectified(context: Any) -> bool:
        relu = context.matched_expr
        (accumulators,) = relu.args[1].fields
        product = context.matched_bindings[accumulators]
        alone = len(context.var_usages[accumulators]) == 1
        names = product.args[0].name_hint, relu.args[0].name_hint
        return alone and fusions.of(*names) is not None

    def call(operands: Any) -> Any:
        return is_op("relax.call_tir")(GlobalVarPattern(""), operands)

    kernel = call(wildcard())
    return [
        FusionPattern(f"{CODEGEN}.product_relu", call(is_tuple([call(wildcard())])), {}, rectified),
        FusionPattern(f"{CODEGEN}.kernel", kernel, {}, chosen),
    ]


def _external(grouped: tvm.IRModule, entry: Any) -> tuple[relax.Function, dict[str, Region]]:
    """One of the module's functions with calls of external functions for its regions, and these by
    symbol. MergeCompositeFunctions wants a function called main, and no other that calls composite
    ones."""
    main = tvm.ir.GlobalVar(_MAIN)
    alone = {
        variable: function
        for variable, function in grouped.functions.items()
        if not isinstance(function, relax.Function) or "Composite" in (function.attrs or {})
    }
    alone[main] = grouped[entry].with_attr("global_symbol", _MAIN)
    merged = MergeCompositeFunctions()(tvm.IRModule(alone))
    regions = {
        variable.name_hint: region_of(function)
        for variable, function in merged.functions.items()
        if (function.attrs or {}).get("Codegen") == CODEGEN
    }
    external = RunCodegen(entry_functions=[_MAIN])(merged)
    return external[_MAIN].with_attr("global_symbol", entry.name_hint), regions


def kernels_of(function: relax.Function) -> list[str]:
    """The kernels that a function calls."""
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
