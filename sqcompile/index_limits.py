"""The row numbers that a step takes: of its inputs and buffers, and of what it computes."""

from collections.abc import Iterable

from torch.fx import GraphModule

from sqcompile import _torch_compat as compat
from sqcompile.passes.printing import source_line
from sqcompile.passes.row_numbers import RowNumbers, row_numbers
from sqcompile.runtime.signature import IndexLimit


def given_limits(graph: GraphModule) -> tuple[IndexLimit, ...]:
    """The limits of numbers that are those of an input or a buffer, as they are or with negative
    ones counted from the end: looked at before every forward."""
    return limits(dict.fromkeys(use for use in row_numbers(graph) if use.port is not None))


def limits(uses: Iterable[RowNumbers]) -> tuple[IndexLimit, ...]:
    """What the runtime is told of each use of row numbers."""
    return tuple(_limit(use) for use in uses)


def _limit(use: RowNumbers) -> IndexLimit:
    source = "" if use.port is None else f"{use.port.kind} {use.port.name}"
    where, module = source_line(use.reader), compat.module_path(use.reader)
    return IndexLimit(source, use.low, use.rows, use.unit, use.ignored, where, module)
