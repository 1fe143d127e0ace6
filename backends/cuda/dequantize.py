"""The end of a product: accumulators to float32, scales, bias, and what follows them."""

from collections.abc import Sequence

from sqcompile.backends.cuda import grid
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.pack import bit
from sqcompile.backends.cuda.passes import Stored, along, mapped
from sqcompile.backends.cuda.quantize import at_shape
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


class Epilogue:
    """What an op's arguments make of its accumulators, which have `shape`."""

    def __init__(self, spec: KernelSpec, f: grid.Function, shape: Sequence[int]) -> None:
        self.shape = shape
        self.scales, self.bias = f.list("scales"), f.get("bias")
        self.relu = bool(spec.get("relu", False))
        self.residual: Array | None = f.get("residual")
        self.mask: Array | None = f.get("mask")

    def of(self, acc: Expr, index: Expr) -> Expr:
        """The float32 of an accumulator at a row-major index, kept: one rounding, then each scale,
        bias, ReLU, residual and mask."""
        y = grid.keep(grid.cast(acc, "float32"))
        for scale in self.scales:
            y = grid.keep(grid.fence(y * at_shape(scale, self.shape, index)))
        if self.bias is not None:
            y = grid.keep(y + at_shape(self.bias, self.shape, index))
        zero = grid.const(0.0, "float32")
        if self.relu:
            y = grid.keep(grid.select(y < zero, zero, y))
        if self.residual is not None:
            y = grid.keep(y + self.residual[index])
        if self.mask is not None:
            y = grid.keep(grid.select(bit(self.mask, index), y, zero))
        return y


@KERNELS.kernel("sq::dequantize")
def dequantize(spec: KernelSpec) -> object:
    """One pass."""
    with grid.function(spec) as f:
        acc, (out,) = f["acc"], f.outputs
        epilogue = Epilogue(spec, f, out.shape)
        mapped(out.size, [along(acc)], [Stored(out)], lambda i, given: [epilogue.of(given[0], i)])
    return f.result
