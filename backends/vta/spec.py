"""What a program computes: shapes, and the ranges of its operands' integers.

Operands and results are those of the op with the same name (sqcompile/ops/product.py, conv.py).
Group exponents are run-time tensors, so a program must be right for every one of them; a spec
only says how many groups there are.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from sqcompile.backends.conv_geometry import Axis


@dataclass(frozen=True)
class Values:
    """The integers that an operand may hold, low to high, both included, before its shift."""

    low: int
    high: int

    @classmethod
    def of(cls, bits: int, signed: bool) -> "Values":
        """What a quantiser of `bits` bits gives."""
        return cls(-(1 << bits - 1) + 1, (1 << bits - 1) - 1) if signed else cls(0, (1 << bits) - 1)

    @property
    def spans_zero(self) -> bool:
        """Whether zero is one of them."""
        return self.low <= 0 <= self.high

    def shifted(self, most: int) -> "Values":
        """After shifts to the left by 0 to `most`."""
        return Values(min(self.low, self.low << most), max(self.high, self.high << most))


@dataclass(frozen=True)
class GemmSpec:
    """acc[m, n] = sum_k (a[m, k] << (groups - 1 - exponent)) * b[k, n], int32, as shift_matmul.

    Operands a, b and, from two groups on, the exponent, which broadcasts to a. `batch` is None
    for matrices, else the length of a leading axis; transposed operands lie as (k, m), (n, k).
    `counts`, where they are given, say for how many k with exponent 0, 1, ... the program has
    room, in every batch: it may be right for no other exponents then, and these may vary along k
    and from batch to batch only. With `relu` it is max(acc, 0).
    """

    m: int
    n: int
    k: int
    a: Values
    b: Values
    batch: int | None = None
    transpose_a: bool = False
    transpose_b: bool = False
    groups: int = 1
    counts: tuple[int, ...] | None = None
    relu: bool = False

    @property
    def macs(self) -> int:
        """Multiplications that the product asks for."""
        return (self.batch or 1) * self.m * self.n * self.k

    @property
    def reduced(self) -> int:
        """Values that have exponents, and lie inside tiles where they are sorted by these."""
        return self.k


Kind = Literal["fprop", "dgrad", "wgrad"]


@dataclass(frozen=True)
class ConvSpec:
    """conv_fprop(x, w), conv_dgrad(g, w) or conv_wgrad(g, x), int32.

    Shapes are x (N, H, W, C), w (O, C / channel_groups, KH, KW), y (N, OH, OW, O). Operands are
    the two that are named and, from two groups on, the exponent, which broadcasts to the first.
    `counts` as a GemmSpec's: of a fprop and a dgrad whose exponents vary along channels only, in
    every channel group; of a wgrad whose exponents vary along pixels only, those of all images.
    With `relu` it is max(acc, 0); an fprop with `sums` has a second result,
    int64 (O,), the sums of acc over N, OH and OW. One of both at most.
    """

    kind: Kind
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    y: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    channel_groups: int
    first: Values
    second: Values
    groups: int = 1
    counts: tuple[int, ...] | None = None
    relu: bool = False
    sums: bool = False

    @property
    def reduced(self) -> int:
        """Values that have exponents, and lie inside tiles where they are sorted by these: channels
        of a group, or a wgrad's pixels."""
        channels = {"fprop": self.w[1], "dgrad": self.w[0] // self.channel_groups}
        return channels.get(self.kind, prod(self.y[:3]))

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns."""
        rows, columns = (
            Axis(
                self.x[1 + i],
                self.y[1 + i],
                self.w[2 + i],
                self.stride[i],
                self.padding[i],
                self.dilation[i],
            )
            for i in range(2)
        )
        return rows, columns

    @property
    def macs(self) -> int:
        """Multiplications that the product asks for, those with padding included."""
        return prod(self.y) * prod(self.w[1:])


class Step(NamedTuple):
    """x = op(x, y), or x >> y for shr; y is an immediate, or operand number `value`: a tensor of
    x's shape or a vector over its channels."""

    op: Literal["add", "min", "max", "shr"]
    by: Literal["immediate", "tensor", "vector"]
    value: int


@dataclass(frozen=True)
class ElementwiseSpec:
    """int32 (rows, channels): the first tensor after all steps or, with `sums`, int64 (channels,),
    the sums of that over its rows.

    Operands: int32 tensors (rows, channels), then int32 vectors (channels,).
    """

    rows: int
    channels: int
    tensors: tuple[Values, ...]
    vectors: tuple[Values, ...]
    steps: tuple[Step, ...]
    sums: bool = False

    @property
    def macs(self) -> int:
        """None."""
        return 0


def relu() -> tuple[Step, ...]:
    """max(x, 0)."""
    return (Step("max", "immediate", 0),)


def requantize(shift: int, low: int, high: int) -> tuple[Step, ...]:
    """x / 2^shift, rounded to nearest, halves up, and clipped."""
    rounded = (Step("add", "immediate", 1 << shift - 1), Step("shr", "immediate", shift))
    clip = (Step("max", "immediate", low), Step("min", "immediate", high))
    return (*(rounded if shift else ()), *clip)


Spec = GemmSpec | ConvSpec | ElementwiseSpec
