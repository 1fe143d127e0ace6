"""Convolutions of ResNets beside PyTorch's in float32 and bfloat16, channels last.

Ours take quantised tensors as they stand between kernels and give int32 (fprop, for the norm that
follows) or float32 with scales (dgrad, wgrad). Shapes are those of ResNet-20 at batch 128 and of
ResNet-18 (64 to 512 channels, 32 x 32 images) at batch 16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from kernel_timing import Comparison, Run, compiled, traced
from torch import Tensor

from sqcompile.passes.assign_precision import Operand, ProductSpec

_aten = torch.ops.aten
_sq = torch.ops.sq


@dataclass(frozen=True)
class Shape:
    """A convolution with padding kernel // 2, and the bits of all operands."""

    images: int
    size: int
    inputs: int
    outputs: int
    stride: int = 1
    kernel: int = 3
    bits: int = 4

    @property
    def groups(self) -> int:
        """ShiftQuant groups of the gradient."""
        return 4 if self.bits == 4 else 1

    @property
    def window(self) -> list[list[int]]:
        """Stride, padding, dilation."""
        return [[self.stride] * 2, [self.kernel // 2] * 2, [1, 1]]

    @property
    def out(self) -> int:
        """Rows and columns of the result."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def operations(self) -> float:
        """Multiply-adds times two."""
        pixels = self.images * self.out**2
        return 2.0 * pixels * self.inputs * self.outputs * self.kernel**2

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        kernel = f"{self.kernel}x{self.kernel}{stride}"
        return (
            f"{self.images}x{self.size}x{self.size} {self.inputs}->{self.outputs} {kernel} "
            f"{self.bits} bit"
        )


RESNET_20 = [
    Shape(128, 32, 16, 16),
    Shape(128, 16, 32, 32),
    Shape(128, 8, 64, 64),
    Shape(128, 32, 16, 32, stride=2),
    Shape(128, 16, 32, 64, stride=2),
]
RESNET_18 = [
    Shape(16, 32, 64, 64),
    Shape(16, 16, 128, 128),
    Shape(16, 8, 256, 256),
    Shape(16, 4, 512, 512),
]
WIDE = [
    Shape(128, 32, 16, 16, bits=8),
    *(Shape(16, size, c, c, bits=8) for size, c in ((32, 64), (16, 128), (8, 256), (4, 512))),
]


def comparisons(family: str) -> Iterator[Comparison]:
    """The rows of "conv_fprop", "conv_dgrad" or "conv_wgrad"."""
    ours, peer = {
        "conv_fprop": (_fprop, _peer_fprop),
        "conv_dgrad": (_dgrad, _peer_dgrad),
        "conv_wgrad": (_wgrad, _peer_wgrad),
    }[family]
    for shape in [*RESNET_20, *RESNET_18, *WIDE]:
        torch.manual_seed(0)
        peers = {
            name: {"channels last": peer(shape, dtype)}
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        yield Comparison(family, str(shape), ours(shape), peers, shape.operations)


def _signed(bits: int, *shape: int) -> Tensor:
    high = 2 ** (bits - 1) - 1
    return torch.randint(-high, high + 1, shape, dtype=torch.int8)


def _x(s: Shape) -> Tensor:
    size = (s.images, s.size, s.size, s.inputs)
    return torch.randint(0, 2**s.bits, size, dtype=torch.uint8)


def _w(s: Shape) -> Tensor:
    return _signed(s.bits, s.outputs, s.inputs, s.kernel, s.kernel)


def _g(s: Shape) -> Tensor:
    return _signed(s.bits, s.images, s.out, s.out, s.outputs)


def _built(s: Shape, role: str, call: Any, kinds: tuple[str, str], *inputs: Tensor) -> Run:
    """`call` compiled as a graph whose product has the precision of the shape."""
    graph = traced(call, *inputs)
    operands = [Operand(kind, s.bits, kind != "activation") for kind in kinds]
    for node in graph.graph.nodes:
        if node.op == "call_function":
            first, second = operands
            groups = s.groups if role != "fprop" else 1
            node.meta["sq"] = ProductSpec("conv", role, (first, second), groups, True, 0)
    run = compiled(graph)
    return lambda: run(*inputs)


def _fprop(s: Shape) -> Run:
    def call(x: Tensor, w: Tensor) -> Tensor:
        return _sq.conv_fprop(x, w, *s.window, 1, 0)

    return _built(s, "fprop", call, ("activation", "weight"), _x(s), _w(s))


def _dgrad(s: Shape) -> Run:
    shape = [s.images, s.size, s.size, s.inputs]

    def call(g: Tensor, w: Tensor, e: Tensor, scale: Tensor, outer: Tensor) -> Tensor:
        rest = (s.groups, shape, *s.window, 1, 0)
        return _sq.conv_dgrad_dequantize(g, w, e, *rest, [scale, outer], None, False)

    e = torch.randint(0, s.groups, (1, 1, 1, s.outputs), dtype=torch.int8)
    scales = torch.rand(1), torch.rand(s.images, 1, 1, 1)
    return _built(s, "dgrad", call, ("gradient", "weight"), _g(s), _w(s), e, *scales)


def _wgrad(s: Shape) -> Run:
    shape = [s.outputs, s.inputs, s.kernel, s.kernel]
    tokens = s.images * s.out**2
    chunk = s.images * s.out // 4 if s.bits == 8 and tokens > 66_000 else 0

    def call(g: Tensor, x: Tensor, e: Tensor, scale: Tensor, outer: Tensor) -> Tensor:
        rest = (s.groups, shape, *s.window, 1, chunk)
        return _sq.conv_wgrad_dequantize(g, x, e, *rest, [scale, outer], None, False)

    e = torch.randint(0, s.groups, (s.images, s.out, s.out, 1), dtype=torch.int8)
    scales = torch.rand(1), torch.rand(s.outputs, 1, 1, 1)
    return _built(s, "wgrad", call, ("gradient", "activation"), _g(s), _x(s), e, *scales)


def _floats(s: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(x, w, g) in channels last."""
    shapes = (
        (s.images, s.inputs, s.size, s.size),
        (s.outputs, s.inputs, s.kernel, s.kernel),
        (s.images, s.outputs, s.out, s.out),
    )
    x, w, g = (
        torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
        for shape in shapes
    )
    return x, w, g


def _peer_fprop(s: Shape, dtype: torch.dtype) -> Run:
    x, w, _ = _floats(s, dtype)
    return lambda: _aten.convolution(x, w, None, *s.window, False, [0, 0], 1)


def _peer_backward(s: Shape, dtype: torch.dtype, mask: list[bool]) -> Run:
    x, w, g = _floats(s, dtype)
    return lambda: _aten.convolution_backward(g, x, w, None, *s.window, False, [0, 0], 1, mask)


def _peer_dgrad(s: Shape, dtype: torch.dtype) -> Run:
    return _peer_backward(s, dtype, [True, False, False])


def _peer_wgrad(s: Shape, dtype: torch.dtype) -> Run:
    return _peer_backward(s, dtype, [False, True, False])
