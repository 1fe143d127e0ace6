"""Matrix products as correlations: one row of tiles, one tap, planes along k.

Groups of k count 2^shift times. Operands are shifted as they are packed where that fits an element,
and in digits where it does not: such a program is right for all exponents. Where the spec knows
how many k each group has, the groups can be planes of their own, padded to whole tiles, and the
accumulators shift between them (Horner over sorted groups): what multiplies less is taken.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from sqcompile.backends.vta.correlation import Correlation, Run, plain
from sqcompile.backends.vta.digits import Digits
from sqcompile.backends.vta.forms import (
    Array,
    ProductForm,
    bound,
    check_epilogue,
    chunks,
    digit_runs,
    horner,
    joined,
    shifted,
    stored,
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
        most = spec.groups - 1
        self.inp, self.wgt = self._digits(hardware, most, centred=False)
        planes = -(-spec.k // block)
        weighted = digit_runs(self.inp, self.wgt, planes)
        self.sorted_planes: list[int] | None = None
        if spec.counts is not None:
            narrow = self._digits(hardware, 0, centred=True)
            lengths = [-(-count // block) for count in spec.counts]
            by_group = _sorted_runs(*narrow, lengths)
            if _cost(by_group) < _cost(weighted):
                self.sorted_planes, weighted, planes = lengths, by_group, sum(lengths)
                self.inp, self.wgt = narrow
        values = (spec.a.shifted(most), spec.b)
        check_epilogue(spec, self.inp, self.wgt)
        largest = bound(self.inp, self.wgt, values[::-1] if self.swapped else values, spec.k)
        segments = horner(weighted)
        correlation = Correlation(
            groups=spec.batch or 1,
            images=1,
            inp_planes=self.inp.count * planes,
            wgt_planes=self.wgt.count * planes,
            outputs=-(-self.columns // block),
            rows=plain(1),
            columns=plain(-(-self.rows // batch)),
            kernel=(1, 1),
            segments=segments,
            totals=stored(largest, segments, hardware, spec),
            relu=spec.relu,
        )
        super().__init__(hardware, correlation)

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """a and b, and the exponent if there is one -> tiles."""
        inp, wgt = self._sides(operands, shift=self.sorted_planes is None)
        block = self.hardware.block
        places = self._places(operands)
        rows = chunks(_planes(self.inp.split(inp), places, block), 2, self.hardware.batch)
        # digit, group, row tile, row, plane, k -> group, digit, plane, row tile, row, k
        grid = rows.transpose(1, 0, 4, 2, 3, 5).reshape(
            *self.correlation.inp_shape, self.hardware.batch, block
        )
        columns = chunks(_planes(self.wgt.split(wgt), places, block), 2, block)
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
            inp, wgt = self._sides(operands, shift=True)
            found = found + self.inp.offset * wgt.sum(-1, dtype=np.int32)[:, None, :]
            rest = (inp - self.inp.offset).sum(-1, dtype=np.int32)
            found = found + self.wgt.offset * rest[:, :, None]
        found = found.transpose(0, 2, 1) if self.swapped else found
        return np.ascontiguousarray(found if self.spec.batch is not None else found[0])

    def _digits(self, hardware: Hardware, most: int, centred: bool) -> tuple[Digits, Digits]:
        """Of INP and of WGT, when a is shifted by up to `most`."""
        values = (self.spec.a.shifted(most), self.spec.b)
        first, second = values[::-1] if self.swapped else values
        return (
            Digits.of(first, hardware.width(Memory.INP), centred),
            Digits.of(second, hardware.width(Memory.WGT), centred),
        )

    def _sides(self, operands: Sequence[Array], shift: bool) -> tuple[Array, Array]:
        """What INP and WGT hold: int32 (group, row, k) and (group, column, k)."""
        spec = self.spec
        exponent = operands[2] if spec.groups > 1 and shift else None
        a = shifted(operands[0], exponent, spec.groups)
        b = operands[1].astype(np.int32)
        if spec.batch is None:
            a, b = a[None], b[None]
        a = a.swapaxes(1, 2) if spec.transpose_a else a
        b = b if spec.transpose_b else b.swapaxes(1, 2)
        return (b, a) if self.swapped else (a, b)

    def _places(self, operands: Sequence[Array]) -> Array | None:
        """Where each k goes among the planes; None when they are in order."""
        if self.sorted_planes is None:
            return None
        exponent = operands[2].reshape(-1)
        counts = np.bincount(exponent, minlength=self.spec.groups)
        if exponent.size != self.spec.k or counts.tolist() != list(self.spec.counts or ()):
            raise ValueError(
                f"the program is for {self.spec.counts} values of k in each group, not for "
                f"{counts.tolist()}"
            )
        starts = [0, *accumulate(self.sorted_planes)]
        places = np.empty(self.spec.k, np.int64)
        for group, count in enumerate(counts):
            first = starts[group] * self.hardware.block
            places[exponent == group] = first + np.arange(count)
        return places


def _planes(digits: Array, places: Array | None, block: int) -> Array:
    """(digit, group, row, k) -> (digit, group, row, plane, BLOCK)."""
    if places is None:
        return chunks(digits, 3, block)
    spread = np.zeros((*digits.shape[:3], int(places.max()) + 1), digits.dtype)
    spread[..., places] = digits
    return chunks(spread, 3, block)


def _sorted_runs(inp: Digits, wgt: Digits, lengths: Sequence[int]) -> list[tuple[int, Run]]:
    """The runs of groups of so many planes: the first has the largest shift, the last none."""
    planes, starts = sum(lengths), [0, *accumulate(lengths)]
    return [
        (weight + len(lengths) - 1 - group, Run(run.inp + start, run.wgt + start, length))
        for weight, run in digit_runs(inp, wgt, planes)
        for group, (start, length) in enumerate(zip(starts, lengths, strict=False))
        if length
    ]


def _cost(weighted: Sequence[tuple[int, Run]]) -> int:
    """Operations on each accumulator tile: products, and shifts between weights."""
    return sum(run.planes for _, run in weighted) + len({0, *(weight for weight, _ in weighted)})
