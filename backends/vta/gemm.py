"""Matrix products as correlations: one row of tiles, one tap, planes along k.

Groups of k count 2^shift times; how stands in reduction.py.
"""

from collections.abc import Sequence

import numpy as np

from sqcompile.backends.vta.correlation import Correlation, plain
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.forms import (
    Array,
    ProductForm,
    check_epilogue,
    chunks,
    horner,
    joined,
    shifted,
    stored,
)
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.reduction import Length, Sides, factors, reduction
from sqcompile.backends.vta.spec import GemmSpec


class GemmForm(ProductForm):
    """INP holds a and WGT b, or the other way round where that pads less: then the result is
    the transposed one. With `sort`, groups that have `counts` are sorted even where operands that
    are shifted multiply less."""

    def __init__(self, hardware: Hardware, spec: GemmSpec, sort: bool = False) -> None:
        self.spec, self.widths = spec, (hardware.width(Memory.INP), hardware.width(Memory.WGT))
        batch, block = hardware.batch, hardware.block

        def padded(rows: int, columns: int) -> int:
            return -(-rows // batch) * batch * -(-columns // block) * block

        self.swapped = padded(spec.n, spec.m) < padded(spec.m, spec.n)
        self.rows, self.columns = (spec.n, spec.m) if self.swapped else (spec.m, spec.n)
        found = reduction(self._operands, Length(spec.k), block, spec.groups, spec.counts, sort)
        inp, wgt = found.digits
        check_epilogue(spec, inp, wgt)
        segments = horner(found.runs)
        correlation = Correlation(
            groups=spec.batch or 1,
            images=1,
            inp_planes=inp.count * found.planes,
            wgt_planes=wgt.count * found.planes,
            outputs=-(-self.columns // block),
            rows=plain(1),
            columns=plain(-(-self.rows // batch)),
            kernel=(1, 1),
            segments=segments,
            totals=stored(found.largest, segments, hardware, spec),
            relu=spec.relu,
        )
        super().__init__(hardware, correlation, found)

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """a and b, and the exponent if there is one -> tiles."""
        inp, wgt = self._sides(operands)
        block = self.hardware.block
        rows = chunks(self._planes(self.inp.split(inp), operands), 2, self.hardware.batch)
        # digit, group, row tile, row, plane, k -> group, digit, plane, row tile, row, k
        grid = rows.transpose(1, 0, 4, 2, 3, 5).reshape(
            *self.correlation.inp_shape, self.hardware.batch, block
        )
        columns = chunks(self._planes(self.wgt.split(wgt), operands), 2, block)
        # digit, group, output, column, plane, k -> group, output, digit, plane, column, k
        kernels = columns.transpose(1, 2, 0, 4, 3, 5).reshape(
            *self.correlation.wgt_shape, block, block
        )
        return [grid, kernels]

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Tiles -> (m, n) or (batch, m, n), with what the offsets left out."""
        spec = self.spec
        # group, output, row tile, row, column
        found = tiles[:, 0, :, 0].transpose(0, 2, 3, 1, 4)
        found = joined(joined(found, 3, self.columns), 1, self.rows)
        if self.inp.offset or self.wgt.offset:
            inp, wgt = self._sides(operands)
            by_k = self._factors(operands)[:, None]  # group, 1, k
            whole = (wgt * by_k).sum(-1, dtype=np.int32)
            found = found + self.inp.offset * whole[:, None, :]
            rest = ((inp - self.inp.offset) * by_k).sum(-1, dtype=np.int32)
            found = found + self.wgt.offset * rest[:, :, None]
        found = found.transpose(0, 2, 1) if self.swapped else found
        return np.ascontiguousarray(found if spec.batch is not None else found[0])

    def _operands(self, most: int) -> Sides:
        """INP and WGT when a is shifted by up to `most`."""
        values = (self.spec.a.shifted(most), self.spec.b)
        first, second = values[::-1] if self.swapped else values
        inp, wgt = self.widths
        return Sides((first, second), (Digits.of(first, inp), Digits.of(second, wgt)))

    def _sides(self, operands: Sequence[Array]) -> tuple[Array, Array]:
        """What INP and WGT hold: int32 (group, row, k) and (group, column, k)."""
        spec = self.spec
        exponent = operands[2] if spec.groups > 1 and self.groups is None else None
        a = shifted(operands[0], exponent, spec.groups)
        b = operands[1].astype(np.int32)
        if spec.batch is None:
            a, b = a[None], b[None]
        a = a.swapaxes(1, 2) if spec.transpose_a else a
        b = b if spec.transpose_b else b.swapaxes(1, 2)
        return (b, a) if self.swapped else (a, b)

    def _factors(self, operands: Sequence[Array]) -> Array:
        """(batch or 1, k): how often what the accumulators add counts, which shifts that the
        operands have are no part of."""
        spec = self.spec
        sorted_ = self.groups is not None
        by_k = factors(self._exponents(operands), spec.groups) if sorted_ else np.int32(1)
        found: Array = np.broadcast_to(by_k, (spec.batch or 1, spec.k))
        return found

    def _exponents(self, operands: Sequence[Array]) -> Array:
        """(1 or batch, k)."""
        found: Array = operands[2].reshape(-1, self.spec.k)
        return found

    def _planes(self, digits: Array, operands: Sequence[Array]) -> Array:
        """(digit, group, row, k) -> (digit, group, row, plane, BLOCK)."""
        if self.groups is not None:
            places = self.groups.places(self._exponents(operands))
            digits = self.groups.spread(digits, places, sort=1, axis=3)
        return chunks(digits, 3, self.hardware.block)
