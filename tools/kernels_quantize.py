"""Quantisers and packing beside a copy of the same float tensor: the least that memory costs."""

from collections.abc import Callable, Iterator

import torch
from kernel_timing import Comparison, compiled, traced
from torch import Tensor

from sqcompile.ops.pack import pack_int4, unpack_int4
from sqcompile.ops.quantize import absmax, quantize, quantize_stochastic, shift_quantize

SHAPES = ((1024, 1024), (4096, 256), (8192, 64), (128, 32, 32, 16))
STREAM = 7


def comparisons(family: str) -> Iterator[Comparison]:
    """One row for each op and shape."""
    for shape in SHAPES:
        x, rng = torch.randn(shape), torch.tensor([1, 0, 0, 0])
        scale = torch.rand([1] * (len(shape) - 1) + [shape[-1]])
        q = torch.randint(-7, 8, shape, dtype=torch.int8)
        packed = pack_int4.reference(q)
        sized = "x".join(map(str, shape))
        for label, function, arguments in (
            ("nearest 4-bit", _nearest, (x,)),
            ("stochastic 8-bit per channel", _per_channel, (x, rng)),
            ("ShiftQuant 4-bit dgrad", _dgrad, (x, scale, rng)),
            ("ShiftQuant 4-bit wgrad", _wgrad, (x, rng)),
            ("pack_int4", pack_int4, (q,)),
            ("unpack_int4", _unpacker(shape), (packed,)),
        ):
            yield Comparison(family, f"{label} {sized}", _run(function, arguments), _copies(x))


def _run(function: Callable[..., object], arguments: tuple[Tensor, ...]) -> Callable[[], object]:
    run = compiled(traced(function, *arguments))
    return lambda: run(*arguments)


def _copies(x: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    out = torch.empty_like(x)
    return {"copy": {"clone": x.clone, "copy_": lambda: out.copy_(x)}}


def _every(x: Tensor) -> list[int]:
    return list(range(x.dim()))


def _nearest(x: Tensor) -> Tensor:
    return quantize(x, absmax(x, None, _every(x)), 4, True)


def _per_channel(x: Tensor, rng: Tensor) -> Tensor:
    r = absmax(x, None, _every(x)[:-1])
    return quantize_stochastic(x, r, None, None, rng, 8, STREAM)


def _dgrad(g: Tensor, scale: Tensor, rng: Tensor) -> tuple[Tensor, ...]:
    return shift_quantize(g, scale, rng, [0], [g.dim() - 1], 4, 4, STREAM)


def _wgrad(g: Tensor, rng: Tensor) -> tuple[Tensor, ...]:
    return shift_quantize(g, None, rng, [g.dim() - 1], _every(g)[:-1], 4, 4, STREAM)


def _unpacker(shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    def unpack(packed: Tensor) -> Tensor:
        return unpack_int4(packed, list(shape), True)

    return unpack
