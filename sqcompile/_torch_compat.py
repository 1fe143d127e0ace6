"""Every private torch name that the compiler leans on, behind functions with our own names.

Pinned together with torch 2.13; a newer torch is tried here first. What only tracing needs is
imported there, so that a loaded artifact does not pay for Dynamo.
"""

import builtins
import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.graph import CodeGen
from torch.fx.node import _get_qualified_name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

TreeSpec = pytree.TreeSpec
tree_flatten = pytree.tree_flatten
tree_unflatten = pytree.tree_unflatten
treespec_to_json = pytree.treespec_dumps
treespec_from_json = pytree.treespec_loads


@dataclass(frozen=True)
class Port:
    """Where a value of the joint graph comes from or goes to.

    kind: "param", "buffer", "input", "tangent" (of an output), "output", "mutation" (a buffer's or
    an input's new value), "grad", or "absent" (a gradient that does not exist); name: a
    parameter's or buffer's dotted name, or the position of an input or output among the flattened
    ones; wrt, of a "grad" or "mutation": the kind of value it belongs to, of a "tangent":
    "mutation" when it belongs to an input's new value.
    """

    kind: str
    name: str
    wrt: str = ""


@dataclass(frozen=True)
class JointGraph:
    """A flat joint graph: placeholders and outputs in the order of their ports."""

    graph: GraphModule
    inputs: list[Port]
    outputs: list[Port]
    in_spec: TreeSpec
    out_spec: TreeSpec


def trace_error() -> type[Exception]:
    """What Dynamo raises when it cannot trace."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def trace_location(error: BaseException) -> tuple[str, int, str] | None:
    """(file, line, source) of the user's innermost statement that could not be traced, if known."""
    stack = list(getattr(error, "real_stack", None) or [])
    if not stack:
        return None
    library = str(Path(torch.__file__).parent)
    own = [frame for frame in stack if not frame.filename.startswith(library)]
    frame = (own or stack)[-1]
    return frame.filename, frame.lineno, (frame.line or "").strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log records of a failed trace: the caller reports the failure in the user's terms."""
    names = ["torch._subclasses.fake_tensor", "torch._dynamo", "torch.fx"]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def dynamo_graph(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> GraphModule:
    """The torch-level graph of one call, with the user's source lines on its nodes."""
    from torch._dynamo import config
    from torch._dynamo.functional_export import dynamo_graph_capture_for_export

    # Shapes stay constants however often a model is traced, and what the user compiled with
    # torch.compile stays compiled (no torch._dynamo.reset here).
    static = config.patch(automatic_dynamic_shapes=False, assume_static_by_default=True)
    with _quiet(), static, sdpa_kernel(SDPBackend.MATH):
        graph = dynamo_graph_capture_for_export(model)(*args, **dict(kwargs))
    assert isinstance(graph, GraphModule)
    _release(graph)
    return graph


def _release(graph: GraphModule) -> None:
    """Let go of the traced call's arguments: what surrounds a Dynamo graph would keep the batch
    in memory as long as anything of it lives."""
    captured: Any = graph._dynamo_bytecode_flatten.out  # type: ignore[union-attr]
    captured.graph_capture_output.output_graph.local_scope = {}
    captured.backend_input.example_inputs = []


def graph_inputs(graph: GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What the placeholders of a Dynamo graph stand for in this call, in order."""
    flatten = graph._dynamo_bytecode_flatten
    values = list(flatten(*args, *kwargs.values()))  # type: ignore[operator]
    flatten.gm_inputs = None  # type: ignore[union-attr] # it would keep the batch alive
    return values


def graph_result(
    graph: GraphModule, outputs: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a call returns when its Dynamo graph gives `outputs`: structure and constants are in
    the code that Dynamo put around the graph."""
    unflatten = graph._dynamo_bytecode_unflatten
    return unflatten(tuple(outputs), (*args, *kwargs.values()))  # type: ignore[operator]


def tracing_state() -> str | None:
    """What tracing depends on besides the model and its arguments, as text; None under a mode
    that changes what torch's functions do."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return None
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    deterministic = torch.are_deterministic_algorithms_enabled()
    return f"{torch.get_default_dtype()} {autocast} {deterministic}"


def function_name(target: Any) -> str | None:
    """The qualified name of a function of torch, this package or Python's operators; None for
    anything else, whose code its name does not tell."""
    try:
        name: str = _get_qualified_name(target)
    except (RuntimeError, AttributeError):
        return None
    known = ("torch.", "_operator.", "math.", "sqcompile.")
    builtin = getattr(builtins, name, None) is target
    return name if builtin or name.startswith(known) else None


def joint_graph(graph: GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> JointGraph:
    """Forward and backward of a Dynamo graph as one flat ATen graph.

    Attention is traced as plain products and softmax: the fused CPU form has a backward that
    decomposes to wrong gradients.
    """
    from torch._functorch.aot_autograd import aot_export_joint_with_descriptors

    with (
        contextlib.ExitStack() as stack,
        _quiet(),
        sdpa_kernel(SDPBackend.MATH),
        torch.fx.traceback.preserve_node_meta(),
    ):
        joint = aot_export_joint_with_descriptors(stack, graph, tuple(args), dict(kwargs))
        module = joint.graph_module
        module.graph.set_codegen(CodeGen())
        module.recompile()
        inputs = [_port(node.meta["desc"]) for node in module.graph.find_nodes(op="placeholder")]
        outputs = [_port(desc) for desc in module.graph.output_node().meta["desc"]]
        return JointGraph(
            module,
            inputs,
            outputs,
            pytree.tree_structure((tuple(args), dict(kwargs))),
            joint.out_spec,
        )


def _port(descriptor: object) -> Port:
    from torch._functorch._aot_autograd import descriptors as d

    match descriptor:
        case None:
            return Port("absent", "")
        case d.ParamAOTInput(target=name):
            return Port("param", name)
        case d.BufferAOTInput(target=name):
            return Port("buffer", name)
        case d.PlainAOTInput(idx=index):
            return Port("input", str(index))
        case d.TangentAOTInput(output=output):
            written = _port(output).kind == "mutation"
            return Port("tangent", _port(output).name, "mutation" if written else "")
        case d.ViewBaseAOTInput():
            return Port("unsupported", "memory that two inputs share")
        case d.PlainAOTOutput(idx=index):
            return Port("output", str(index))
        case d.InputMutationAOTOutput(mutated_input=mutated):
            return Port("mutation", _port(mutated).name, _port(mutated).kind)
        case d.GradAOTOutput(grad_of=source):
            return Port("grad", _port(source).name, _port(source).kind)
    return Port("unsupported", str(descriptor))


def fake_mode(graph: GraphModule) -> FakeTensorMode:
    """The fake-tensor mode that the graph's metadata was made under."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def lazy_graph_module(root: torch.nn.Module, graph: Graph) -> GraphModule:
    """A graph module whose Python code is generated when it is first run, not at every change."""
    return _LazyGraphModule(root, graph)


def module_path(node: Node) -> str:
    """Dotted path of the module whose call made a node, "" for the model's own forward."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        return _dotted(str(path))
    return ""


def origin(node: Node) -> str:
    """The node of the traced graph that a node of the joint graph came from; "" for a gradient."""
    sources = node.meta.get("from_node") or []
    return str(sources[-1].name) if sources else ""


_ROOT = re.compile(r"^[LG]\['\w+'\]")
_PART = re.compile(r"\['?([^'\]]+)'?\]|(\w+)")
_STORES = {"_modules", "_parameters", "_buffers", "__dict__", "__self__"}


def _dotted(source: str) -> str:
    """`L['self']._modules['fc']._parameters['weight']` -> "fc.weight"; what stands in another
    variable keeps its name: `G['net'].fc` -> "net.fc"."""
    parts = [a or b for a, b in _PART.findall(source.removeprefix("L['self']"))]
    if _ROOT.match(source) and not source.startswith("L['self']"):
        parts = parts[1:]  # L or G: a local or a global variable
    return ".".join(part for part in parts if part not in _STORES)


def _source(node: Node) -> str:
    """Where Dynamo found the value of a placeholder, as it writes that; "" when it is not told."""
    return str(getattr(getattr(node.meta.get("grapharg"), "source", None), "name", ""))


def name_modules(graph: GraphModule) -> None:
    """Call the module of a graph from torch.compile `self`, whatever variable it stands in, so
    that its paths are those of the same model elsewhere; several modules keep their names."""
    inputs = graph.graph.find_nodes(op="placeholder")
    stored = [_source(node) for node in inputs if "._modules[" in _source(node)]
    stacks = [node.meta.get("nn_module_stack") or {} for node in graph.graph.nodes]
    called = [str(path) for stack in stacks for path, _ in stack.values()]
    roots = {match[0] for text in stored + called if (match := _ROOT.match(text))}
    if len(roots) != 1:
        return
    (root,) = roots
    for node, stack in zip(graph.graph.nodes, stacks, strict=True):
        if stack:
            node.meta["nn_module_stack"] = {
                key: (str(path).replace(root, "L['self']", 1), kind)
                for key, (path, kind) in stack.items()
            }
        if node.op == "placeholder":
            node.meta["source"] = _source(node).replace(root, "L['self']", 1)


def compiled_graph_ports(graph: GraphModule, args: Sequence[Any]) -> list[Port]:
    """What every placeholder of a graph from torch.compile is: "param", "buffer" or "input".

    Parameters and buffers of modules have their dotted names, relative to the module whose
    forward is compiled; all else has its position.
    """
    ports: list[Port] = []
    for index, (node, value) in enumerate(
        zip(graph.graph.find_nodes(op="placeholder"), args, strict=True)
    ):
        source = node.meta.get("source") or _source(node)
        kind = "param" if isinstance(value, torch.nn.Parameter) else "input"
        if kind == "input" and "._buffers[" in source:
            kind = "buffer"
        port = Port(kind, _dotted(source) or node.name) if kind != "input" else None
        ports.append(port if port and port not in ports else Port("input", str(index)))
    return ports


def specialize(graph: GraphModule) -> None:
    """Make every size and number that Dynamo left open in a graph a constant of this compilation,
    with a guard on it: another value compiles once more."""
    from torch._dynamo.exc import TensorifyScalarRestartAnalysis
    from torch._dynamo.symbolic_convert import TensorifyState

    floats = set()
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt):
            int(value)
        elif isinstance(value, torch.SymFloat):
            floats.add(str(value.node.expr))
    if floats:
        for name in floats:
            TensorifyState.specialize(name)
        raise TensorifyScalarRestartAnalysis


def outside_of_dynamo() -> contextlib.AbstractContextManager[Any]:
    """Trace as if Dynamo were not compiling: with fake tensors of our own, whose shapes are
    constants."""
    from torch._guards import tracing

    return tracing(None)


def in_backward() -> bool:
    """Whether autograd is running a backward pass on this thread."""
    return torch._C._current_graph_task_id() != -1


def may_be_repeated() -> bool:
    """Whether what runs now may be run again by backward: under hooks for saved tensors, or
    without gradients (both forms of activation checkpointing)."""
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return hooked or not torch.is_grad_enabled()
