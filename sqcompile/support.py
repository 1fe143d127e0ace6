"""Which ops of a model a target runs, and the one report of all that it does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from sqcompile._torch_compat import module_path
from sqcompile.backends.lower import unsupported
from sqcompile.backends.targets import Target
from sqcompile.errors import UnsupportedOpError
from sqcompile.nearest import nearest
from sqcompile.passes.printing import op_name, source_line


@dataclass(frozen=True)
class OpSupport:
    """One kind of op in a model: how often, whether the target runs it, where it stands, and what
    runs in its place."""

    op: str
    count: int
    supported: bool
    reason: str
    lines: tuple[str, ...]
    modules: tuple[str, ...]
    nearest: tuple[str, ...] = ()


def support(graphs: Iterable[GraphModule], target: Target) -> list[OpSupport]:
    """Every op of the graphs, unsupported ones first; views and tuples are not ops."""
    found: dict[tuple[str, str], list[Node]] = {}
    for graph in graphs:
        refused = {entry.node: entry.reason for entry in unsupported(graph, target)}
        for node in graph.graph.nodes:
            if node.op == "call_function" and op_name(node) != "getitem":
                key = op_name(node), refused.get(node.name, "")
                found.setdefault(key, []).append(node)
    rows = [
        OpSupport(
            name,
            len(nodes),
            not why,
            why,
            tuple(dict.fromkeys(filter(None, map(source_line, nodes)))),
            tuple(
                dict.fromkeys(filter(None, (n.meta.get("module") or module_path(n) for n in nodes)))
            ),
            tuple(dict.fromkeys(filter(None, (nearest(n, name) for n in nodes)))) if why else (),
        )
        for (name, why), nodes in found.items()
    ]
    return sorted(rows, key=lambda row: (row.supported, row.op))


def check(graphs: Sequence[GraphModule], target: Target) -> None:
    """Raise UnsupportedOpError that lists every op without a kernel, with the user's lines."""
    missing = [row for row in support(graphs, target) if not row.supported]
    if not missing:
        return
    places: dict[tuple[tuple[str, ...], str, tuple[str, ...]], list[OpSupport]] = {}
    for row in missing:
        places.setdefault((row.lines, row.reason, row.modules), []).append(row)
    parts = []
    for (lines, why, modules), rows in places.items():
        where = "\n".join(lines or ("(no source line)",))
        module = f"  (module: {', '.join(modules)})" if modules else ""
        known = dict.fromkeys(near for row in rows for near in row.nearest)
        parts.append(
            f"{where}\n  {', '.join(row.op for row in rows)}: {why}{module}"
            f"\n  nearest supported: {'; '.join(known) or 'none'}"
        )
    count = f"{len(missing)} unsupported op" + ("s" if len(missing) > 1 else "")
    raise UnsupportedOpError(
        f"{count}:\n" + "\n".join(parts) + "\n"
        "Replace them, or keep them in PyTorch by compiling only the modules around them."
    )
