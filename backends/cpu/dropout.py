"""Dropout masks: 128 draws of a block become 16 bytes."""

from math import prod

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.bit_packing import mask_bytes
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.philox import BLOCK, Philox
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec

BYTES = BLOCK // 8
"""Bytes of a block."""
TASK = 16
"""Blocks of one parallel iteration."""


@KERNELS.kernel("sq::dropout_mask", run_time=("stream",))
def dropout_mask(spec: KernelSpec) -> object:
    """Runs of whole blocks in parallel; the last one, if it is cut off, by itself."""
    count = prod(spec["shape"])
    with nest.function(spec, ("stream",)) as f:
        (out,) = f.outputs
        philox = Philox.of(f["rng"], f.scalars["stream"])
        whole, rest = divmod(count, BLOCK)
        if whole:
            with (
                nest.parallel(-(-whole // TASK), whole * BLOCK * 8, "task") as task,
                nest.serial(tirx.min(TASK, whole - task * TASK), "block") as i,
            ):
                block = task * TASK + i
                _block(philox, block, spec["least"], out, block * BYTES)
        if rest:
            held = nest.scratch(BYTES, "uint8")
            _block(philox, whole, spec["least"], held, 0)
            for byte in range(-(-rest // 8)):
                bits = (1 << min(8, rest - 8 * byte)) - 1
                kept = tirx.bitwise_and(held[byte], nest.const(bits, "uint8"))
                out.store(whole * BYTES + byte, kept)
    return f.result


def _block(philox: Philox, block: Expr, least: int, out: Array, at: Expr) -> None:
    """The 16 bytes of a block, at `at`."""
    limit = nest.splat(nest.const(least, "uint32"))
    for index, draw in enumerate(philox.draws(block)):
        out.store(nest.ramp(at + 2 * index, 2), mask_bytes(draw >= limit))
