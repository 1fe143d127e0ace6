"""Matrix products and convolutions, with and without epilogues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sqcompile.ops.conv import output_shape
from sqcompile.ops.pack import pack_mask
from sqcompile.ops.quantize import limits
from tests.backends.cases import I8, I32, I64, U8, Made, Ranged, Source, sized


def products() -> Made:
    sizes = [(37, 33, 45), (1, 1, 1), (1, 100, 17), (64, 10, 32), (10, 1, 130)]
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            for batch, (m, n, k), kinds, chunk in (
                ((), sizes[0], (I8, U8), 0),
                ((3,), sizes[0], (U8, I8), 7),
                ((), sizes[1], (I8, I8), 0),
                ((), sizes[2], (I8, I8), 30),
                ((2,), sizes[3], (I8, I8), 0),
                ((), sizes[4], (U8, U8), 1),
            ):

                def operands(
                    s: Source, ta=transpose_a, tb=transpose_b, b=batch, m=m, n=n, k=k, kinds=kinds
                ) -> list[Any]:
                    limits = {I8: (-127, 127), U8: (0, 255)}
                    a = s.integers(
                        *limits[kinds[0]], *b, *((k, m) if ta else (m, k)), dtype=kinds[0]
                    )
                    c = s.integers(
                        *limits[kinds[1]], *b, *((n, k) if tb else (k, n)), dtype=kinds[1]
                    )
                    exponent = [1] * (len(b) + 2)
                    exponent[-2 if ta else -1] = k
                    return [a, c, s.integers(0, 3, *exponent), 4, ta, tb]

                name = f"{sized((*batch, m, n, k))}-{'t' * transpose_a}n{'t' * transpose_b}-{chunk}"
                yield "shift_matmul", name, lambda s, o=operands, c=chunk: [*o(s), c]

                def fused(s: Source, o=operands, c=chunk, m=m, n=n) -> list[Any]:
                    a, b, exponent, *rest = o(s)
                    scales = [s.uniform(n), s.uniform(m, 1)]
                    return [a, b, None, 1, *rest[1:], c, scales, s.normal(n), True]

                if transpose_b:
                    yield "shift_matmul_dequantize", name, fused
    yield from _stored_products()
    yield from _long_products()
    yield from _absmax_products()
    yield from _sorted_products()
    yield from _tailed_products()
    yield from _placed_products()
    yield (
        "shift_matmul_dequantize",
        "no-epilogue",
        lambda s: (
            [s.integers(-7, 7, 5, 9), s.integers(-7, 7, 9, 6), None, 1, False, False, 0]
            + [[s.uniform(1)], None, False]
        ),
    )
    for label, dtype, high in (("int32", I32, 2**31 - 1), ("int64", I64, 2**40)):
        for bias in (False, True):
            yield (
                "dequantize",
                f"{label}-{bias}",
                lambda s, d=dtype, h=high, b=bias: [
                    s.integers(-h, h, 4, 5, 7, 9, dtype=d),
                    [s.uniform(1, 5, 1, 1), s.uniform(1)],
                    s.normal(1, 5, 1, 1) if b else None,
                ],
            )
    yield (
        "dequantize",
        "no-scale",
        lambda s: [s.integers(-9, 9, 3, 40, dtype=I32), [], s.normal(40)],
    )


def _stored_products() -> Made:
    """Every way in which operands are stored and shifts are divided: (bits, signed) of both."""
    for a, b, groups, ta, tb, batch in (
        ((4, True), (4, True), 4, False, True, ()),  # b takes all shifts, a is read in place
        ((4, True), (4, True), 4, True, False, (2,)),
        ((6, True), (6, True), 5, False, False, (2,)),  # two bits each
        ((6, True), (6, True), 5, False, True, ()),
        ((8, True), (4, False), 5, False, False, ()),  # b is the unsigned one
        ((8, False), (8, False), 1, False, True, ()),  # a is stored minus 128
        ((8, False), (8, False), 4, False, False, ()),
        ((8, True), (8, True), 12, True, True, ()),
        ((4, False), (4, True), 3, False, True, ()),  # a linear layer's activations
    ):

        def make(s: Source, a=a, b=b, groups=groups, ta=ta, tb=tb, batch=batch) -> list[Any]:
            m, n, k = 83, 70, 91
            operands = []
            for (bits, signed), shape in (
                (a, (k, m) if ta else (m, k)),
                (b, (n, k) if tb else (k, n)),
            ):
                low, high = limits(bits, signed)
                dtype = I8 if signed else U8
                operands.append(s.integers(low, high, *batch, *shape, dtype=dtype))
            each = (k, 1) if ta else (1, k)
            exponent = s.integers(0, groups - 1, *batch, *each)
            return [*operands, exponent, groups, ta, tb, 0]

        kinds = "-".join(f"{'s' if signed else 'u'}{bits}" for bits, signed in (a, b))
        name = f"{kinds}-G{groups}-{'t' * ta}n{'t' * tb}"
        yield "shift_matmul", f"{name}-{len(batch)}", Ranged(make, (a, b))


def _sorted_products() -> Made:
    """Reductions sorted by group whose steps are neighbours: tiles that sort the rows of the next
    one, more windows than quads, several segments, all rows first, groups that are empty."""
    for label, batch, m, n, k, groups, highest, tb in (
        ("blocks", (), 300, 20, 91, 4, 3, False),
        ("windows", (2,), 300, 20, 65, 12, 11, False),
        ("segments", (), 100, 17, 9000, 3, 2, True),
        ("first", (), 19, 1100, 130, 4, 2, True),
        ("one-group", (3,), 33, 30, 128, 4, 0, False),
    ):

        def make(
            s: Source, batch=batch, m=m, n=n, k=k, groups=groups, highest=highest, tb=tb
        ) -> list[Any]:
            b = s.grid(I8, *batch, *((n, k) if tb else (k, n)))
            exponent = s.integers(0, highest, *batch, 1, k)
            return [s.grid(I8, *batch, m, k), b, exponent, groups, False, tb, 0]

        yield "shift_matmul", f"sorted-{label}", make


def _long_products() -> Made:
    """More than int32 holds, results that are not in cache, panels that one task reads."""
    for label, m, n, k, chunk in (
        ("wide", 2, 17, 70_004, 60_000),
        ("wide-narrow", 3, 5, 66_400, 60_000),
        ("segments", 18, 40, 20_000, 0),
        ("far", 300, 500, 6, 0),
    ):
        yield (
            "shift_matmul",
            label,
            lambda s, m=m, n=n, k=k, c=chunk: [
                *(s.integers(100 if c else -9, 127, *size) for size in ((m, k), (n, k))),
                *(None, 1, False, True, c),
            ],
        )
    yield (
        "shift_matmul",
        "few-steps",
        lambda s: [s.grid(I8, 47, 3), s.grid(I8, 3, 47), None, 1, False, False, 0],
    )
    yield (
        "shift_matmul",
        "batches",
        lambda s: [s.grid(U8, 17, 5, 8), s.grid(I8, 17, 20, 8), None, 1, False, True, 0],
    )


def _absmax_products() -> Made:
    for label, batch, m, n, k, bias, relu in (
        ("plain", (), 9, 37, 20, False, False),
        ("relu", (3,), 14, 20, 5, True, True),
        ("narrow", (), 40, 3, 12, True, False),
    ):

        def make(s: Source, batch=batch, m=m, n=n, k=k, bias=bias, relu=relu) -> list[Any]:
            operands = [s.grid(U8, *batch, m, k), s.grid(I8, *batch, k, n), None]
            scales = [s.uniform(n), s.uniform(m, 1)]
            return [*operands, 1, False, False, 0, scales, s.normal(n) if bias else None, relu]

        yield "shift_matmul_dequantize_absmax", label, make

    def with_nan(s: Source) -> list[Any]:
        scale = s.uniform(70)
        scale[65] = float("nan")
        operands = [s.grid(U8, 30, 8), s.grid(I8, 8, 70), None]
        return [*operands, 1, False, False, 0, [scale], None, False]

    yield "shift_matmul_dequantize_absmax", "nan", with_nan


def tailed(make: Callable[[Source], list[Any]], shape: Sequence[int], both: bool = True) -> Any:
    """A product with a residual of `shape`, and a mask where `both`."""

    def made(s: Source) -> list[Any]:
        mask = pack_mask.reference(s.normal(*shape) > 0) if both else None
        return [*make(s), s.normal(*shape), mask]

    return made


def _tailed_products() -> Made:
    for label, batch, m, n, k, bits, both in (
        ("both", (), 19, 80, 20, 4, True),
        ("one-vector", (3,), 7, 16, 9, 8, True),
        ("residual", (), 14, 21, 5, 8, False),
    ):

        def make(s: Source, batch=batch, m=m, n=n, k=k, bits=bits) -> list[Any]:
            low, high = limits(bits, True)
            operands = [s.integers(low, high, *batch, m, k), s.integers(low, high, *batch, k, n)]
            return [*operands, None, 1, False, False, 0, [s.uniform(n)], None, False]

        yield "shift_matmul_dequantize", f"tail-{label}", tailed(make, (*batch, m, n), both)


def _placed_products() -> Made:
    """Results that are split and permuted: heads side by side, heads apart, rows of several digits,
    columns that fill no vectors, and results that are computed as their transpose."""
    heads, tokens = [0, 2, 1, 3], [0, 3, 1, 2]
    for label, batch, (m, n, k), sizes, order, bits, groups, ta, tail in (
        ("apart", (), (26, 96, 40), [2, 13, 3, 32], heads, 6, 3, False, True),
        ("turned", (6,), (64, 13, 37), [2, 3, 64, 13], tokens, 6, 3, True, False),
        ("joined", (6,), (13, 64, 37), [2, 3, 13, 64], heads, 6, 3, True, True),
        ("odd", (6,), (9, 37, 20), [2, 3, 9, 37], heads, 8, 1, False, False),
        ("narrow", (6,), (9, 5, 20), [2, 3, 9, 5], heads, 8, 1, False, False),
        ("digits", (), (24, 32, 9), [2, 3, 4, 2, 16], [1, 3, 2, 0, 4], 4, 4, True, True),
        ("far", (), (700, 256, 8), [7, 100, 4, 64], heads, 8, 1, False, False),
        ("turned-sorted", (6,), (40, 21, 130), [2, 3, 40, 21], tokens, 8, 4, True, False),
        ("turned-lines", (6,), (40, 21, 130), [2, 3, 40, 21], tokens, 8, 4, False, False),
        ("turned-narrow", (6,), (5, 21, 9), [2, 3, 5, 21], tokens, 8, 1, False, False),
    ):

        def make(
            s: Source, batch=batch, m=m, n=n, k=k, bits=bits, groups=groups, ta=ta
        ) -> list[Any]:
            low, high = limits(bits, True)
            a = s.integers(low, high, *batch, *((k, m) if ta else (m, k)))
            b = s.integers(low, high, *batch, *((k, n) if ta else (n, k)))
            shifts = s.integers(0, groups - 1, *batch, *((k, 1) if ta else (1, k)))
            scales = [s.uniform(*batch, m, 1), s.uniform(n)]
            return [a, b, shifts, groups, ta, not ta, 0, scales, s.normal(n), True]

        given = tailed(make, (*batch, m, n), n % 16 == 0) if tail else without_tail(make)
        for op, source in (("", given), ("_absmax", make)):
            if not op or label in ("apart", "turned", "odd"):

                def placed(s: Source, source=source, place=(sizes, order)) -> list[Any]:
                    return [*source(s), *place]

                kinds = ((bits, True), (bits, True))
                yield f"shift_matmul_dequantize{op}", f"placed-{label}", Ranged(placed, kinds)


def without_tail(make: Callable[[Source], list[Any]]) -> Callable[[Source], list[Any]]:
    """A product with neither residual nor mask."""
    return lambda s: [*make(s), None, None]


@dataclass(frozen=True)
class Convolution:
    """A geometry, the bits of both operands, the groups of the gradient, and the sign of x."""

    x: tuple[int, int, int, int]
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    k_chunk: int = 0
    bits: int = 8
    shift_groups: int = 1
    signed: bool = False

    @property
    def w(self) -> tuple[int, ...]:
        return (self.outputs, self.x[3] // self.groups, *self.kernel)

    @property
    def y(self) -> tuple[int, ...]:
        return tuple(output_shape(self.x, self.w, self.stride, self.padding, self.dilation))

    @property
    def rest(self) -> list[Any]:
        windows = [list(one) for one in (self.stride, self.padding, self.dilation)]
        return [*windows, self.groups, self.k_chunk]

    def __str__(self) -> str:
        stride = sized((*self.stride, *self.dilation))
        return f"{sized(self.x)}-{sized(self.w)}-{stride}-{self.bits}-{self.shift_groups}"

    def draw(self, s: Source, shape: tuple[int, ...], signed: bool = True) -> Tensor:
        low, high = limits(self.bits, signed)
        return s.integers(low, high, *shape, dtype=I8 if signed else U8)

    def fprop(self, s: Source) -> list[Any]:
        return [self.draw(s, self.x, self.signed), self.draw(s, self.w), *self.rest]

    def dgrad(self, s: Source) -> list[Any]:
        e = s.integers(0, self.shift_groups - 1, 1, 1, 1, self.outputs)
        shift = [e if self.shift_groups > 1 else None, self.shift_groups]
        return [self.draw(s, self.y), self.draw(s, self.w), *shift, list(self.x), *self.rest]

    def wgrad(self, s: Source) -> list[Any]:
        e = s.integers(0, self.shift_groups - 1, *self.y[:3], 1)
        shift = [e if self.shift_groups > 1 else None, self.shift_groups]
        x = self.draw(s, self.x, self.signed)
        return [self.draw(s, self.y), x, *shift, list(self.w), *self.rest]


SAME = {"kernel": (3, 3), "padding": (1, 1)}
CONVOLUTIONS = [
    # Shapes of ResNets: whole vectors, shifts in the weights, strides as phases.
    Convolution((9, 8, 8, 16), 32, **SAME, bits=4, shift_groups=4),
    Convolution((2, 10, 10, 64), 80, **SAME, stride=(2, 2), bits=4, shift_groups=4, signed=True),
    # Odd sizes, fewer channels than lanes, shifts on both sides, every tail.
    Convolution((5, 9, 7, 3), 5, **SAME, bits=6, shift_groups=4, signed=True),
    Convolution((1, 31, 9, 20), 40, **SAME, stride=(2, 2), bits=6, shift_groups=4),
    # 16-bit operands, dilation, groups of channels, 64-bit results.
    Convolution((2, 9, 7, 4), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, 3, 8, 4),
    Convolution((2, 4, 40, 2), 3, (3, 7), (3, 2), (4, 5), (2, 3), k_chunk=2, shift_groups=8),
    Convolution((2, 10, 10, 6), 8, (3, 3), (2, 2), (2, 2), (2, 2), signed=True),
    # Kernels of one pixel, of the stride's size, of even size; padding that nothing reads.
    Convolution((2, 6, 6, 64), 20, (1, 1), (2, 2)),
    Convolution((2, 5, 5, 6), 9, (1, 1), padding=(1, 1), signed=True),
    Convolution((2, 12, 12, 3), 20, (4, 4), (4, 4)),
    Convolution((2, 1, 1, 3), 3, **SAME),
    Convolution((0, 4, 4, 3), 3, **SAME),
    # Depthwise.
    Convolution((3, 8, 8, 6), 6, **SAME, stride=(2, 2), groups=6, shift_groups=4, signed=True),
    Convolution((1, 30, 9, 40), 40, (5, 5), (2, 1), (2, 2), (1, 2), 40),
]
SUMMED = [
    # Tiles, blocks of images and vectors of channels that overlap; rows of one image; long sums.
    *CONVOLUTIONS[:5],
    Convolution((23, 5, 7, 17), 70, **SAME),
    Convolution((1, 61, 150, 32), 24, (3, 3), bits=4),
    Convolution((2, 3, 3, 70001), 2, (2, 2), k_chunk=9),
    Convolution((2, 6, 6, 64), 160, (1, 1), signed=True),
    # Depthwise, and one result.
    *CONVOLUTIONS[-2:],
    Convolution((1, 1, 1, 3), 1, **SAME),
]
TAILED = [
    # Direct, Winograd, phases of a stride, pixels that no result reads, odd rows, depthwise.
    Convolution((3, 8, 9, 16), 20, **SAME, bits=4, shift_groups=4),
    Convolution((2, 9, 8, 48), 32, **SAME, bits=4, shift_groups=4),
    Convolution((2, 7, 9, 32), 24, **SAME, stride=(2, 2), bits=4, shift_groups=4),
    Convolution((2, 6, 7, 64), 20, (1, 1), (2, 2)),
    Convolution((2, 5, 7, 3), 5, **SAME),
    Convolution((2, 6, 5, 32), 32, **SAME, groups=32),
    # Groups of channels that begin within a byte of the mask, on one CPU or another.
    Convolution((2, 5, 6, 80), 40, **SAME, groups=4),
    Convolution((1, 3, 3, 48), 8, (1, 1), groups=4),
    Convolution((1, 3, 3, 48), 16, (1, 1), groups=8),
]
GROUPED = [
    # Group exponents of x: shifts in weights and images, per channel; both; in the weights alone.
    Convolution((1, 31, 9, 20), 40, **SAME, stride=(2, 2), bits=6, shift_groups=4),
    Convolution((3, 8, 8, 6), 6, **SAME, stride=(2, 2), groups=6, bits=4, shift_groups=3),
    Convolution((9, 8, 8, 16), 32, **SAME, bits=4, shift_groups=3),
    Convolution((2, 10, 10, 64), 80, **SAME, stride=(2, 2), bits=4, shift_groups=4, signed=True),
    # Winograd, short and odd rows of channels, channel groups and 64-bit results, one pixel.
    Convolution((2, 9, 8, 48), 32, **SAME, bits=4, shift_groups=3),
    Convolution((5, 9, 7, 3), 5, **SAME, bits=6, shift_groups=3, signed=True),
    Convolution((2, 9, 7, 4), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, 3, 8, 4),
    Convolution((2, 6, 6, 64), 20, (1, 1), (2, 2), bits=4, shift_groups=3),
]
LONG = {
    "conv_fprop": Convolution((1, 3, 3, 70001), 2, (2, 2), k_chunk=9),
    "conv_dgrad": Convolution((1, 2, 2, 3), 70001, (1, 1), k_chunk=9),
    "conv_wgrad": Convolution((1, 270, 300, 2), 3, (2, 2), k_chunk=9, signed=True),
}
"""Reductions that one int32 accumulator does not hold at 8 bits."""
PADDED = Convolution((1, 3, 3, 7367), 2, (3, 3), signed=True)
"""A reduction that it does hold, but not with the zeros behind each row of the kernel."""


def convolutions() -> Made:
    """Every geometry with each product, accumulators and float results in turns."""
    for index, c in enumerate(CONVOLUTIONS):
        products = {
            "conv_fprop": (c.fprop, ((c.bits, c.signed), (c.bits, True)), (c.outputs,)),
            "conv_dgrad": (c.dgrad, ((c.bits, True), (c.bits, True)), (c.x[0], 1, 1, 1)),
            "conv_wgrad": (
                c.wgrad,
                ((c.bits, True), (c.bits, c.signed)),
                (c.outputs, 1, 1, 1),
            ),
        }
        for position, (op, (make, operands, scale)) in enumerate(products.items()):
            if (index + position) % 2:
                yield op, str(c), Ranged(make, operands)
            else:

                def fused(s: Source, make=make, scale=scale) -> list[Any]:
                    return [*make(s), [s.uniform(1), s.uniform(*scale)], None, False]

                yield f"{op}_dequantize", str(c), Ranged(fused, operands)
    for c in SUMMED:
        yield (
            "conv_fprop_sums",
            str(c),
            Ranged(c.fprop, ((c.bits, c.signed), (c.bits, True))),
        )
    for c in TAILED:

        def scaled(s: Source, c=c) -> list[Any]:
            return [*c.dgrad(s), [s.uniform(c.x[0], 1, 1, 1)], None, False]

        yield (
            "conv_dgrad_dequantize",
            f"tail-{c}",
            Ranged(tailed(scaled, c.x, c.x[3] % 16 == 0), ((c.bits, True), (c.bits, True))),
        )
    yield from _grouped_convolutions()
    c = CONVOLUTIONS[3]

    def biased(s: Source) -> list[Any]:
        return [*c.fprop(s), [s.uniform(1)], s.normal(c.outputs), True]

    yield "conv_fprop_dequantize", f"{c}-bias-relu", biased
    for op, long in LONG.items():
        yield op, f"long-{long}", getattr(long, op.removeprefix("conv_"))
    yield "conv_fprop", f"padded-{PADDED}", Ranged(PADDED.fprop, ((8, True), (8, True)))

    def largest(s: Source) -> list[Any]:
        x, w = s.integers(250, 255, 1, 4, 4, 3000, dtype=U8), s.integers(120, 127, 16, 3000, 1, 1)
        shifts = s.integers(0, 0, 1, 1, 1, 3000)
        return [x, w, [1, 1], [0, 0], [1, 1], 1, 0, shifts, 4]

    yield "conv_fprop_sums", "largest", largest  # two results are more than int32 holds


def _grouped_convolutions() -> Made:
    """Activations with group exponents: forward in each form, and the gradient of the weight, which
    has a scale for every input channel."""
    for index, c in enumerate(GROUPED):

        def grouped(s: Source, c=c, form="") -> list[Any]:
            middle = [[s.uniform(1), s.uniform(c.outputs)], s.normal(c.outputs), True]
            e = s.integers(0, c.shift_groups - 1, 1, 1, 1, c.x[3])
            return [*c.fprop(s), *(middle if form else []), e, c.shift_groups]

        for form in ("", "_sums") if index % 2 else ("_dequantize", "_sums"):
            made = partial(grouped, form="dequantize") if form == "_dequantize" else grouped
            operands = ((c.bits, c.signed), (c.bits, True))
            yield f"conv_fprop{form}", f"grouped-{c}", Ranged(made, operands)
    for c in (GROUPED[0], GROUPED[2], GROUPED[5], Convolution((4, 8, 8, 32), 32, **SAME, bits=4)):

        def scaled(s: Source, c=c) -> list[Any]:
            scales = [s.uniform(1), s.uniform(c.outputs, 1, 1, 1), s.uniform(1, c.x[3], 1, 1)]
            return [*c.wgrad(s), scales, None, False]

        operands = ((c.bits, True), (c.bits, c.signed))
        yield "conv_wgrad_dequantize", f"grouped-{c}", Ranged(scaled, operands)
