"""Elementwise float ops that torch does not round the way every target does."""

import torch
from torch import Tensor

from sqcompile.ops.table import op


@op("sq::sqrt", doc="Square root, correctly rounded.")
def sqrt(x: Tensor) -> Tensor:
    """x float32 -> float32. torch's own vector form is off by one bit for some values; a float64
    root rounded to float32 is the correctly rounded one."""
    return x.to(torch.float64).sqrt().to(torch.float32)


@sqrt.meta
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)
