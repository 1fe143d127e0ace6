"""Row numbers that a table does not have are refused, in the user's words."""

from collections.abc import Sequence

from torch import Tensor

from sqcompile._torch_compat import Port
from sqcompile.errors import InputError
from sqcompile.ops.index_range import index_range
from sqcompile.runtime.signature import IndexLimit

_PLURAL = {"row": "rows", "class": "classes"}


def check_given(
    limits: Sequence[IndexLimit], ports: Sequence[Port], values: Sequence[Tensor]
) -> None:
    """Raise InputError for an input or a buffer that holds a number outside of its limit."""
    if not limits:
        return
    given = {f"{port.kind} {port.name}": one for port, one in zip(ports, values, strict=True)}
    check_ranges(limits, [index_range.reference(given[one.source], one.ignored) for one in limits])


def check_ranges(limits: Sequence[IndexLimit], ranges: Sequence[Tensor]) -> None:
    """Raise InputError for a range, (lowest, highest), that is not inside of its limit."""
    for limit, found in zip(limits, ranges, strict=True):
        lowest, highest = found.tolist()
        if lowest < limit.low or highest >= limit.rows:
            raise InputError(_refusal(limit, lowest if lowest < limit.low else highest))


def _refusal(limit: IndexLimit, number: int) -> str:
    holder = f"{limit.source} holds" if limit.source else "the model computes"
    module = f" (module: {limit.module})" if limit.module else ""
    return (
        f"{limit.where}\n  {holder} the {limit.unit} number {number}{module}\n"
        f"  there are {limit.rows} {_PLURAL[limit.unit]}: {limit.low} .. {limit.rows - 1}."
    )
