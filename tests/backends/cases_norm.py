"""Norms, reductions and pooling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sqcompile.ops import OPS
from sqcompile.ops.norm import fraction_bits
from sqcompile.ops.pack import pack_int4
from sqcompile.ops.product import channel_sums
from tests.backends.cases import I8, I32, I64, Made, Source, sized


def packed(make: Callable[[Source], list[Any]], place: int) -> Callable[[Source], list[Any]]:
    """The arguments of `make` with the one at `place` packed."""

    def pack(s: Source) -> list[Any]:
        given = make(s)
        given[place] = pack_int4.reference(given[place])
        return given

    return pack


def norms() -> Made:
    yield from batch_norms()
    yield from batch_norm_gradients()
    yield from layer_norms()
    yield from rms_norms()
    yield from group_norms()
    for momentum in (0.1, 0.0, 1.0):
        yield "sqrt", f"{momentum}", lambda s, m=momentum: [s.uniform(1000) * m]
        yield "ema", f"{momentum}", lambda s, m=momentum: [s.edges(37), s.normal(37), m]


def batch_norms() -> Made:
    """Shape, dtype, largest magnitude; affine; ReLU, output bits and sign, saved bits of the fused
    form. The first two run on every CPU: whole periods, and rows left with sums past 32 bits."""
    for shape, dtype, limit, affine, *form in (
        ((8, 8, 8, 16), I32, 200000, True, True, 4, False, 4),
        ((300, 70), I32, 2**31 - 1, False, False, 8, True, 8),
        ((4, 7, 3, 5), I64, 2**34, True, True, 8, False, 3),
        ((1, 1, 1, 3), I8, 127, True, False, 4, True, 4),
        ((16, 10), I8, 127, False, True, 4, False, 8),
        ((2, 17, 9, 2), I32, 5, True, False, 8, False, 4),
        ((2, 200, 100, 3), I32, 1000, True, True, 4, False, 4),
        ((40, 512), I32, 60000, False, False, 4, True, 4),
        ((5, 20, 64), I8, 127, True, True, 4, False, 4),
    ):
        channels, bits = shape[-1], fraction_bits(torch.Size(shape).numel() // shape[-1], limit)
        eps, label = (1e-5 if affine else 0.0), f"{sized(shape)}-{affine}"

        def forward(
            s: Source, sh=shape, d=dtype, li=limit, c=channels, f=bits, a=affine, e=eps
        ) -> list[Any]:
            x = s.integers(-li, li, *sh, dtype=d)
            x[..., 0] = 3  # a constant channel: no spread
            vectors = [s.normal(c) if a else None for _ in range(3)]
            return [x, s.uniform(c) * 1e-3, *vectors, e, f, 4, 0.3352]

        def fused(s: Source, m=forward, given=form) -> list[Any]:
            *first, _, step = m(s)
            relu, out_bits, signed, saved = given
            return [*first, saved, step, relu, out_bits, signed]

        def clipped(s: Source, m=fused) -> list[Any]:
            return [*m(s), None, 0.6]

        def grouped(s: Source, m=fused) -> list[Any]:
            return [*m(s), None, 1.0 if m(s)[-2] == 4 else 0.7, 3]

        def summed(s: Source, m=forward, given=form, sh=shape) -> list[Any]:
            *first, _, step = m(s)
            relu, _, signed, saved = given
            return [*first, saved, step, s.normal(*sh) if relu or signed else None, relu]

        def summed_groups(s: Source, m=summed, sh=shape) -> list[Any]:
            *first, residual, relu = m(s)
            if residual is not None:
                residual = residual * s.uniform(sh[-1]) ** 4
            return [*first, residual, relu, None, 4]

        def given(s: Source, m=forward) -> list[Any]:
            x, *rest = m(s)
            return [x, *rest, channel_sums(x)]

        def backward(s: Source, sh=shape, c=channels, a=affine) -> list[Any]:
            g, xhat = s.integers(-127, 127, *sh), s.integers(-8, 7, *sh)
            return [g, s.uniform(c), xhat, s.uniform(c), s.normal(c) if a else None, 0.3352]

        yield "l1_batch_norm", label, forward
        yield "l1_batch_norm_relu_quantize", f"{label}-{sized(form)}", fused
        yield "l1_batch_norm_relu_quantize", f"{label}-{sized(form)}-clipped", clipped
        yield "l1_batch_norm_add_relu", f"{label}-{sized(form)}", summed
        yield "l1_batch_norm_relu_quantize", f"{label}-{sized(form)}-grouped", grouped
        yield "l1_batch_norm_add_relu", f"{label}-{sized(form)}-grouped", summed_groups
        if dtype != I8:
            yield "l1_batch_norm", f"{label}-given", given
            yield (
                "l1_batch_norm_relu_quantize",
                f"{label}-{sized(form)}-given",
                partial(given, m=fused),
            )
            yield "l1_batch_norm_add_relu", f"{label}-{sized(form)}-given", partial(given, m=summed)
        yield "l1_batch_norm_backward", label, backward
        yield "l1_batch_norm_packed_backward", label, packed(backward, 2)


def batch_norm_gradients() -> Made:
    """Tokens of whole vectors: in samples, across them, left over; rows in a vector of bytes; what
    has no vectors, or no samples."""
    for shape, label, outer, bits, groups in (
        ((4, 8, 8, 16), "4", True, 4, 4),
        ((3, 7, 7, 48), "4", True, 4, 4),
        ((3, 5, 7, 32), "paper", False, 4, 4),
        ((2, 9, 5, 256), "8", True, 8, 1),
        ((5, 3, 3, 16), "naive", False, 4, 1),
        ((1, 3, 3, 64), "4", True, 4, 4),
        ((5, 7, 7, 20), "4", True, 4, 4),
        ((40, 32), "4", True, 4, 4),
        ((6, 2, 2, 16), "6", True, 6, 3),
    ):

        def make(
            s: Source, sh=shape, a=(outer, bits, groups, 7), few=label == "6", pack=bits != 8
        ) -> list[Any]:
            c = sh[-1]
            g, k = s.integers(-127, 127, *sh), s.integers(-8, 7, *sh)
            g[0], k[..., 0] = 3, 5  # a sample and a channel without variety
            scales = s.uniform(c) ** 6
            scales[-1] = 0.0
            gamma = None if few else s.normal(c)
            factor = s.uniform(*[1] * (len(sh) - 1), c) if a[2] > 1 else None
            xhat = pack_int4.reference(k) if pack else k
            return [
                g,
                scales,
                xhat,
                s.uniform(c),
                gamma,
                0.3352,
                factor,
                torch.tensor([5, 7, 3, 1]),
                *a,
            ]

        yield "l1_batch_norm_backward_quantize", f"{sized(shape)}-{label}", make


def layer_norms() -> Made:
    for rows, features in ((64, 128), (300, 70), (3, 33), (1, 1), (7, 16), (5, 1100)):
        label = f"{rows}x{features}"
        for gamma, beta in ((True, True), (True, False), (False, True), (False, False)):

            def layer(s: Source, m=rows, d=features, ga=gamma, be=beta) -> list[Any]:
                x = s.integers(-127, 127, m, d)
                x[0] = 5
                vectors = [s.normal(d) if given else None for given in (ga, be)]
                return [x, s.uniform(m, 1), *vectors, 1e-5, 16, 8, 0.05]

            if gamma and beta or features == 33:
                yield "l1_layer_norm", f"{label}-{gamma}-{beta}", layer

        for bits in (8,) if features % 2 else (8, 4):

            def from_float(s: Source, m=rows, d=features, b=bits) -> list[Any]:
                x = s.normal(m, d)
                x[-1] = 1e-35  # counts as zero
                return [x, 8, s.normal(d), s.normal(d), 1e-5, 16, b, 0.3352]

            yield "quantize_l1_layer_norm", f"{label}-{bits}", from_float

        def backward(s: Source, m=rows, d=features, high=7) -> list[Any]:
            g, xhat = s.integers(-127, 127, m, d), s.integers(-high - 1, high, m, d)
            return [g, s.uniform(m, 1), xhat, s.uniform(m, 1), 0.05]

        def affine_backward(s: Source, m=rows, d=features, high=7) -> list[Any]:
            g, xhat = s.integers(-127, 127, m, d), s.integers(-high - 1, high, m, d)
            return [g, s.uniform(1, d), xhat, 0.05]

        for bits in (8,) if features % 2 else (4,):

            def from_gradient(s: Source, m=rows, d=features, b=bits) -> list[Any]:
                g, k = s.normal(m, d), s.integers(-8, 7, m, d)
                g[-1] = 1e-35  # counts as zero
                gamma = None if d == 16 else s.normal(d)
                xhat = pack_int4.reference(k) if b == 4 else k
                return [g, gamma, torch.tensor([1, 2, 3, 4]), 8, 7, xhat, s.uniform(m, 1), 0.3352]

            yield "quantize_l1_layer_norm_backward", f"{label}-{bits}", from_gradient

        for op, make in (("l1_layer_norm", backward), ("l1_layer_norm_affine", affine_backward)):
            yield f"{op}_backward", label, lambda s, f=make: f(s, high=127)
            if features % 2 == 0 or make is affine_backward:
                yield f"{op}_packed_backward", label, packed(make, 2)

    def long_row(s: Source) -> list[Any]:
        h, xhat = (s.integers(120, 127, 1, 200_000) for _ in range(2))
        xhat[:, ::10] = -1
        return [h, s.uniform(1, 1), xhat, s.uniform(1, 1), 0.05]

    yield "l1_layer_norm_backward", "long", long_row  # one sum is more than int32 holds


def rms_norms() -> Made:
    """The forms of a layer norm that subtract no mean."""
    for rows, features in ((64, 128), (5, 33), (1, 2), (3, 1100)):
        label, even = f"rms-{rows}x{features}", features % 2 == 0

        def layer(s: Source, m=rows, d=features) -> list[Any]:
            x = s.integers(-128, 127, m, d)
            x[0] = 0  # no spread
            return [x, s.uniform(m, 1), s.normal(d), None, 1e-5, 0, 8, 0.05, False]

        def backward(s: Source, m=rows, d=features) -> list[Any]:
            g, xhat = s.integers(-127, 127, m, d), s.integers(-8, 7, m, d)
            return [g, s.uniform(m, 1), xhat, s.uniform(m, 1), 0.3352, False]

        def from_float(s: Source, m=rows, d=features, b=4 if even else 8) -> list[Any]:
            return [s.normal(m, d), 8, s.normal(d), None, 1e-7, 0, b, 0.3352, False]

        def from_gradient(s: Source, m=rows, d=features, b=even) -> list[Any]:
            g, k = s.normal(m, d), s.integers(-8, 7, m, d)
            xhat = pack_int4.reference(k) if b else k
            rng = torch.tensor([1, 2, 3, 4])
            return [g, s.normal(d), rng, 8, 7, xhat, s.uniform(m, 1), 0.3352, False]

        yield "l1_layer_norm", label, layer
        yield "l1_layer_norm_backward", label, backward
        yield "quantize_l1_layer_norm", label, from_float
        yield "quantize_l1_layer_norm_backward", label, from_gradient


def group_norms() -> Made:
    """(N, P, G, K): few and many samples, groups of one channel and of all, periods with rows left
    over, samples of odd size."""
    for shape in (
        (2, 64, 4, 16),
        (9, 49, 3, 10),
        (1, 700, 24, 1),
        (3, 33, 1, 5),
        (17, 1, 2, 8),
        (2, 5000, 2, 33),
    ):
        n, p, g, k = shape
        label, bits, affine = sized(shape), fraction_bits(p * k, 127), k != 1

        def forward(s: Source, sh=shape, f=bits, a=affine) -> list[Any]:
            x = s.integers(-127, 127, *sh)
            x[:, :, 0] = 5  # a constant group: no spread
            vectors = [s.normal(*sh[2:]) if a else None for _ in range(2)]
            return [x, s.uniform(sh[0], 1, sh[2], 1), *vectors, 1e-5, f, 4, 0.3352]

        def backward(s: Source, sh=shape) -> list[Any]:
            h, xhat = s.integers(-127, 127, *sh), s.integers(-8, 7, *sh)
            scale, coefficient = (s.uniform(sh[0], 1, sh[2], 1) for _ in range(2))
            return [h, scale, xhat, coefficient, 0.3352]

        yield "l1_group_norm", label, forward
        yield "l1_group_norm_backward", label, backward
        if p * g * k % 2 == 0:
            yield "l1_group_norm_packed_backward", label, packed(backward, 2)


def reductions() -> Made:
    for shape in ((8, 16, 8, 8), (3, 5, 7, 9), (1, 1, 1, 1), (300, 3, 4, 4)):
        for axes in ([0, 1, 2, 3], [0, 2, 3], [1, 2, 3], [0], [3], [1], [0, 2]):
            label = f"{sized(shape)}-{sized(axes)}"
            kept = [shape[0], 1, 1, 1]
            yield "absmax", label, lambda s, sh=shape, a=axes: [s.edges(*sh), None, a]
            yield (
                "absmax",
                f"{label}-outer",
                lambda s, sh=shape, a=axes, k=kept: [s.normal(*sh), s.edges(*k).abs(), a],
            )
            yield (
                "ordered_sum",
                label,
                lambda s, sh=shape, a=axes: [s.normal(*sh), a, len(a) % 2 == 0],
            )
    for shape in ((70, 40, 6), (9, 300, 7)):
        for axes in ([0], [0, 1], [0, 2], [1, 2]):
            label = f"{sized(shape)}-{sized(axes)}"
            yield "ordered_sum", label, lambda s, sh=shape, a=axes: [s.normal(*sh), a, False]
    for shape in ((512, 70), (3000, 1), (5, 2049), (1100, 20)):
        for axes in ([0], [1], [0, 1]):
            label = f"{sized(shape)}-{sized(axes)}"
            yield "absmax", label, lambda s, sh=shape, a=axes: [s.normal(*sh), None, a]
            yield "ordered_sum", label, lambda s, sh=shape, a=axes: [s.normal(*sh), a, False]


def pools() -> Made:
    """x shape, kernel, stride, padding, dilation, ceil_mode."""
    for shape, kernel, stride, padding, dilation, ceil in (
        ((2, 8, 8, 32), [2, 2], [2, 2], [0, 0], [1, 1], False),
        ((2, 9, 7, 35), [3, 3], [2, 2], [1, 1], [1, 1], False),
        ((1, 9, 8, 3), [3, 2], [2, 3], [1, 1], [1, 2], True),
        ((2, 6, 5, 1), [6, 5], [6, 5], [0, 0], [1, 1], False),
        ((2, 7, 8, 20), [2, 3], [3, 3], [1, 0], [1, 1], False),
    ):
        label = f"{sized(shape)}-{sized(kernel)}-{sized(stride)}"
        call = [kernel, stride, padding]

        def most(s: Source, sh=shape, c=call, d=dilation, e=ceil) -> list[Any]:
            return [s.edges(*sh), *c, d, e]

        def most_backward(s: Source, sh=shape, c=call, d=dilation, e=ceil) -> list[Any]:
            y, tap = OPS["sq::max_pool2d"].reference(s.normal(*sh), *c, d, e)
            return [s.normal(*y.shape), tap, list(sh), *c, d]

        yield "max_pool2d", label, most
        yield "max_pool2d_backward", label, most_backward
        if dilation == [1, 1] and not ceil:

            def mean_backward(s: Source, sh=shape, c=call) -> list[Any]:
                y = OPS["sq::avg_pool2d"].reference(s.normal(*sh), *c)
                return [s.normal(*y.shape), list(sh), *c]

            yield "avg_pool2d", label, lambda s, sh=shape, c=call: [s.normal(*sh), *c]
            yield "avg_pool2d_backward", label, mean_backward
