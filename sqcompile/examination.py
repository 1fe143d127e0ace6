"""What a model calls, and which targets run it: by the user's own ops, modules and lines."""

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from sqcompile import _torch_compat as compat
from sqcompile.backends.lower import unsupported
from sqcompile.backends.targets import Target
from sqcompile.capture import Capture, Traced
from sqcompile.nearest import nearest
from sqcompile.passes.plain_products import plain_products
from sqcompile.passes.printing import op_name, source_line

_SIGNS = {
    "add": "+",
    "iadd": "+",
    "sub": "-",
    "isub": "-",
    "mul": "*",
    "imul": "*",
    "truediv": "/",
    "itruediv": "/",
    "matmul": "@",
    "pow": "**",
    "neg": "-x",
    "getitem": "x[...]",
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
    "and_": "&",
    "or_": "|",
    "invert": "~x",
    "mod": "%",
}
"""Python's operators, by their names in the module operator."""


@dataclass(frozen=True)
class Place:
    """Where an op is called: dotted module path, "" for the model itself, and source line."""

    module: str
    line: str


@dataclass(frozen=True)
class Verdict:
    """What a target makes of an op.

    reasons: why not, one for each op that it becomes and that has no kernel; left: why an
    accelerator leaves its products to the CPU; runs_on: "" when not supported.
    """

    runs_on: str
    reasons: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether the target runs it."""
        return not self.reasons


@dataclass(frozen=True)
class ModelOp:
    """A kind of op of a model, as the user calls it ("nn.Conv2d", "F.relu", "+"), with a verdict by
    target, what it becomes, and what to write in its place where a target does not run it."""

    op: str
    places: tuple[Place, ...]
    verdicts: Mapping[str, Verdict]
    becomes: tuple[str, ...]
    nearest: str

    @property
    def supported(self) -> bool:
        """Whether all targets run it."""
        return all(verdict.supported for verdict in self.verdicts.values())

    def to_json(self) -> dict[str, Any]:
        """The op as JSON-able data."""
        return {
            "op": self.op,
            "count": len(self.places),
            "supported": self.supported,
            "becomes": list(self.becomes),
            "nearest": self.nearest,
            "targets": {
                name: {
                    "supported": verdict.supported,
                    "runs_on": verdict.runs_on,
                    "reasons": list(verdict.reasons),
                    "left_to_cpu": list(verdict.left),
                }
                for name, verdict in self.verdicts.items()
            },
            "places": [{"module": place.module, "line": place.line} for place in self.places],
        }


@dataclass
class _Call:
    """One call of the model: what it is, where, the ops that it becomes, and by target what of
    them has no kernel and what the CPU computes."""

    op: str
    place: Place
    becomes: dict[str, None] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    left: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    nearest: dict[str, None] = field(default_factory=dict)


def mark_origins(captured: Capture) -> None:
    """Note in the metadata of a captured graph's nodes which call of the traced graph each came
    from: a gradient from the call whose gradient it is. Passes hand it on."""
    by_number: dict[Any, str] = {}
    for node in captured.graph.graph.nodes:
        number, found = node.meta.get("seq_nr"), compat.origin(node)
        if found:
            by_number.setdefault(number, found)
        node.meta["origin"] = found or by_number.get(number, "")


def examined(
    traced: Traced, graphs: Sequence[GraphModule], targets: Sequence[Target]
) -> list[ModelOp]:
    """Every kind of op that a model calls, those first that a target does not run. `graphs` are the
    rewritten ones, from a capture with `mark_origins`."""
    calls, same = _calls(traced.graph)
    for target in targets:
        for graph in graphs:
            _judge(plain_products(graph) if target.plain_products else graph, target, calls, same)
    kinds: dict[Any, list[_Call]] = defaultdict(list)
    for call in calls.values():
        verdicts = tuple((target.name, _verdict(call, target)) for target in targets)
        kinds[call.op, verdicts, tuple(call.nearest)].append(call)
    rows = [
        ModelOp(
            op,
            tuple(call.place for call in alike),
            dict(verdicts),
            tuple(dict.fromkeys(name for call in alike for name in call.becomes)),
            "; ".join(near),
        )
        for (op, verdicts, near), alike in kinds.items()
    ]
    return sorted(rows, key=lambda row: (row.supported, row.op))


def _calls(graph: GraphModule) -> tuple[dict[str, _Call], dict[str, str]]:
    """The calls of a traced graph by name, and which of them stands for each node: those of one
    module of torch.nn are one."""
    calls: dict[str, _Call] = {}
    same: dict[str, str] = {}
    modules: dict[tuple[str, str], str] = {}
    for node in graph.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        source = (node.meta.get("source_fn_stack") or [("", node.target)])[-1][1]
        copied = node.target is torch.clone and source is not torch.clone
        if copied or (node.target is operator.getitem and _is_item(node)):
            before = node.args[0]
            same[node.name] = same.get(before.name, before.name)
            continue
        place = Place(compat.module_path(node), source_line(node))
        name = called(source)
        first = node.name
        if isinstance(source, type):
            first = modules.setdefault((name, place.module), node.name)
        same[node.name] = first
        if first == node.name:
            calls[first] = _Call(name, place)
    return calls, same


def _is_item(node: Node) -> bool:
    value = getattr(node.args[0], "meta", {}).get("example_value")
    return isinstance(value, tuple | list)


def called(source: Any) -> str:
    """What the user calls it: "nn.Conv2d", "F.relu", "torch.exp", "Tensor.view", "+"."""
    if isinstance(source, str):
        return f"Tensor.{source}"
    if isinstance(source, type):
        return f"nn.{source.__name__}"
    name = getattr(source, "__name__", str(source))
    if getattr(operator, name, None) is source:
        return _SIGNS.get(name, name)
    for prefix, module in (("F", F), ("torch", torch), ("torch.fft", torch.fft)):
        for known, value in vars(module).items():
            if value is source:
                return f"{prefix}.{known}"
    return op_name_of(source)


def op_name_of(source: Any) -> str:
    """The name of a function that is none of torch's."""
    packet = getattr(source, "_qualified_op_name", "")
    return packet.replace("::", ".") or getattr(source, "__name__", str(source))


def _judge(
    graph: GraphModule, target: Target, calls: dict[str, _Call], same: Mapping[str, str]
) -> None:
    """Add what a target makes of the nodes of a graph to the calls that they came from."""
    refused = {entry.node: entry.reason for entry in unsupported(graph, target)}
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        name, origin = op_name(node), node.meta.get("origin", "")
        call = calls.get(same.get(origin, origin)) or _unowned(node, name, calls)
        call.becomes[name] = None
        if node.name in refused:
            call.refused[target.name][name] = refused[node.name]
            near = nearest(node, name)
            if near:
                call.nearest[near] = None
        elif (why := target.left_to_cpu(node)) is not None:
            call.taken[target.name] += not why
            if why:
                call.left[target.name][why] = None


def _unowned(node: Node, name: str, calls: dict[str, _Call]) -> _Call:
    """The call that a node without an origin belongs to: itself."""
    place = Place(node.meta.get("module") or compat.module_path(node), source_line(node))
    return calls.setdefault(f"{name} {place}", _Call(name, place))


def _verdict(call: _Call, target: Target) -> Verdict:
    reasons = defaultdict(list)
    for name, reason in call.refused.get(target.name, {}).items():
        reasons[reason].append(name)
    if reasons:
        return Verdict("", tuple(f"{', '.join(names)}: {why}" for why, names in reasons.items()))
    if not target.accelerates:
        return Verdict(target.name)
    left = tuple(call.left.get(target.name, ()))
    taken = call.taken.get(target.name, 0)
    return Verdict(target.name if taken and not left else "cpu", (), left)


def missing(rows: Iterable[ModelOp], target: str) -> list[ModelOp]:
    """The rows that a target does not run."""
    return [row for row in rows if not row.verdicts[target].supported]
