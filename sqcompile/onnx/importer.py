"""ONNX nodes as a torch.fx graph: values, weights, names and constants.

What one op becomes stands in the tables of `import_*.py`. Nodes that depend on constants alone,
like the shape arithmetic of exporters, are computed while the model is read.
"""

import keyword
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from sqcompile.onnx.dtypes import TORCH_TYPES
from sqcompile.onnx.module import inputs_of

Read = Node | Tensor | None
"""A value of the model: of a node, a constant, or an input that is left out."""
Reader = Callable[["Importer", "OnnxNode"], Any]

READERS: dict[str, Reader] = {}
"""What writes an ONNX op in torch, by its name."""


class Unsupported(Exception):
    """Nodes that have no form in torch; one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


def reads(*ops: str) -> Callable[[Reader], Reader]:
    """Enter a reader for these ops."""

    def enter(reader: Reader) -> Reader:
        for op in ops:
            assert op not in READERS, op
            READERS[op] = reader
        return reader

    return enter


class OnnxNode:
    """A node with its attributes as Python values."""

    def __init__(self, proto: Any, number: int) -> None:
        self.op = str(proto.op_type)
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.name = str(proto.name) or f"{self.op.lower()}_{number}"
        self.attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default; text as str."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def refuse(self, why: str) -> "Unsupported":
        """The error that this node has a form of its op that is not read."""
        return Unsupported([f"{self.op} {self.name}: {why}"])


class Importer:
    """One model on its way into a module."""

    def __init__(self, graph: Any, shapes: dict[str, list[int]], opset: int) -> None:
        self.proto = graph
        self.opset = opset
        self.graph = Graph()
        self.root = nn.Module()
        self.shapes = shapes
        self.values: dict[str, Read] = {"": None}
        self.initialisers = {one.name: _tensor(one) for one in graph.initializer}
        self._roots = self._aliases()
        self._readers = self._read_by()
        self._outputs = {value.name for value in graph.output}
        self._weights: dict[str, Node] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._paths: dict[str, int] = {}

    def missing(self) -> list[str]:
        """Every node whose op has no reader."""
        import sqcompile.onnx.readers  # noqa: F401 - fills the table

        return [
            f"{node.op_type} {node.name or node.output[0]}"
            for node in self.proto.node
            if node.domain in ("", "ai.onnx") and node.op_type not in READERS
        ]

    def written(self) -> Graph:
        """The graph, of parts of `root`. Raises Unsupported with all nodes of forms that are not
        read."""
        for value in inputs_of(self.proto):
            given = self._placeholder(value.name)
            dtype = TORCH_TYPES.get(value.type.tensor_type.elem_type)
            if dtype is None:
                raise Unsupported([f"input {value.name}: its element type"])
            with self._fake:
                given.meta["val"] = torch.empty(self.shapes[value.name], dtype=dtype)
            double = dtype == torch.float64
            self.values[value.name] = self.method("to", given, torch.float32) if double else given
        refused: list[str] = []
        for number, proto in enumerate(self.proto.node):
            if all(name in self.values or name in self.initialisers for name in proto.output):
                continue  # an alias of an initialiser, or read with what stands before it
            node = OnnxNode(proto, number)
            if any(name and not self._known(name) for name in node.inputs):
                continue  # behind a node that is refused
            try:
                self._read(node)
            except Unsupported as error:
                refused += error.lines
        if refused:
            raise Unsupported(refused)
        results = tuple(self.node(self.value(value.name)) for value in self.proto.output)
        self.graph.output(results if len(results) > 1 else results[0])
        return self.graph

    def _placeholder(self, name: str) -> Node:
        """An argument of forward, under the input's own name where that is free."""
        others = self.graph.find_nodes(op="placeholder")
        taken = {text for node in others for text in (node.name, node.target)}
        given = self.graph.placeholder(_identifier(name))
        if given.target in taken or not str(given.target).isidentifier():
            given.target = given.name
        return given

    def _known(self, name: str) -> bool:
        return name in self.values or name in self.initialisers

    def _read(self, node: OnnxNode) -> None:
        try:
            results = READERS[node.op](self, node)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise node.refuse((str(error).splitlines() or [type(error).__name__])[0]) from error
        several = results if isinstance(results, (tuple, list)) else [results]
        for number, name in enumerate(node.outputs[len(several) :], len(several) + 1):
            if name and self.read(name):
                raise node.refuse(f"its output {number} is read")
        for name, value in zip(node.outputs, several, strict=False):
            if name:
                self.values[name] = value

    def value(self, name: str) -> Read:
        """A value by name; an initialiser is a parameter or a constant."""
        if name not in self.values and name in self.initialisers:
            name = self._roots.get(name, name)
            if name not in self.values:
                self.values[name] = self._initialiser(name)
        return self.values[name]

    def constant(self, name: str) -> Tensor | None:
        """A value that is constant, whatever its dtype says; None for others."""
        if name in self.initialisers:
            return self.initialisers[name]
        value = self.values[name]
        return value if isinstance(value, Tensor) else None

    def inputs(self, node: OnnxNode) -> list[Read]:
        """A node's inputs."""
        return [self.value(name) for name in node.inputs]

    def _initialiser(self, name: str) -> Read:
        tensor = self.initialisers[name]
        if not trainable(tensor):
            return tensor
        path = self.weight_path(name)
        return self.parameter(name, path, tensor)

    def parameter(self, name: str, path: str, tensor: Tensor) -> Node:
        """A parameter at `path`; the same one for an initialiser that is read again."""
        if name not in self._weights:
            module, leaf, path = self._place(path)
            module.register_parameter(leaf, nn.Parameter(tensor.clone()))
            self._weights[name] = self._attribute(path, tensor)
        return self._weights[name]

    def _attribute(self, path: str, tensor: Tensor) -> Node:
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        with self.graph.inserting_before(first):
            node = self.graph.get_attr(path)
        node.meta["val"] = self._fake.from_tensor(tensor)
        return node

    def weight_path(self, name: str) -> str:
        """A free dotted path for an initialiser: its own name when that reads like one."""
        own = _readable(name) or name.isidentifier()
        return self.free(_dotted(name) if own else f"weights.{_identifier(name)}")

    def free(self, path: str) -> str:
        """`path`, with a number behind it when it is taken."""
        count = self._paths.get(path, 0)
        self._paths[path] = count + 1
        return path if not count else self.free(f"{path}_{count}")

    def _place(self, path: str) -> tuple[nn.Module, str, str]:
        """(the module at a path, a name in it that is free, the path of that); parts that are
        weights have a number behind them."""
        *parts, leaf = path.split(".")
        module, kept = self.root, []
        for part in parts:
            while hasattr(module, part) and part not in module._modules:
                part += "_1"
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
            kept.append(part)
        while hasattr(module, leaf):
            leaf += "_1"
        return module, leaf, ".".join([*kept, leaf])

    def node(self, value: Read) -> Node:
        """A value as a node: a constant becomes a buffer."""
        if isinstance(value, Node):
            return value
        assert isinstance(value, Tensor)
        module, leaf, path = self._place(self.free("constants.value"))
        module.register_buffer(leaf, value.clone(), persistent=False)
        node = self.graph.get_attr(path)
        node.meta["val"] = self._fake.from_tensor(value)
        return node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of a torch function: computed at once when all it reads is constant."""
        nodes: list[Node] = []
        map_arg((args, kwargs), nodes.append)
        if not nodes:
            return function(*args, **kwargs)
        args, kwargs = self._lifted(args), self._lifted(kwargs)
        made = self.graph.call_function(function, args, kwargs)
        given = map_arg((args, kwargs), lambda node: node.meta["val"])
        with self._fake:
            made.meta["val"] = function(*given[0], **given[1])
        return made

    def method(self, name: str, value: Read, *args: Any) -> Any:
        """A call of a tensor's method."""
        if isinstance(value, Tensor):
            return getattr(value, name)(*args)
        made = self.graph.call_method(name, (value, *args))
        assert isinstance(value, Node)
        with self._fake:
            made.meta["val"] = getattr(value.meta["val"], name)(*args)
        return made

    def _lifted(self, value: Any) -> Any:
        """Tensors among arguments as nodes; numbers stay, and so do scalars as Python numbers."""
        if isinstance(value, Tensor):
            return value.item() if value.dim() == 0 else self.node(value)
        if isinstance(value, (tuple, list)):
            return type(value)(self._lifted(one) for one in value)
        if isinstance(value, dict):
            return {key: self._lifted(one) for key, one in value.items()}
        return value

    def layer(self, node: OnnxNode, module: nn.Module, weight: str, *args: Read) -> Node:
        """A call of a torch layer, which stands under the path of its weight `weight`."""
        path = self.layer_path(node, weight)
        if path in {name for name, _ in self.root.named_modules()}:  # parts or weights of its own
            path = f"{path}.{module._get_name().lower()}"
        return self._placed(module, path, args)

    def _placed(self, module: nn.Module, path: str, args: tuple[Read, ...]) -> Node:
        owner, leaf, path = self._place(path)
        owner.add_module(leaf, module)
        nodes = tuple(self.node(one) for one in args)
        made = self.graph.call_module(path, nodes)
        given = [one.meta["val"] for one in nodes]
        with self._fake:
            made.meta["val"] = module.eval()(*given)
        module.train()
        return made

    def layer_path(self, node: OnnxNode, weight: str = "") -> str:
        """The path of a layer: of its weight without ".weight", or of its node."""
        if weight and _readable(weight):
            return self.free(_dotted(weight).rpartition(".")[0] or "layer")
        return self.free(_node_path(node.name))

    def alone(self, name: str) -> bool:
        """Whether a value is read by one node."""
        return len(self._readers.get(self._roots.get(name, name), [])) == 1

    def read(self, name: str) -> bool:
        """Whether a value is read at all, or is an output."""
        return name in self._readers or name in self._outputs

    def reader(self, name: str) -> Any:
        """The one node that reads a value, None where several do or it is an output."""
        found = self._readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self._outputs else None

    def _aliases(self) -> dict[str, str]:
        """Names that Identity gives to initialisers, each with the initialiser's own."""
        roots: dict[str, str] = {}
        for node in self.proto.node:
            if node.op_type == "Identity" and node.input[0] in self.initialisers:
                root = roots.get(node.input[0], node.input[0])
                roots[node.output[0]] = root
                self.initialisers[node.output[0]] = self.initialisers[root]
        return roots

    def _read_by(self) -> dict[str, list[Any]]:
        readers: dict[str, list[Any]] = {}
        for node in self.proto.node:
            if node.output and node.output[0] in self._roots:
                continue
            for name in node.input:
                readers.setdefault(self._roots.get(name, name), []).append(node)
        return readers


def _tensor(proto: Any) -> Tensor:
    """An initialiser."""
    try:
        tensor = torch.from_numpy(numpy_helper.to_array(proto).copy())
    except TypeError as error:
        raise Unsupported([f"initialiser {proto.name}: its element type"]) from error
    return narrowed(tensor)


def narrowed(tensor: Tensor) -> Tensor:
    """A constant; half and double floats become float32, of which training keeps weights."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.float64) else tensor


def trainable(tensor: Tensor) -> bool:
    """Whether an initialiser is a weight: finite floats, more than one."""
    floats = tensor.dtype == torch.float32 and tensor.numel() > 1
    return floats and bool(torch.isfinite(tensor).all())


def _readable(name: str) -> bool:
    """Whether an initialiser's name is a path like "encoder.0.weight"."""
    return "." in name and "::" not in name and "/" not in name


def _dotted(name: str) -> str:
    return ".".join(_identifier(part) for part in name.split(".") if part)


def _node_path(name: str) -> str:
    """ "/blocks/blocks.0/qkv/MatMul" -> "blocks.0.qkv": exporters repeat the path of a list."""
    parts = [part for part in name.split("/") if part]
    parts = parts[:-1] if len(parts) > 1 else parts
    kept: list[str] = []
    for part in parts:
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return _dotted(".".join(kept)) or "layer"


_TAKEN = {*keyword.kwlist, "self", *dir(nn.Module())}
"""Names that neither an argument nor a part of a module can have."""


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    return f"{text}_" if text in _TAKEN else text


def row_limits(graph: Any) -> dict[str, int]:
    """Of inputs that are read as row numbers of initialisers: how many rows there are."""
    rows = {one.name: one.dims for one in graph.initializer}
    same: dict[str, str] = {}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity"):
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        if node.op_type == "Gather" and node.input[0] in rows:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            source = same.get(node.input[1], node.input[1])
            count = int(rows[node.input[0]][axis])
            limits[source] = min(count, limits.get(source, count))
    return limits
