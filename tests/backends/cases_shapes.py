"""Lookups by number, resampling and dropout masks: tails, sizes of one, numbers outside."""

from typing import Any

import torch

from sqcompile.ops import resample_table as tables
from tests.backends.cases import I32, I64, U8, Made, Source, sized

RNG = [3, 5, 7, 11]


def lookups() -> Made:
    """Shape, axis and how many numbers; some lie outside, some repeat."""
    for shape, axis, count, dtype in (
        ((50, 96), 0, 70, I64),
        ((9, 7), 0, 40, I32),
        ((3, 11, 20), 1, 9, I64),
        ((5, 13), 1, 37, I64),
        ((300, 130), 0, 500, I64),
        ((1, 1), 0, 1, I32),
        ((2, 70, 3), 1, 5, U8),
    ):
        label = f"{sized(shape)}-{axis}-{count}"

        def numbers(s: Source, sh=shape, a=axis, n=count, d=dtype) -> torch.Tensor:
            return s.integers(0 if d == U8 else -2, sh[a] + 1, n, dtype=d)

        def forward(s: Source, sh=shape, a=axis, make=numbers) -> list[Any]:
            return [s.edges(*sh), make(s), a]

        def backward(s: Source, sh=shape, a=axis, n=count, make=numbers) -> list[Any]:
            read = [*sh[:a], n, *sh[a + 1 :]]
            skipped = 0 if n % 2 else -1
            return [s.edges(*read).clamp(-9, 9), make(s), a, sh[a], skipped]

        yield "take", label, forward
        yield "take_backward", label, backward
    yield "take", "masks", lambda s: [s.mask(9, 70), s.integers(0, 8, 5, dtype=I64), 0]


def ranges() -> Made:
    """How many numbers, of what dtype: less than a vector, tails, several tasks."""
    for count, dtype in ((1, I64), (3, I32), (16, I64), (37, I64), (70, U8), (9000, I64)):
        for ignored in (None, 2):
            low = 0 if dtype == U8 else -9

            def make(s: Source, n=count, d=dtype, least=low, out=ignored) -> list[Any]:
                return [s.integers(least, 12, n, dtype=d), out]

            yield "index_range", f"{count}-{ignored}", make
    yield "index_range", "all-ignored", lambda s: [torch.full((3, 40), -100), -100]
    yield "index_range", "empty", lambda s: [s.integers(0, 1, 0, dtype=I64), None]
    yield "index_range", "limits", lambda s: [torch.tensor([-(2**63), 2**63 - 1]), None]
    yield "index_range", "long", lambda s: [s.integers(-(2**31), 2**31 - 1, 20000, dtype=I32), None]


def resamples() -> Made:
    """Shape, axis and table."""
    for label, shape, axis, matrix in (
        ("linear", (2, 9, 5, 32), 1, tables.linear(9, 18, 2.0, False)),
        ("corners", (2, 5, 9, 20), 2, tables.linear(9, 4, None, True)),
        ("channels", (2, 5, 9, 3), 2, tables.linear(9, 21, None, False)),
        ("columns", (6, 33), 1, tables.nearest(33, 50, None, False)),
        ("adaptive", (3, 11, 70), 1, tables.adaptive(11, 4)),
        ("padding", (1, 7, 8, 17), 1, tables.pooling(7, 4, 3, 2, 1, False)),
        ("long", (2, 40, 16), 1, tables.adaptive(40, 3)),
        ("one", (1, 1), 1, tables.linear(1, 1, None, True)),
    ):
        for suffix, used in (("", matrix), ("-transposed", matrix.T)):

            def make(s: Source, sh=shape, a=axis, m=used) -> list[Any]:
                sizes = [*sh[:a], m.shape[1], *sh[a + 1 :]]
                return [s.edges(*sizes).clamp(-9, 9), a, *tables.table(m), None, None]

            yield "resample", f"{label}{suffix}", make


def dropouts() -> Made:
    """Shapes around a block of 128 draws; nothing, everything and some dropped."""
    for shape, least in (
        ((4, 128), 6554),
        ((3, 37, 5), 32768),
        ((1,), 1),
        ((7, 9), 65536),
        ((130, 300), 60000),
        ((2, 64), 0),
    ):
        yield (
            "dropout_mask",
            f"{sized(shape)}-{least}",
            lambda s, sh=shape, n=least: [torch.tensor(RNG), list(sh), n, 2**32 - 5],
        )
