"""The lowest and the highest row number that a step computes: what its runtime looks at."""

import torch
from torch import Tensor

from sqcompile.ops.table import op

NONE = (2**63 - 1, -(2**63))
"""What is given of no numbers: inside of every table."""


@op("sq::index_range", doc="The lowest and the highest of row numbers, which the runtime checks.")
def index_range(x: Tensor, ignored: int | None) -> Tensor:
    """x of integers, any shape, with or without a number that does not count -> int64 (2,): the
    lowest and the highest; NONE where nothing counts."""
    numbers = x.to(torch.int64).flatten()
    if ignored is not None:
        numbers = numbers[numbers != ignored]
    return torch.stack(numbers.aminmax()) if len(numbers) else torch.tensor(NONE)


@index_range.meta
def _(x: Tensor, ignored: int | None) -> Tensor:
    return x.new_empty((2,), dtype=torch.int64)
