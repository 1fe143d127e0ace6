"""Float functions, activations, softmax and losses."""

from typing import Any

import torch
from torch import Tensor

from sqcompile.ops.softmax import softmax_quantize
from tests.backends.cases import I64, Made, Source, sized

ROWS = [(40, 65), (3, 7, 128), (2, 1024), (3, 2500), (5, 10), (9, 1), (3, 16), (4, 15), (150, 131)]
"""A row's end: none, short, with whole vectors before it; several chunks of a sum; many rows."""


def wide(s: Source, *shape: int) -> Tensor:
    """Values of every exponent among normal ones, the limits of exp, infinities."""
    special = torch.tensor([88.7, 88.8, -87.4, -103.9, -104.5, 0.7, torch.inf, -torch.inf])
    place = s.integers(0, 40, *shape, dtype=I64)
    exponent = s.integers(-149, 127, *shape, dtype=I64).float()
    x = torch.where(place < 24, s.edges(*shape) * 4, s.normal(*shape) * 2.0**exponent)
    return torch.where(place < 8, special[place.clamp(max=7)], x)


def functions() -> Made:
    for name in ("exp", "expm1", "erf", "tanh", "sigmoid"):
        yield name, "wide", lambda s: [wide(s, 37, 131)]
    yield "log", "wide", lambda s: [wide(s, 37, 131).abs()]
    yield "exp", "one", lambda s: [s.normal(1)]


def _finite(s: Source) -> Tensor:
    """Values whose activations are numbers: 0 * inf is none."""
    return wide(s, 37, 131).clamp(-3e38, 3e38)


def _unit(s: Source) -> Tensor:
    """Values between 0 and 1, both among them."""
    return (s.edges(37, 131) * 4).clamp(0, 1)


def activations() -> Made:
    curve: list[Any] = [1.5, 1.25, 0.5]
    for form in (False, True):
        yield "gelu_cdf", f"wide-{form}", lambda s, f=form: [wide(s, 37, 131), f]
        yield "gelu_slope", f"wide-{form}", lambda s, f=form: [wide(s, 37, 131), _unit(s), f]
    yield "silu_slope", "wide", lambda s: [wide(s, 37, 131), _unit(s)]
    yield "hardswish_slope", "wide", lambda s: [_unit(s) * 6.0]
    for name in ("tanh_slope", "sigmoid_slope"):
        yield name, "unit", lambda s: [_unit(s)]
    yield "elu", "wide", lambda s: [_finite(s), *curve]
    for is_result in (False, True):
        yield "elu_slope", f"wide-{is_result}", lambda s, r=is_result: [_finite(s), *curve, r]
    for unit, low, high in ((203.0, -26, 229), (3.0, 0, 3), (255.0, 0, 255)):
        label = f"{low}-{high}"
        yield "quantize_slope", label, lambda s, o=(unit, low, high): [s.edges(37, 131) * 2, *o]
        yield (
            "slope_backward",
            label,
            lambda s, o=(low, 1 / unit): [s.edges(37, 131), s.grid(torch.uint8, 37, 131), *o],
        )


def _scores(s: Source, *shape: int) -> Tensor:
    """Attention scores with masked places; the first row is all masked."""
    x = torch.where(s.mask(*shape), s.normal(*shape) * 4, -torch.inf)
    x.view(-1, shape[-1])[0] = -torch.inf
    return x


def softmaxes() -> Made:
    for shape in ROWS:
        label = sized(shape)
        yield "softmax", label, lambda s, n=shape: [_scores(s, *n)]
        yield "log_softmax", label, lambda s, n=shape: [s.edges(*n).clamp(-99, 99)]
        yield (
            "softmax_backward",
            label,
            lambda s, n=shape: [s.normal(*n), s.normal(*n).softmax(-1)],
        )
        yield (
            "log_softmax_backward",
            label,
            lambda s, n=shape: [s.normal(*n), s.normal(*n).log_softmax(-1)],
        )
        yield "amax", label, lambda s, n=shape: [wide(s, *n)]
        for bits, signed in ((6, False), (8, True)):
            options = [bits, signed]
            yield (
                "softmax_quantize",
                f"{label}-{bits}",
                lambda s, n=shape, o=options: [_scores(s, *n), *o],
            )
            yield (
                "softmax_quantized_backward",
                f"{label}-{bits}",
                lambda s, n=shape, o=options: [
                    s.edges(*n),
                    *softmax_quantize.reference(_scores(s, *n), *o),
                ],
            )
    yield "softmax_quantize", "empty", lambda s: [s.normal(0, 7), 8, False]
    yield "amax", "zeros", lambda s: [torch.tensor([[-0.0, -0.0], [-0.0, 0.0], [-1.0, -0.0]])]
    yield "softmax", "empty", lambda s: [s.normal(0, 7)]


def losses() -> Made:
    def target(s: Source, rows: int, classes: int) -> Tensor:
        return s.integers(-1, classes - 1, rows, dtype=I64)

    for rows, classes in ((9, 10), (3000, 7), (1, 1), (5, 1000)):
        label = sized((rows, classes))
        yield (
            "nll_loss",
            label,
            lambda s, r=rows, c=classes: [s.normal(r, c), target(s, r, c), None, -1],
        )
        yield (
            "nll_loss_backward",
            label,
            lambda s, r=rows, c=classes: [s.normal(r), target(s, r, c), s.uniform(c), -1, c],
        )
    yield (
        "nll_loss",
        "weight",
        lambda s: [s.normal(9, 10), target(s, 9, 10), s.uniform(10), 3],
    )
    yield (
        "nll_loss_backward",
        "one-gradient",
        lambda s: [s.normal(1), target(s, 9, 10), None, 3, 10],
    )
