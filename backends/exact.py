"""Float operations that round on their own, on every target.

What a compiler may not do with them differs: LLVM contracts a product and a sum into one rounding
unless a fence stands between; a CUDA kernel names the product that rounds. TVM's simplifier, which
is not IEEE arithmetic, looks through neither, nor into memory.
"""

from typing import Any

from tvm import tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

Expr = Any

_ROUNDED = {"Mul": "__fmul_rn", "Div": "__fdiv_rn"}
"""CUDA's operations that are never contracted, by the expression that they stand for."""
_SAME_BITS = {
    ("float32", "int32"): "__float_as_int",
    ("int32", "float32"): "__int_as_float",
    ("uint32", "float32"): "__uint_as_float",
}
"""CUDA's reinterpretations, by dtypes: TVM writes them through pointers; a constant has none."""


def _on_cuda() -> bool:
    target = Target.current(allow_none=True)
    return target is not None and target.kind.name == "cuda"


def fence(product: Expr, lanes: int = 1) -> Expr:
    """A float32 product or quotient (of `lanes` lanes) that is rounded before something is added
    to it."""
    if _on_cuda():
        named = _ROUNDED.get(type(product).__name__)
        if named is None:
            return product
        return tirx.call_pure_extern("float32", named, product.a, product.b)
    kind = "float32" if lanes == 1 else f"float32x{lanes}"
    return tirx.call_llvm_pure_intrin(kind, "llvm.arithmetic.fence", product)


def literal(value: float) -> Expr:
    """A float32 constant out of a user's graph, safe in any expression.

    TVM simplifies x + 0.0 to x and x * 0.0 to 0.0, which is not IEEE arithmetic (-0.0, NaN); it
    does not look into memory, and the compilers behind it, which do, are exact.
    """
    constant = tirx.const(value, "float32")
    if value != 0.0:
        return constant
    held = T.alloc_buffer((1,), "float32", scope="local" if _on_cuda() else "global")
    T.buffer_store(held, constant, [0])
    return held[0]


def bits_of(value: Expr, dtype: str) -> Expr:
    """The bits of a scalar or vector read as a dtype of its width."""
    named = _SAME_BITS.get((str(value.ty.dtype), dtype)) if _on_cuda() else None
    if named is None:
        return tirx.reinterpret(dtype, value)
    return tirx.call_pure_extern(dtype, named, value)
