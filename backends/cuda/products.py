"""Matrix products with group shifts, with and without their epilogue."""

from collections.abc import Sequence

from sqcompile.backends.cuda import gemm_nibbles, grid
from sqcompile.backends.cuda.gemm import Gemm
from sqcompile.backends.cuda.gemm_operands import Matrix, Operand
from sqcompile.backends.cuda.gemm_results import Finish, emit
from sqcompile.backends.cuda.gemm_shift import (
    BYTE,
    NIBBLE,
    Shift,
    divided,
    exponent_shift,
    packed,
    signs,
)
from sqcompile.backends.cuda.grid import Array, Expr
from sqcompile.backends.cuda.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.shifts import along_reduction
from sqcompile.backends.strides import broadcast


@KERNELS.kernel(
    "sq::shift_matmul",
    "sq::shift_matmul_dequantize",
    "sq::shift_matmul_dequantize_absmax",
    limit=along_reduction,
    parts=True,
)
def shift_matmul(spec: KernelSpec) -> object:
    """Launches that pack what is shifted and what is multiplied as nibbles, and one product of all
    batches."""
    with grid.function(spec) as f:
        operands = _matrix(f["a"], spec["transpose_a"]), _matrix(f["b"], not spec["transpose_b"])
        batch = f["a"].shape[0] if len(f["a"].shape) == 3 else 1
        shift, groups = _shift(spec, f), spec["groups"]
        ranges, sizes = spec.ranges("a", "b"), (f["a"].size, f["b"].size)
        bits = NIBBLE
        shares = divided(ranges, groups if shift else 1, sizes, NIBBLE)
        if not gemm_nibbles.fit(ranges, shares):
            bits = BYTE
            shares = divided(ranges, groups if shift else 1, sizes)
        sides: list[Sequence[Operand]] = [
            packed(operand, batch, shared, shift, bits)
            if shared.most or bits == NIBBLE
            else [operand]
            for operand, shared in zip(operands, shares, strict=True)
        ]
        gemm = Gemm(sides[0], sides[1], signs(f["a"], f["b"], ranges, bits), batch, bits)
        shape = [*f["a"].shape[:-2], gemm.m, gemm.n]

        def index(z: Expr, m: Expr, n: Expr) -> Expr:
            return (z * gemm.m + m) * gemm.n + n

        emit([(gemm, index)], spec["k_chunk"] > 0, Finish(spec, f, shape))
    return f.result


def _shift(spec: KernelSpec, f: grid.Function) -> Shift | None:
    """The shifts of steps, if there are any."""
    exponent, groups = f.get("exponent"), spec["groups"]
    if exponent is None or groups == 1:
        return None
    steps = broadcast(f["a"].shape, exponent.shape)
    of_k = steps[-2 if spec["transpose_a"] else -1]
    return exponent_shift(exponent, groups, steps[0] if len(steps) == 3 else 0, of_k)


def _matrix(array: Array, transposed: bool) -> Matrix:
    """Rows times k of a tensor (..., rows, k), or (..., k, rows) when transposed."""
    rows, columns = array.shape[-2:]
    z_step = rows * columns if len(array.shape) == 3 else 0
    if transposed:
        return Matrix(array, columns, rows, 1, columns, z_step)
    return Matrix(array, rows, columns, columns, 1, z_step)
