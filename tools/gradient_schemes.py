"""What one scheme of gradient quantisation costs one layer: the measurement of gradient_error.py.

The other operand (weight, activation) is quantised on both sides: what is seen is the gradient's
share alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from activation_schemes import as_read
from torch import Tensor

from sqcompile.ops.philox import stream_id
from sqcompile.ops.product_float import conv_input_grad, conv_weight_grad
from sqcompile.ops.quantize import (
    absmax,
    group_exponent,
    outer_scale,
    quant_scale,
    quantize,
    quantize_stochastic,
)
from sqcompile.recipe import Precision

ROLES = ("dX", "dW")
SCHEMES = {
    "per tensor": "one float scale",
    "paper": "ShiftQuant: one float scale, a power of two per reduced index",
    "outer + shift": "the same, and a float scale per free index: what w4a4g4 does",
    "own draws": "the same, each element rounded by a draw of its own instead of a carry",
    "per channel": "a float scale per output channel; for dX the reduced index",
    "per token": "dW only: a float scale per reduced index (sample and pixel, or token)",
}
BOUND = {"dX": "per channel", "dW": "per token"}
"""Free float scales on the reduced index: what groups of powers of two approach, per role."""


Window = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation and groups of a convolution."""


def schemes_of(role: str) -> list[str]:
    """The schemes that differ for dX or dW."""
    return [scheme for scheme in SCHEMES if scheme != "per token" or role == "dW"]


@dataclass(frozen=True)
class Layer:
    """One call of one layer: float32 operands, images channels last, and the geometry of a
    convolution (None: linear, with tokens in rows)."""

    path: str
    g: Tensor
    x: Tensor
    w: Tensor
    window: Window | None

    def axes(self, role: str) -> tuple[list[int], list[int]]:
        """(reduced axes, free axes) of g in the product that gives dX or dW."""
        *others, channel = range(self.g.dim())
        return (others, [channel]) if role == "dW" else ([channel], [0])

    def product(self, role: str, g: Tensor, other: Tensor) -> Tensor:
        """float32 dX from g and the weight, or dW from g and the input: its rounding, 1e-7, is far
        below what quantisation loses."""
        if self.window is None:
            return g @ other if role == "dX" else g.t() @ other
        rule = conv_input_grad if role == "dX" else conv_weight_grad
        shape = list((self.x if role == "dX" else self.w).shape)
        result: Tensor = rule.reference(g, other, shape, *self.window)
        return result


@dataclass(frozen=True)
class Errors:
    """Of a quantised product against the exact one, means over draws.

    relative_mse: squared error over squared size. cosine: of the angle between the two. bias:
    the part of the error along the exact product, in units of that product (0: unbiased).
    """

    relative_mse: float
    cosine: float
    bias: float


@dataclass(frozen=True)
class Row:
    """The errors of one product of one layer, by scheme."""

    path: str
    role: str
    bits: int
    groups: int
    schemes: dict[str, Errors]


def quantized(
    layer: Layer, g: Tensor, role: str, scheme: str, precision: Precision, draw: int
) -> Tensor:
    """g, quantised by the scheme and brought back to float32."""
    every = list(range(g.dim()))
    reduced, free = layer.axes(role)
    bits, groups = precision.gradient_bits, precision.groups
    rng = torch.tensor([0, draw, 0, 0])
    stream = stream_id(layer.path, "backward", "gradient", 0)
    value: Tensor
    float_scales = {"per tensor": [], "per channel": [g.dim() - 1], "per token": reduced}
    if scheme in float_scales:
        r = absmax(g, None, free_of(g, float_scales[scheme]))
        q = quantize_stochastic(g, r, None, None, rng, bits, stream)
        value = q.float() * quant_scale(r, bits, True, 1)
        return value
    outer = absmax(g, None, free_of(g, free)) if scheme != "paper" else None
    channel = absmax(g, outer, free_of(g, reduced))
    r, exponent = absmax(channel, None, every), group_exponent(channel, groups)
    rounded = _with_own_draws if scheme == "own draws" else quantize_stochastic
    q = rounded(g, r, outer, exponent, rng, bits, stream)
    value = q.float() * 2.0 ** (groups - 1 - exponent.float())
    value = value * quant_scale(r, bits, True, groups)
    return value if outer is None else value * outer_scale(outer)


def _with_own_draws(
    g: Tensor, r: Tensor, outer: Tensor | None, exponent: Tensor, *rest: Any
) -> Tensor:
    """quantize_stochastic of all elements in one row: each of them begins a run."""
    wide = [None if one is None else one.expand(g.shape).reshape(-1) for one in (outer, exponent)]
    q: Tensor = quantize_stochastic(g.reshape(-1), r.view(1), *wide, *rest)
    return q.view(g.shape)


def free_of(g: Tensor, kept: list[int]) -> list[int]:
    """The axes that an absmax kept on `kept` goes over."""
    return [axis for axis in range(g.dim()) if axis not in kept]


def operands(layer: Layer, role: str, precision: Precision, tokens: int) -> tuple[Tensor, Tensor]:
    """(gradient, other operand), float32, as the integer graph has them: in dX the weight's
    scales are in the gradient; tokens: the recipe's activation_tokens."""
    if role == "dX":
        reduced = list(range(1, layer.w.dim()))
        r = absmax(layer.w, None, reduced)
        scale = quant_scale(r, precision.weight_bits, True, 1)
        integers = quantize(layer.w, r, precision.weight_bits, True)
        return layer.g * scale.view(-1), integers.float()
    return layer.g, as_read(layer.x, precision, tokens)


def measure(
    layer: Layer, role: str, precision: Precision, draws: int, tokens: int = 0
) -> Row | None:
    """The errors of every scheme, or None where the exact product is zero."""
    g, other = operands(layer, role, precision, tokens)
    exact = layer.product(role, g, other).double()
    size = float(exact.square().sum())
    if size == 0:
        return None
    schemes = {}
    for scheme in schemes_of(role):
        found = []
        for draw in range(draws):
            value = quantized(layer, g, role, scheme, precision, draw)
            got = layer.product(role, value, other).double()
            along = float((got * exact).sum())
            norm = float(got.square().sum()) ** 0.5
            found.append(
                (
                    float((got - exact).square().sum()) / size,
                    along / (norm * size**0.5) if norm else 0.0,
                    along / size - 1,
                )
            )
        schemes[scheme] = Errors(*(sum(column) / draws for column in zip(*found, strict=True)))
    return Row(layer.path, role, precision.gradient_bits, precision.groups, schemes)


def mean(rows: Sequence[Row]) -> dict[str, Errors]:
    """The mean of every number of every scheme."""
    result = {}
    for scheme in rows[0].schemes:
        columns = zip(*(asdict(row.schemes[scheme]).values() for row in rows), strict=True)
        result[scheme] = Errors(*(sum(column) / len(rows) for column in columns))
    return result
