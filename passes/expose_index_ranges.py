"""Make the range of computed row numbers an output, so that the runtime can refuse wrong ones."""

from torch.fx import GraphModule, Node

from sqcompile.ops.index_range import index_range
from sqcompile.passes.editing import Editor, copy_graph, finish
from sqcompile.passes.intervals import Intervals
from sqcompile.passes.row_numbers import RowNumbers, row_numbers


def expose_index_ranges(module: GraphModule) -> tuple[GraphModule, list[RowNumbers]]:
    """(graph, uses): after this pass the graph also returns the sq.index_range of all row numbers
    that it computes and that are not proven to be in their table, in the order of `uses`. A graph
    without any stays as it is."""
    graph = copy_graph(module)
    editor, known = Editor(graph), Intervals(graph)
    found: dict[RowNumbers, Node] = {}
    for use in row_numbers(graph):
        if use.port is None and not _proven(use, known) and use not in found:
            with editor.before(use.reader):
                found[use] = editor.call(index_range, use.numbers, use.ignored, like=use.reader)
    if not found:
        return module, []
    output = graph.graph.output_node()
    output.args = ((*output.args[0], *found.values()),)  # type: ignore[misc]
    return finish(graph), list(found)


def _proven(use: RowNumbers, known: Intervals) -> bool:
    low, high = known.of(use.numbers)
    return use.low <= low and high < use.rows
