"""Matrix products with group shifts, with and without their epilogue."""

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm import Product
from sqcompile.backends.cpu.placement import Placement, product_shape, split
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.shifts import along_reduction

MOST_GROUPS = 12
"""Groups up to which the shortest segment of any operands adds up in int32."""

TAILS = ("residual", "mask")
"""Operands that are read where the product's own order has them."""


def _limit(spec: KernelSpec) -> str:
    return _exponents(spec) or _places(spec)


def _places(spec: KernelSpec) -> str:
    if spec.get("sizes") is None:
        return ""
    if split(product_shape(spec), spec["sizes"]) is None:
        return "a placed result is split axis by axis"
    placement = Placement.of(spec)
    if not placement.in_vectors:
        return "a placed result is one of runs of whole vectors"
    if placement.turned and any(one for name, one in spec.inputs if name in TAILS):
        return "a result that is placed along its columns has neither residual nor mask"
    return ""


def _exponents(spec: KernelSpec) -> str:
    if spec.tensor("exponent") is None or spec["groups"] <= MOST_GROUPS:
        return along_reduction(spec)
    return along_reduction(spec) or f"at most {MOST_GROUPS} groups are exact"


@KERNELS.kernel(
    "sq::shift_matmul",
    "sq::shift_matmul_dequantize",
    "sq::shift_matmul_dequantize_absmax",
    limit=_limit,
    parts=True,
)
def shift_matmul(spec: KernelSpec) -> object:
    """Packs b, then computes blocks of rows in parallel."""
    with nest.function(spec) as f:
        Product(spec, f).emit()
    return f.result
