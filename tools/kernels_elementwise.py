"""Elementwise chains, float sums, pooling and copies of a training step, beside PyTorch in fp32.

The peers take the same tensors; images are (N, H, W, C) here and channels_last there, which is
the same memory.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from kernel_timing import Comparison, compiled, traced
from torch import Tensor
from torch.nn import functional

from sqcompile.ops import OPS

aten = torch.ops.aten
Made = tuple[str, Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]
"""What the table shows, ours, the peers', and the arguments of both."""

SHAPES = ((128, 32, 32, 16), (128, 8, 8, 64), (512, 1024))


def comparisons(family: str) -> Iterator[Comparison]:
    """Every row of "elementwise", "ordered_sum", "pool" or "copy"."""
    made = {"elementwise": _chains, "ordered_sum": _sums, "pool": _pools, "copy": _copies}
    for label, ours, theirs, arguments in made[family]():
        run = compiled(traced(ours, *arguments))
        peers = {"eager": {"": partial(theirs, *arguments)}}
        if family == "elementwise":
            peers["compile"] = {"": partial(torch.compile(theirs), *arguments)}
        yield Comparison(family, label, partial(run, *arguments), peers)


def _add_relu_mask(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.relu(x + y)
    return z, z > 0


def _where_mul(mask: Tensor, g: Tensor, scale: Tensor) -> Tensor:
    return torch.where(mask, g, torch.full((), 0.0)) * scale


def _activation(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What forward does behind a residual addition, before it quantises."""
    z = torch.relu(x + y)
    axes = list(range(z.dim()))
    packed, absmax = OPS["sq::pack_mask"].target, OPS["sq::absmax"].target
    return z, packed(z > 0), absmax(z, None, axes)


def _activation_peer(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.relu(x + y)
    return z, z > 0, z.abs().amax()


def _gradient(packed: Tensor, _: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What backward does before a norm."""
    unpacked = OPS["sq::unpack_mask"].target(packed, list(g.shape))
    masked = torch.where(unpacked, g + h, torch.full((), 0.0))
    return masked, OPS["sq::absmax"].target(masked, None, list(range(g.dim() - 1)))


def _gradient_peer(_: Tensor, mask: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    masked = (g + h) * mask
    return masked, masked.abs().amax(list(range(g.dim() - 1)))


def _scale_shift_relu(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(x * scale + bias)


def _sgd(p: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    momentum = m * 0.9 + g
    return p - momentum * 0.1, momentum


def _chains() -> Iterator[Made]:
    for shape in SHAPES:
        x, y, mask = torch.randn(shape), torch.randn(shape), torch.rand(shape) > 0.5
        scale, bias = torch.randn(shape[-1]), torch.randn(shape[-1])
        size = "x".join(map(str, shape))
        yield f"add+relu+mask {size}", _add_relu_mask, _add_relu_mask, (x, y)
        yield f"add+relu+mask+absmax {size}", _activation, _activation_peer, (x, y)
        packed = torch.zeros(mask.numel() // 8, dtype=torch.uint8)
        yield f"mask+add+absmax {size}", _gradient, _gradient_peer, (packed, mask, x, y)
        yield f"where+mul {size}", _where_mul, _where_mul, (mask, x, scale)
        yield f"mul+add+relu {size}", _scale_shift_relu, _scale_shift_relu, (x, scale, bias)
        yield f"add {size}", torch.add, torch.add, (x, y)
        yield f"relu {size}", torch.relu, torch.relu, (x,)
    for shape in ((64, 224, 224, 3), (4096, 10)):
        x, scale, bias = torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1])
        size = "x".join(map(str, shape))
        yield f"mul+add+relu {size}", _scale_shift_relu, _scale_shift_relu, (x, scale, bias)
    p, g, m = torch.randn(3, 1024, 1024).unbind()
    yield "sgd 1024x1024", _sgd, _sgd, (p, g, m)


def _sums() -> Iterator[Made]:
    for shape, axes in (
        ((128, 32, 32, 16), [0, 1, 2]),
        ((128, 8, 8, 64), [0, 1, 2]),
        ((512, 1024), [0]),
        ((512, 1000), [0]),
        ((512, 1024), [1]),
        ((4096, 10), [0]),
        ((1 << 20,), [0]),
    ):
        label = f"sum {'x'.join(map(str, shape))} over {','.join(map(str, axes))}"
        yield label, *_sum(axes), (torch.randn(shape),)


def _sum(axes: list[int]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    summed = OPS["sq::ordered_sum"].target
    return lambda x: summed(x, axes, False), lambda x: torch.sum(x, axes)


def _first(x: Tensor) -> Tensor:
    """(N, H, W, C) as (N, C, H, W), the same memory."""
    return x.permute(0, 3, 1, 2)


def _pools() -> Iterator[Made]:
    for shape in ((128, 32, 32, 16), (32, 56, 56, 64)):
        size = "x".join(map(str, shape))
        for kernel, stride, padding in (([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 2], [1, 1])):
            yield from _pool(size, shape, kernel, stride, padding)


def _pool(
    size: str, shape: tuple[int, ...], kernel: list[int], stride: list[int], padding: list[int]
) -> Iterator[Made]:
    x = torch.randn(shape)
    most, most_backward = OPS["sq::max_pool2d"].target, OPS["sq::max_pool2d_backward"].target
    mean, mean_backward = OPS["sq::avg_pool2d"].target, OPS["sq::avg_pool2d_backward"].target
    call, label = (kernel, stride, padding), f"{kernel[0]}x{kernel[1]}/{stride[0]} {size}"
    y, tap = most(x, *call, [1, 1], False)
    _, index = aten.max_pool2d_with_indices(_first(x), *call)
    g = torch.randn(y.shape)
    yield (
        f"max_pool {label}",
        lambda x: most(x, *call, [1, 1], False),
        lambda x: aten.max_pool2d_with_indices(_first(x), *call),
        (x,),
    )
    yield (
        f"max_pool backward {label}",
        lambda g, tap: most_backward(g, tap, list(shape), *call, [1, 1]),
        lambda g, tap: aten.max_pool2d_with_indices_backward(
            _first(g), _first(x), *call, [1, 1], False, index
        ),
        (g, tap),
    )
    yield (
        f"avg_pool {label}",
        lambda x: mean(x, *call),
        lambda x: functional.avg_pool2d(_first(x), *call),
        (x,),
    )
    yield (
        f"avg_pool backward {label}",
        lambda g: mean_backward(g, list(shape), *call),
        lambda g: aten.avg_pool2d_backward(_first(g), _first(x), *call, False, True, None),
        (g,),
    )


def _copies() -> Iterator[Made]:
    for shape, dims in (
        ((128, 32, 32, 16), [0, 3, 1, 2]),
        ((128, 16, 32, 32), [0, 2, 3, 1]),
        ((64, 3, 224, 224), [0, 2, 3, 1]),
        ((64, 224, 224, 3), [0, 3, 1, 2]),
        ((4, 128, 8, 64), [0, 2, 1, 3]),
        ((1024, 4096), [1, 0]),
    ):
        label = f"permute {'x'.join(map(str, shape))} {','.join(map(str, dims))}"
        yield label, *_permute(dims), (torch.randn(shape),)
    halves = torch.randn(512, 512), torch.randn(512, 300)
    yield (
        "cat 512x512 512x300",
        lambda a, b: torch.cat([a, b], 1),
        lambda a, b: torch.cat([a, b], 1),
        halves,
    )


def _permute(dims: list[int]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    return lambda x: aten.permute.default(x, dims), lambda x: x.permute(dims).contiguous()
