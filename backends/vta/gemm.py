"""Matrix products as correlations: one row of tiles, one tap, planes along k."""

from collections.abc import Sequence

import numpy as np

from sqcompile.backends.vta.correlation import Correlation, plain
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.forms import (
    Array,
    ProductForm,
    chunks,
    horner,
    joined,
    result_bits,
    shifted,
)
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.spec import GemmSpec


class GemmForm(ProductForm):
    """INP holds a and WGT b, or the other way round where that pads less: then the result is
    the transposed one."""

    def __init__(self, hardware: Hardware, spec: GemmSpec) -> None:
        self.spec = spec
        batch, block = hardware.batch, hardware.block

        def padded(rows: int, columns: int) -> int:
            return -(-rows // batch) * batch * -(-columns // block) * block

        self.swapped = padded(spec.n, spec.m) < padded(spec.m, spec.n)
        self.rows, self.columns = (spec.n, spec.m) if self.swapped else (spec.m, spec.n)
        a, b = spec.a.shifted(spec.groups - 1), spec.b
        first, second = (b, a) if self.swapped else (a, b)
        self.inp = Digits.of(first, hardware.width(Memory.INP))
        self.wgt = Digits.of(second, hardware.width(Memory.WGT))
        planes = -(-spec.k // block)
        correlation = Correlation(
            groups=spec.batch or 1,
            images=1,
            inp_planes=self.inp.count * planes,
            wgt_planes=self.wgt.count * planes,
            outputs=-(-self.columns // block),
            rows=plain(1),
            columns=plain(-(-self.rows // batch)),
            kernel=(1, 1),
            segments=horner(self.inp, self.wgt, planes),
            result_bits=result_bits(self.inp, self.wgt, (first, second), spec.k),
        )
        super().__init__(hardware, correlation)

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """a and b, and the exponent if there is one -> tiles."""
        inp, wgt = self._sides(operands)
        block = self.hardware.block
        rows = chunks(chunks(self.inp.split(inp), 3, block), 2, self.hardware.batch)
        # digit, group, row tile, row, plane, k -> group, digit, plane, row tile, row, k
        grid = rows.transpose(1, 0, 4, 2, 3, 5).reshape(
            *self.correlation.inp_shape, self.hardware.batch, block
        )
        columns = chunks(chunks(self.wgt.split(wgt), 3, block), 2, block)
        # digit, group, output, column, plane, k -> group, output, digit, plane, column, k
        kernels = columns.transpose(1, 2, 0, 4, 3, 5).reshape(
            *self.correlation.wgt_shape, block, block
        )
        return [grid, kernels]

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Tiles -> (m, n) or (batch, m, n), with what the offsets left out."""
        # group, output, row tile, row, column
        found = tiles[:, 0, :, 0].transpose(0, 2, 3, 1, 4)
        found = joined(joined(found, 3, self.columns), 1, self.rows)
        if self.inp.offset or self.wgt.offset:
            inp, wgt = self._sides(operands)
            found = found + self.inp.offset * wgt.sum(-1, dtype=np.int32)[:, None, :]
            rest = (inp - self.inp.offset).sum(-1, dtype=np.int32)
            found = found + self.wgt.offset * rest[:, :, None]
        found = found.transpose(0, 2, 1) if self.swapped else found
        return np.ascontiguousarray(found if self.spec.batch is not None else found[0])

    def _sides(self, operands: Sequence[Array]) -> tuple[Array, Array]:
        """What INP and WGT hold: int32 (group, row, k) and (group, column, k)."""
        spec = self.spec
        a = shifted(operands[0], operands[2] if spec.groups > 1 else None, spec.groups)
        b = operands[1].astype(np.int32)
        if spec.batch is None:
            a, b = a[None], b[None]
        a = a.swapaxes(1, 2) if spec.transpose_a else a
        b = b if spec.transpose_b else b.swapaxes(1, 2)
        return (b, a) if self.swapped else (a, b)
