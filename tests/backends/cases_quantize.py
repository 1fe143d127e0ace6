"""Quantisers, absmax and what backward packs."""

from typing import Any

import torch

from sqcompile.ops.carried import ROWS
from sqcompile.ops.philox import draws
from tests.backends.cases import U8, Made, Source, sized

SHAPES = [(130, 64), (9, 37), (8, 16, 16, 16), (3, 7, 7, 5), (2, 3, 4, 20), (1, 1, 1, 1), (33, 10)]
"""Channels last. Rows of whole vectors, rows that vectors cross, rows shorter than a vector."""
RUNS = [(41, 32), (19, 16), (20, 2100), (35, 6), (3000,)]
"""Runs that end early: several rows in a vector of bytes, tiles of columns, one row."""
RNG = torch.tensor([0x9ABCDEF0, 7, 3, 1])


def kept(shape: tuple[int, ...], *axes: int) -> list[int]:
    """The shape with size 1 on all axes but `axes`."""
    wanted = [axis % len(shape) for axis in axes]
    return [size if axis in wanted else 1 for axis, size in enumerate(shape)]


def spread(s: Source, *shape: int) -> torch.Tensor:
    """Values whose size differs by row and by column, as those of gradients do."""
    return s.normal(*shape) * s.uniform(*kept(shape, 0)) ** 4 * s.uniform(*kept(shape, -1)) ** 4


def quantizers() -> Made:
    yield "draws", "1000", lambda s: [RNG, 1000, 0xDEADBEEF]
    yield "draws", "1", lambda s: [torch.tensor([-1, 2**40 + 5, 0, 0]), 1, 0]
    for shape in SHAPES:
        name, inner = sized(shape), kept(shape, -1)
        for bits, signed in ((2, True), (4, True), (8, True), (3, False), (8, False)):

            def make(s: Source, shape=shape, bits=bits, signed=signed) -> list[Any]:
                x = s.normal(*shape)
                return [x, x.abs().amax().reshape([1] * len(shape)), bits, signed]

            yield "quantize", f"{name}-{'s' if signed else 'u'}{bits}", make

        def channels(s: Source, shape=shape, inner=inner) -> list[Any]:
            r = s.uniform(*inner)
            r.view(-1)[::3] = 0.0
            return [s.edges(*shape), r, 4, True]

        yield "quantize", f"{name}-channels-edges", channels

        def ties(s: Source, shape=shape) -> list[Any]:
            return [s.integers(-15, 15, *shape).float() / 2, torch.full([1], 7.0), 4, True]

        yield "quantize", f"{name}-ties", ties
        for signed in (True, False):

            def grouped(s: Source, shape=shape, inner=inner, signed=signed) -> list[Any]:
                x = s.normal(*shape) * s.uniform(*inner) ** 4
                r = x.abs().amax().reshape(kept(shape)) * 0.6
                return [x, r, 4, signed, s.integers(0, 2, *inner)]

            yield "quantize", f"{name}-grouped-{signed}", grouped

            def shifted(s: Source, shape=shape, signed=signed) -> list[Any]:
                layout = kept(shape, 0, -1)
                x = s.normal(*shape) * s.uniform(*layout) ** 4
                r = x.abs().amax().reshape(kept(shape)) * 0.8
                return [x, r, 6, signed, s.integers(0, 2, *layout), 3]

            yield "quantize", f"{name}-shifted-{signed}", shifted
        yield (
            "group_scale",
            f"{name}-grouped",
            lambda s, i=inner: [s.uniform(*kept(i)), s.integers(0, 3, *i), 4, False],
        )
        yield "quant_scale", name, lambda s, i=inner: [s.edges(*i).abs(), 4, True, 4]
        yield "clip_range", name, lambda s, i=inner: [s.edges(*i).abs(), 0.6]
        yield "outer_scale", name, lambda s, i=inner: [s.edges(*i).abs()]
        for groups in (1, 4):
            yield (
                "group_exponent",
                f"{name}-{groups}",
                lambda s, i=inner, g=groups: [s.uniform(*i) ** 6, g],
            )
        yield from _stochastic(shape)
    yield from _nothing()
    for shape in RUNS:
        yield from _stochastic(shape)


def _nothing() -> Made:
    """Group exponents where all counts as zero."""
    yield (
        "quantize",
        "grouped-zero",
        lambda s: [s.normal(9, 20), torch.full([1, 1], 2.0**-101), 4, True, s.integers(0, 2, 20)],
    )
    yield (
        "group_scale",
        "grouped-zero",
        lambda s: [torch.full([1, 1], 2.0**-101), s.integers(0, 2, 1, 20), 4, True],
    )


def _stochastic(shape: tuple[int, ...]) -> Made:
    name, whole, outer, inner = sized(shape), kept(shape), kept(shape, 0), kept(shape, -1)
    for label, free, group in (("dgrad", outer, inner), ("wgrad", inner, kept(shape, 0, 1, -2))):

        def shifted(s: Source, free=free, group=group) -> list[Any]:
            m, e = s.uniform(*free), s.integers(0, 3, *group)
            m.view(-1)[::4] = 0.0
            return [s.normal(*shape), s.uniform(*whole), m, e, RNG, 4, 0xFEEDBEEF]

        yield "quantize_stochastic", f"{name}-{label}", shifted
    for label, make in (
        ("plain", lambda s: [s.edges(*shape), torch.ones(whole), None, None, RNG, 8, 1]),
        ("per-channel", lambda s: [s.normal(*shape), s.uniform(*inner), None, None, RNG, 2, 9]),
        ("zero", lambda s: [torch.zeros(shape), torch.zeros(whole), None, None, RNG, 4, 1]),
        ("below-one", lambda s: [below_one(shape), torch.full(whole, 7.0), None, None, RNG, 4, 1]),
    ):
        yield "quantize_stochastic", f"{name}-{label}", make


def below_one(shape: tuple[int, ...]) -> torch.Tensor:
    """With RNG, stream 1 and steps of 1 the first row of every run ends just below zero, where what
    it carries on rounds up to one; the others are zeros."""
    x = torch.zeros(shape)
    rows = x.view(-1, shape[-1])
    first = rows[::ROWS]
    drawn = draws.reference(RNG, first.numel(), 1).view(first.shape).float()
    rows[::ROWS] = torch.nextafter(-(drawn + 0.5) * 2.0**-16, torch.tensor(-1.0))
    return x


def gradients() -> Made:
    """shift_quantize in every layout: scales on rows, on columns, on both, or none."""
    for shape in ((67, 37), (300, 64), (8, 16, 16, 16), (3, 7, 7, 5), (1, 1)):
        name, last = sized(shape), len(shape) - 1
        rows = list(range(last))
        for label, outer, inner, bits, groups in (
            ("dgrad", [0], [last], 4, 4),
            ("wgrad", [last], rows, 4, 4),
            ("dgrad-1", [0], [], 8, 1),
            ("wgrad-1", [last], [], 8, 1),
            ("paper", [], [last], 4, 4),
            ("naive", [], [], 4, 1),
        ):
            scaled = label.startswith("d") or label == "paper"

            def make(s: Source, sh=shape, a=(outer, inner, bits, groups, 7), f=scaled) -> list[Any]:
                factor = s.uniform(*kept(sh, -1)) if f else None
                return [spread(s, *sh), factor, RNG, *a]

            yield "shift_quantize", f"{name}-{label}", make
    yield (
        "shift_quantize",
        "batched",
        lambda s: [spread(s, 3, 40, 20), None, RNG, [0, 1], [0, 2], 6, 3, 5],
    )
    yield (
        "shift_quantize",
        "batched-transposed",
        lambda s: [spread(s, 3, 40, 20), None, RNG, [0, 2], [0, 1], 6, 3, 5],
    )
    yield (
        "shift_quantize",
        "zero",
        lambda s: [torch.zeros(20, 32), s.uniform(1, 32), RNG, [0], [1], 4, 4, 5],
    )


def pairs() -> Made:
    """shift_quantize_pair: with and without outer scales, groups and a factor."""
    for shape in (
        (67, 37),
        (300, 64),
        (8, 16, 16, 16),
        (3, 7, 7, 5),
        (4, 9, 5, 1),
        (1, 1),
        (35, 16),
        (18, 2180),
    ):
        for label, outer, bits, groups in (
            ("4", True, 4, 4),
            ("8", True, 8, 1),
            ("paper", False, 4, 4),
            ("naive", False, 4, 1),
        ):

            def make(s: Source, sh=shape, a=(outer, bits, groups, 7)) -> list[Any]:
                factor = s.uniform(*kept(sh, -1)) if a[2] > 1 else None
                return [spread(s, *sh), factor, RNG, *a]

            yield "shift_quantize_pair", f"{sized(shape)}-{label}", make
    yield (
        "shift_quantize_pair",
        "zero-channels",
        lambda s: [
            s.normal(20, 32) * (s.uniform(1, 32) > 0.5),
            s.uniform(1, 32),
            RNG,
            True,
            8,
            1,
            5,
        ],
    )


def weights() -> Made:
    """quantize_rows: whole runs of vectors, a run that overlaps, vectors, scalars, ties, zeros."""
    for shape, bits, signed in (
        ((9, 128), 4, True),
        ((70, 5, 9, 7), 4, True),
        ((33, 150), 8, False),
        ((20, 37), 2, True),
        ((6, 1, 3, 3), 8, True),
        ((5,), 4, True),
    ):

        def make(s: Source, shape=shape, grid=(bits, signed)) -> list[Any]:
            x = s.edges(*shape) if shape[0] % 3 else s.integers(-15, 15, *shape).float() / 2
            x[::4] = 0.0
            return [x, *grid]

        yield "quantize_rows", f"{sized(shape)}-{'s' if signed else 'u'}{bits}", make


def absmaxes() -> Made:
    """Every way through the kernel: tasks on kept axes, slices, a flat reduction, short rows."""
    for label, shape, axes, outer in (
        ("rows", (300, 67), [1], [1, 67]),
        ("columns", (301, 67), [0], [301, 1]),
        ("all", (20000,), [0], None),
        ("all-scaled", (9, 2048), [0, 1], [9, 1]),
        ("channels", (8, 9, 16, 48), [0, 1, 2], [8, 1, 1, 1]),
        ("samples", (8, 9, 16, 48), [1, 2, 3], None),
        ("pixels", (8, 9, 16, 48), [3], [1, 1, 1, 48]),
        ("short-rows", (4000, 5), [1], [1, 5]),
        ("short-columns", (4000, 5), [0], [4000, 1]),
        ("heads", (3, 60, 33), [1], [3, 60, 1]),
        ("between", (5, 9, 4, 8), [0, 2], [5, 1, 4, 1]),
        ("none", (5, 9), [], None),
    ):

        def make(s: Source, shape=shape, axes=axes, outer=outer) -> list[Any]:
            return [s.normal(*shape), None if outer is None else s.edges(*outer).abs(), axes]

        yield "absmax", label, make


def packs() -> Made:
    for shape in ((4, 32, 33), (3, 5), (1,), (8, 16), (129, 256)):
        size = torch.Size(shape).numel()
        yield "pack_int4", f"{sized(shape)}-s", lambda s, sh=shape: [s.integers(-8, 7, *sh)]
        yield (
            "pack_int4",
            f"{sized(shape)}-u",
            lambda s, sh=shape: [s.integers(0, 15, *sh, dtype=U8)],
        )
        for signed in (True, False):
            yield (
                "unpack_int4",
                f"{sized(shape)}-{signed}",
                lambda s, sh=shape, n=size, k=signed: [
                    s.integers(0, 255, (n + 1) // 2, dtype=U8),
                    list(sh),
                    k,
                ],
            )
        yield "pack_mask", sized(shape), lambda s, sh=shape: [s.mask(*sh)]
        yield (
            "unpack_mask",
            sized(shape),
            lambda s, sh=shape, n=size: [s.integers(0, 255, (n + 7) // 8, dtype=U8), list(sh)],
        )
