"""How an activation is quantised beside a weight, as float32 values: what activation_error.py
compares, and what gradient_error.py multiplies gradients by."""

from collections.abc import Callable, Sequence

from torch import Tensor

from sqcompile.ops.quantize import absmax, clip_range, group_exponent, quant_scale, quantize
from sqcompile.passes.assign_precision import tokens_together
from sqcompile.recipe import Precision

MOST_TOKENS = 16
"""Of the scheme "tokens"."""


def one_range(x: Tensor, precision: Precision) -> Tensor:
    """A scale for all of x (*, channels)."""
    return _on_grid(x, precision, range(x.dim()), 1)


def by_channel(x: Tensor, precision: Precision) -> Tensor:
    """The same, and a power of two for every channel or feature."""
    return _on_grid(x, precision, range(x.dim() - 1), precision.activation_groups)


def by_tokens(x: Tensor, precision: Precision, most: int = MOST_TOKENS) -> Tensor:
    """A power of two for every feature of up to `most` rows of a matrix, for every channel of an
    image (N, H, W, C)."""
    groups = precision.activation_groups
    if x.dim() == 4:
        return _on_grid(x, precision, (1, 2), groups)
    tokens = tokens_together(len(x), most)
    return _on_grid(x.view(-1, tokens, x.shape[1]), precision, (1,), groups).view_as(x)


def float_by_row(x: Tensor, precision: Precision) -> Tensor:
    """A float scale for every row of a matrix, for every image."""
    bits, signed = precision.activation_bits, bool((x < 0).any())
    r = clip_range(absmax(x, None, list(range(1, x.dim()))), precision.activation_clip)
    return quantize(x, r, bits, signed).float() * quant_scale(r, bits, signed, 1)


def as_read(x: Tensor, precision: Precision, tokens: int) -> Tensor:
    """x as a recipe's products read it, with `tokens` its activation_tokens."""
    if tokens and x.dim() == 2 and precision.activation_groups > 1:
        return by_tokens(x, precision, tokens)
    return by_channel(x, precision)


SCHEMES: dict[str, Callable[[Tensor, Precision], Tensor]] = {
    "one range": one_range,
    "channel": by_channel,
    "tokens": by_tokens,
    "float by row": float_by_row,
}


def _on_grid(x: Tensor, precision: Precision, shared: Sequence[int], groups: int) -> Tensor:
    """x on the grid of one scale, finer by powers of two where an absmax over the axes `shared` is
    small."""
    bits, signed = precision.activation_bits, bool((x < 0).any())
    each = absmax(x, None, list(shared))
    r = clip_range(absmax(each, None, list(range(x.dim()))), precision.activation_clip)
    q = quantize(x, r, bits, signed, group_exponent(each, groups), groups)
    return q.float() * quant_scale(r, bits, signed, groups)
