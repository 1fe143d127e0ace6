"""Matrix products and convolutions, with and without epilogues."""

from typing import Any

from sqcompile.ops.conv import output_shape
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


def convolutions() -> Made:
    """x shape, output channels, kernel, stride, padding, dilation, groups, k_chunk."""
    geometries = [
        ((2, 3, 9, 7), 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
        ((2, 4, 9, 7), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, 3),
        ((3, 6, 8, 8), 6, (3, 3), (2, 2), (1, 1), (1, 1), 6, 0),
        ((1, 1, 5, 5), 1, (5, 5), (1, 1), (2, 2), (1, 1), 1, 1),
        ((2, 8, 6, 6), 4, (1, 1), (2, 2), (0, 0), (1, 1), 1, 0),
        ((2, 2, 4, 40), 3, (3, 7), (3, 2), (4, 5), (2, 3), 1, 2),
        ((2, 3, 1, 1), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
        ((2, 3, 7, 7), 3, (2, 2), (2, 2), (0, 0), (1, 1), 1, 5),
        ((5, 17, 6, 5), 18, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
    ]
    for x, out, kernel, stride, padding, dilation, groups, chunk in geometries:
        w = (out, x[1] // groups, *kernel)
        y = tuple(output_shape(x, w, stride, padding, dilation))
        rest = [list(stride), list(padding), list(dilation), groups, chunk]
        name = f"{sized(x)}-{sized(w)}-{sized(stride)}"

        def fprop(s: Source, x=x, w=w, rest=rest) -> list[Any]:
            return [s.integers(0, 255, *x, dtype=U8), s.integers(-127, 127, *w), *rest]

        def dgrad(s: Source, x=x, w=w, y=y, rest=rest) -> list[Any]:
            e = s.integers(0, 3, 1, y[1], 1, 1)
            return [s.integers(-127, 127, *y), s.integers(-7, 7, *w), e, 4, list(x), *rest]

        def wgrad(s: Source, x=x, w=w, y=y, rest=rest) -> list[Any]:
            e = s.integers(0, 7, y[0], 1, *y[2:])
            return [s.integers(-127, 127, *y), s.integers(-127, 127, *x), e, 8, list(w), *rest]

        for op, make, scale in (
            ("conv_fprop", fprop, (1, out, 1, 1)),
            ("conv_dgrad", dgrad, (x[0], 1, 1, 1)),
            ("conv_wgrad", wgrad, (out, 1, 1, 1)),
        ):
            yield op, name, make
            yield (
                f"{op}_dequantize",
                name,
                lambda s, m=make, sc=scale: [*m(s), [s.uniform(1), s.uniform(*sc)], None, False],
            )
        yield (
            "conv_fprop_dequantize",
            f"{name}-bias-relu",
            lambda s, m=fprop, o=out: [*m(s), [s.uniform(1)], s.normal(1, o, 1, 1), True],
        )
