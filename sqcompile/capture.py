"""Model -> joint forward and backward ATen graph, with every value's place and source line.

The Dynamo graph of one call is taken first (it keeps the user's source lines), norms are
swapped for their L1 forms there and interpolations for resampling, then AOT autograd makes the
joint graph.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from sqcompile import _torch_compat as compat
from sqcompile.errors import CaptureError
from sqcompile.norm_swap import swap_norms
from sqcompile.passes.editing import copy_graph
from sqcompile.shape_swap import swap_shapes

_RAISED = re.compile(r"got (?P<type>\w+)\((?P<quote>['\"])(?P<text>.*?)(?P=quote)\)")
"""How Dynamo quotes an exception of the user's own code."""
_REMEDIES = {
    "Data-dependent branching": "write the branch without Python's if, e.g. with torch.where, "
    "or move it out of the compiled model",
    "Could not guard on data-dependent": "a number that is computed from values cannot be "
    "compiled; a batch norm needs a number as its momentum",
    "support for RNN, GRU, and LSTM": "recurrent layers are not supported: leave them in "
    "PyTorch, with torch.compile(backend='sqcompile') and torch.compiler.disable around them",
    "Dynamic shape operator": "a shape that depends on values cannot be compiled; use a mask",
}


@dataclass(frozen=True)
class Capture:
    """One traced call of a model.

    graph: flat joint graph; placeholders are `inputs` in order, then "rng" (int64[4]); outputs
    are `outputs` in order, None where a gradient does not exist. in_spec / out_spec: the
    structures of (args, kwargs) and of what the model returns; `constants`: the outputs that
    are plain Python values, by position; `passed`: those that are a parameter or an input as it
    stands, with its kind and name.
    """

    graph: GraphModule
    inputs: list[compat.Port]
    outputs: list[compat.Port]
    in_spec: compat.TreeSpec
    out_spec: compat.TreeSpec
    constants: dict[int, Any]
    passed: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Traced:
    """One call of a model as Dynamo saw it: a torch-level graph, its norms swapped already, the
    arguments, and which parameters, by name, have gradients."""

    graph: GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    trained: dict[str, bool]

    def later(self) -> "Callable[[], Traced]":
        """A function that gives this call again and keeps no batch alive: tensors among the
        arguments are others, of the same kind, whose values the graph does not depend on."""
        leaves, structure = compat.tree_flatten((self.args, self.kwargs))
        made = {id(x): _like(x) for x in leaves if isinstance(x, torch.Tensor)}
        makers = [made.get(id(x), x) for x in leaves]
        graph, trained = self.graph, self.trained

        def again() -> Traced:
            new = {maker: maker() for maker in made.values()}
            args, kwargs = compat.tree_unflatten(
                [new.get(x, x) if callable(x) else x for x in makers], structure
            )
            return Traced(graph, args, kwargs, trained)

        return again


def _like(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    sizes, strides, dtype, wanted = x.size(), x.stride(), x.dtype, x.requires_grad
    return lambda: torch.empty_strided(sizes, strides, dtype=dtype, requires_grad=wanted)


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
    """Trace `model(*args, **kwargs)` in its current mode (train or eval).

    Raises CaptureError with the user's file and line when the model cannot be traced.
    """
    return differentiate(trace(model, args, kwargs))


def trace(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Traced:
    """The first half of `capture`: what the model calls. Raises CaptureError."""
    with _failures(), _tensors_kept(model):
        graph = compat.dynamo_graph(model, args, kwargs)
        _swap(graph)
    trained = {name: p.requires_grad for name, p in graph.named_parameters()}
    return Traced(graph, tuple(args), dict(kwargs), trained)


def differentiate(traced: Traced) -> Capture:
    """The second half of `capture`: the joint graph. Raises CaptureError."""
    with _failures(), _tensors_kept(traced.graph), _trained_as_traced(traced):
        joint = compat.joint_graph(traced.graph, traced.args, traced.kwargs)
    return _flattened(joint, {"buffer"})


def capture_graph(graph: GraphModule, args: Sequence[Any], ports: Sequence[compat.Port]) -> Capture:
    """Trace a graph that torch.compile took, on its flat inputs; `ports` says what they are.

    Raises CaptureError when autograd cannot trace it.
    """
    with _failures(), compat.outside_of_dynamo():
        own = copy_graph(graph)
        _swap(own)
        joint = compat.joint_graph(own, args, {})
        return _flattened(_named(joint, ports), {"buffer", "input"})


def _swap(graph: GraphModule) -> None:
    """What changes in a torch-level graph before autograd sees it, in place."""
    swap_norms(graph)
    swap_shapes(graph)
    _separate_outputs(graph)


@contextmanager
def _trained_as_traced(traced: Traced) -> Iterator[None]:
    """Freeze what was frozen when the call was traced, and nothing else, in this block."""
    parameters = [(p, traced.trained[name]) for name, p in traced.graph.named_parameters()]
    changed = [(p, wanted) for p, wanted in parameters if p.requires_grad != wanted]
    try:
        for parameter, wanted in changed:
            parameter.requires_grad_(wanted)
        yield
    finally:
        for parameter, wanted in changed:
            parameter.requires_grad_(not wanted)


@contextmanager
def _failures() -> Iterator[None]:
    """Gradients on, and tracing's errors as CaptureError."""
    try:
        with torch.enable_grad():
            yield
    except compat.trace_error() as error:
        raise _trace_failure(error) from error
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise CaptureError(_eager_failure(error)) from error


def _named(joint: compat.JointGraph, ports: Sequence[compat.Port]) -> compat.JointGraph:
    """The joint graph of a function of flat inputs, with `ports` for these."""

    def named(port: compat.Port) -> compat.Port:
        if port.kind == "input":
            return ports[int(port.name)]
        of_written = (port.kind, port.wrt) == ("tangent", "mutation")
        if port.wrt == "input" or (of_written and port.name.isdigit()):
            source = ports[int(port.name)]
            wrt = port.wrt if port.kind == "tangent" else source.kind
            return compat.Port(port.kind, source.name, wrt)
        return port

    return replace(
        joint, inputs=[named(p) for p in joint.inputs], outputs=[named(p) for p in joint.outputs]
    )


def _separate_outputs(graph: GraphModule) -> None:
    """Return copies, so that no output is a view of another; a copy that nothing needs costs
    nothing after lowering."""
    output = graph.graph.output_node()

    def copied(value: torch.fx.Node) -> torch.fx.Node:
        with graph.graph.inserting_before(output):
            copy = graph.graph.call_function(torch.clone, (value,))
        copy.meta.update(value.meta)
        return copy

    output.args = torch.fx.node.map_arg(output.args, copied)
    graph.recompile()


@contextmanager
def _tensors_kept(model: nn.Module) -> Iterator[None]:
    """Give the model its own tensors back: tracing leaves a tracer's in a module that stands
    under two names, whose parameters it swaps in twice."""
    kept = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, parameters, buffers in kept:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _trace_failure(error: BaseException) -> CaptureError:
    place = compat.trace_location(error)
    where = f"{place[0]}:{place[1]}  {place[2]}\n  " if place else ""
    raised = _RAISED.search(str(error))
    if raised:
        return CaptureError(
            f"{where}raises {raised['type']}: {raised['text']}\n"
            "  run the model eagerly with the same inputs to see it."
        )
    lines = [line.strip() for line in str(error).strip().splitlines()]
    reason = lines[0] if lines else type(error).__name__
    explanation = _labelled(lines, "Explanation:")
    known = next((text for key, text in _REMEDIES.items() if key in str(error)), "")
    remedy = known or _labelled(lines, "Hint:") or "run the model eagerly to see the failure"
    detail = f"\n  {explanation}" if explanation else ""
    return CaptureError(f"{where}cannot be traced: {reason}{detail}\n  {remedy.rstrip('.')}.")


def _labelled(lines: Sequence[str], label: str) -> str:
    """The rest of the first line that starts with `label`, or ""."""
    found = next((line for line in lines if line.startswith(label)), "")
    return found.removeprefix(label).strip()


def _eager_failure(error: BaseException) -> str:
    return (
        f"the model cannot be traced: {type(error).__name__}: {error}\n"
        "  run model(*example_inputs()) eagerly; when that works, report this as a bug."
    )


def _flattened(joint: compat.JointGraph, writable: Set[str]) -> Capture:
    """Drop the inputs that nothing reads, add "rng", name the placeholders after their ports.
    `writable`: the kinds of inputs that may be changed in place."""
    _check_ports(joint, writable)
    graph = joint.graph.graph
    kept: list[compat.Port] = []
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    for port, node in zip(joint.inputs, graph.find_nodes(op="placeholder"), strict=True):
        if not node.users and port.kind != "tangent":
            graph.erase_node(node)
            continue
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise CaptureError(
                f"input {port.name} is a Python value that the graph reads as a variable\n"
                "  pass it as a tensor, or make it an attribute of the model."
            )
        node._rename(_placeholder_name(port))
        node.meta["port"] = port
        kept.append(port)
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        rng = graph.placeholder("rng")
    with compat.fake_mode(joint.graph):
        rng.meta["val"] = torch.empty(4, dtype=torch.int64)
    constants = {
        int(port.name): value
        for port, value in zip(joint.outputs, results, strict=True)
        if port.kind == "output" and not isinstance(value, torch.fx.Node)
    }
    passed, ports, values = {}, [], []
    for port, value in zip(joint.outputs, results, strict=True):
        if isinstance(value, torch.fx.Node):
            ports.append(port)
            values.append(value)
            source = value.meta.get("port")
            if port.kind == "output" and source and source.kind in ("param", "input"):
                passed[int(port.name)] = (source.kind, source.name)
    output.args = (tuple(values),)
    joint.graph.recompile()
    return Capture(joint.graph, kept, ports, joint.in_spec, joint.out_spec, constants, passed)


def _check_ports(joint: compat.JointGraph, writable: Set[str]) -> None:
    rule = "its buffers in place, not its inputs or parameters"
    if "input" in writable:
        rule = "buffers and inputs in place, not parameters: the optimiser stays outside"
    for port in [*joint.inputs, *joint.outputs]:
        if port.kind == "unsupported" or (port.kind == "mutation" and port.wrt not in writable):
            raise CaptureError(
                f"the model changes or returns something that cannot be compiled: {port.name}\n"
                f"  a model may update {rule}."
            )


def _placeholder_name(port: compat.Port) -> str:
    prefix = {"param": "p_", "buffer": "b_", "input": "x_", "tangent": "g_"}[port.kind]
    return prefix + "".join(c if c.isalnum() else "_" for c in port.name)
