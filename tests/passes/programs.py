"""Graphs written as programs, for golden tests of passes.

    graph("g: f32[4, 8], w: f32[8, 6] -> dx", '''
        q = sq.quantize(w, r, 4, True)
        dx = sq.matmul(g, w, None, False, False)
    ''')

makes a GraphModule with values in its metadata; `same(a, b)` says whether two graphs are equal up
to names, and shows both as text when they are not.
"""

import ast
import re
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

import sqcompile.ops  # noqa: F401  (registers sq::)
from sqcompile._torch_compat import Port
from sqcompile.ops.table import find
from sqcompile.passes.editing import arguments
from sqcompile.passes.entries import text
from sqcompile.passes.listing import listing

_DTYPES = {
    "f32": torch.float32,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
_KINDS = {"p_": "param", "b_": "buffer", "x_": "input", "g_": "tangent"}


def graph(signature: str, program: str, **meta: dict[str, Any]) -> GraphModule:
    """A graph from a program; `meta` adds metadata to nodes by name. Placeholders called p_...,
    x_... and g_... are parameters, inputs and incoming gradients; the graph holds
    constant([1, 2], "i64"); keyword arguments are dtypes (dtype=f32)."""
    inputs, _, outputs = signature.partition("->")
    result = Graph()
    names: dict[str, Node] = {}
    held = torch.nn.Module()
    mode = FakeTensorMode()
    for name, dtype, sizes in re.findall(r"(\w+): (\w+)\[([\d, ]*)\]", inputs):
        node = result.placeholder(name)
        with mode:
            shape = [int(size) for size in sizes.split(",") if size.strip()]
            node.meta["val"] = torch.empty(shape, dtype=_DTYPES[dtype])
        if name[:2] in _KINDS:
            node.meta["port"] = Port(_KINDS[name[:2]], name[2:].replace("__", "."))
        names[name] = node
    for statement in ast.parse(_dedented(program)).body:
        assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        name = statement.targets[0].id
        if _is_constant(statement.value):
            node = _constant(result, statement.value, mode, name, held)
        else:
            node = _call(result, statement.value, names, mode, name)
        node.meta.update(meta.get(name, {}))
        names[name] = node
    result.output(tuple(names[name.strip()] for name in outputs.split(",")))
    return GraphModule(held, result)


def _is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "constant"


def _constant(
    result: Graph, value: ast.expr, mode: FakeTensorMode, name: str, held: torch.nn.Module
) -> Node:
    """constant([1, 2], "i64"): a tensor that the graph holds."""
    assert isinstance(value, ast.Call)
    numbers, dtype = (ast.literal_eval(argument) for argument in value.args)
    held.register_buffer(name, torch.tensor(numbers, dtype=_DTYPES[dtype]))
    node = result.get_attr(name)
    node.meta["val"] = mode.from_tensor(held.get_buffer(name))
    return node


def _dedented(program: str) -> str:
    return "\n".join(line.strip() for line in program.strip().splitlines())


def _call(
    result: Graph, value: ast.expr, names: dict[str, Node], mode: FakeTensorMode, name: str
) -> Node:
    kwargs: dict[str, Any] = {}
    if isinstance(value, ast.Subscript):
        import operator

        target: Any = operator.getitem
        args: tuple[Any, ...] = (_value(value.value, names), _value(value.slice, names))
    else:
        assert isinstance(value, ast.Call)
        target = _overload(ast.unparse(value.func))
        args = tuple(_value(argument, names) for argument in value.args)
        kwargs = {str(one.arg): _DTYPES[ast.unparse(one.value)] for one in value.keywords}
    node = result.call_function(target, args, kwargs, name=name)
    with mode:
        node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]), **kwargs)
    return node


def _overload(path: str) -> Any:
    """sq.quantize -> torch.ops.sq.quantize.default; aten.mul.Tensor as it stands."""
    parts = path.split(".")
    target = getattr(getattr(torch.ops, parts[0]), parts[1])
    return getattr(target, parts[2] if len(parts) > 2 else "default")


def _value(expression: ast.expr, names: dict[str, Node]) -> Any:
    if isinstance(expression, ast.Name):
        return names[expression.id]
    if isinstance(expression, ast.List):
        return [_value(element, names) for element in expression.elts]
    return ast.literal_eval(expression)


def same(actual: GraphModule, expected: GraphModule) -> bool:
    """Whether two graphs compute the same calls in an order that differs at most in ties.

    Raises AssertionError with both texts when they do not.
    """
    found, wanted = _canonical(actual), _canonical(expected)
    assert found == wanted, _both(actual, expected)
    return True


def _both(actual: GraphModule, expected: GraphModule) -> str:
    return f"\n--- actual\n{text(listing(actual))}\n--- expected\n{text(listing(expected))}"


def _canonical(module: GraphModule) -> tuple[str, ...]:
    """The outputs as nested expressions: independent of names and of the order of statements."""
    written: dict[Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            written[node] = node.name
        elif node.op == "get_attr":
            held = getattr(module, str(node.target))
            written[node] = f"{held.dtype}{held.tolist()}"
        elif node.op == "call_function":
            given = _arguments(node)
            args = torch.fx.node.map_arg(given, lambda n: _Text(written[n]))
            written[node] = f"{node.target}({_listed(args)}){dict(node.kwargs) or ''}"
    output = module.graph.output_node().args[0]
    return tuple(written[node] for node in output)  # type: ignore[union-attr, index]


def _arguments(node: Node) -> tuple[Any, ...]:
    """Positional arguments, those of our ops with their defaults."""
    return tuple(arguments(node).values()) if find(node.target) else node.args


class _Text(str):
    def __repr__(self) -> str:
        return str(self)


def _listed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_listed(v) for v in value) + "]"
    return repr(value)
