"""Quantisers and what backward packs."""

from typing import Any

import torch

from tests.backends.cases import U8, Made, Source, sized

SHAPES = [(8, 16, 16, 16), (3, 5, 7, 7), (2, 3, 4, 4), (1, 1, 1, 1), (33, 10), (130, 64)]


def quantizers() -> Made:
    rng = torch.tensor([0x9ABCDEF0, 7, 3, 1])
    yield "draws", "1000", lambda s: [rng, 1000, 0xDEADBEEF]
    yield "draws", "1", lambda s: [torch.tensor([-1, 2**40 + 5, 0, 0]), 1, 0]
    for shape in SHAPES:
        name, rank = sized(shape), len(shape)
        inner, outer = [1] * rank, [1] * rank
        inner[1], outer[0] = shape[1], shape[0]
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
        yield "quant_scale", name, lambda s, i=inner: [s.edges(*i).abs(), 4, True, 4]
        yield "outer_scale", name, lambda s, i=inner: [s.edges(*i).abs()]
        for groups in (1, 2, 4, 8):
            yield (
                "group_exponent",
                f"{name}-{groups}",
                lambda s, i=inner, g=groups: [s.uniform(*i) ** 6, g],
            )

        def shifted(s: Source, shape=shape, inner=inner, outer=outer) -> list[Any]:
            m, e = s.uniform(*outer), s.integers(0, 3, *inner)
            m.view(-1)[::4] = 0.0
            return [s.normal(*shape), s.uniform(*[1] * len(shape)), m, e, rng, 4, 0xFEEDBEEF]

        yield "quantize_stochastic", f"{name}-shifted", shifted
        yield (
            "quantize_stochastic",
            f"{name}-plain",
            lambda s, sh=shape: [s.edges(*sh), torch.ones([1] * len(sh)), None, None, rng, 8, 1],
        )
        yield (
            "quantize_stochastic",
            f"{name}-per-channel",
            lambda s, sh=shape, i=inner: [s.normal(*sh), s.uniform(*i), None, None, rng, 2, 9],
        )
        yield (
            "quantize_stochastic",
            f"{name}-zero",
            lambda s, sh=shape: [
                torch.zeros(sh),
                torch.zeros([1] * len(sh)),
                None,
                None,
                rng,
                4,
                1,
            ],
        )


def packs() -> Made:
    for shape in ((3, 5), (4, 32, 33), (1,), (8, 16)):
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
