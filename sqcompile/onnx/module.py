"""load: an ONNX model as a torch module that trains.

The file is data: nothing in it is executed. Its nodes become a torch.fx graph, of which forward is
written, and layers with weights become torch's modules under the names of those
weights.
"""

import linecache
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from sqcompile.errors import CaptureError, UnsupportedOpError, UsageError, first_line
from sqcompile.onnx.needs import onnx_package


class OnnxModule(nn.Module):
    """An ONNX model as a module: parameters for its trainable initialisers, buffers for others.

    code: what forward does, as Python; lines of it stand in messages under the file's name.
    """

    code: str


def of_graph(root: nn.Module, graph: Graph, name: str) -> OnnxModule:
    """A module with the parts of `root` and a forward that computes `graph`."""
    graph.owning_module = root  # type: ignore[assignment]
    graph.eliminate_dead_code()
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, name, "exec"), namespace)
    linecache.cache[name] = (len(code.src), None, code.src.splitlines(True), name)
    kind = type("OnnxModel", (OnnxModule,), {"forward": namespace["forward"], "code": code.src})
    module = kind()
    module._parameters, module._buffers = root._parameters, root._buffers
    module._modules = root._modules
    module._non_persistent_buffers_set = root._non_persistent_buffers_set
    assert isinstance(module, OnnxModule)
    return module.train()


def load(path: str | Path, *, dims: Mapping[str, int] | None = None) -> OnnxModule:
    """Read an ONNX model -> a module in training mode, with the file's weights.

    dims: sizes of dynamic dimensions by name. Float initialisers with more than one element are
    parameters, all else is constant. Raises UsageError (no such file; a dynamic dimension without
    a size), CaptureError (no valid model), UnsupportedOpError with every node that has no form in
    torch, TargetUnavailableError without the package onnx.
    """
    model = read(path)
    from sqcompile.onnx.importer import Importer, Unsupported

    shapes = sizes(path, model.graph, dims or {})
    opset, refused = _opset(path, model), _foreign(model)
    refused += [f"initialiser {one.values.name}: sparse" for one in model.graph.sparse_initializer]
    try:
        importer = Importer(model.graph, shapes, opset)
        refused += importer.missing()
        if not refused:
            return of_graph(importer.root, importer.written(), Path(path).name)
    except Unsupported as error:
        refused += error.lines
    count = f"{len(refused)} node" + ("s" if len(refused) > 1 else "")
    raise UnsupportedOpError(
        f"{path}: {count} without a form in torch:\n"
        + "\n".join(f"  {line}" for line in refused)
        + "\ndocs/onnx.md lists the ops that are read."
    )


def read(path: str | Path) -> Any:
    """The checked ModelProto of a file."""
    onnx = onnx_package()
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {error.filename or path}") from error
    except Exception as error:  # protobuf and the checker raise types of their own
        raise CaptureError(f"{path} is no valid ONNX model: {first_line(error)}") from error
    if not model.graph.output:
        raise CaptureError(f"{path} is no valid ONNX model: its graph has no output")
    return model


def _opset(path: str | Path, model: Any) -> int:
    found = {one.domain: one.version for one in model.opset_import}
    version = int(found.get("", found.get("ai.onnx", 0)))
    if version < OLDEST:
        raise UsageError(
            f"{path} has opset {version}; {OLDEST} and newer are read\n"
            "  onnx.version_converter.convert_version(model, 17) raises it."
        )
    return version


OLDEST = 13
"""The opset from which on axes are inputs and batch norm has one output."""


def _foreign(model: Any) -> list[str]:
    """Nodes of other domains than ONNX's own, and models' functions."""
    return [
        f"{node.op_type} of domain {node.domain}: {node.name or node.output[0]}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx")
    ]


def inputs_of(graph: Any) -> list[Any]:
    """The graph's inputs that have no default."""
    known = {one.name for one in graph.initializer}
    return [value for value in graph.input if value.name not in known]


def sizes(path: str | Path, graph: Any, dims: Mapping[str, int]) -> dict[str, list[int]]:
    """The shape of every input, dynamic dimensions from `dims`. Raises UsageError that names all
    which have no size there, and sizes for dimensions that do not exist."""
    shapes: dict[str, list[int]] = {}
    missing: dict[str, str] = {}
    named: set[str] = set()
    for value in inputs_of(graph):
        shape = []
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            name = dim.dim_param or f"{value.name}.{place}"
            if dim.HasField("dim_value") and dim.dim_value >= 0:  # -1 is what some write for open
                shape.append(dim.dim_value)
                continue
            named.add(name)
            if name not in dims:
                missing.setdefault(name, f"{name}: axis {place} of input {value.name}")
            shape.append(dims.get(name, 0))
        shapes[value.name] = shape
    unknown = sorted(set(dims) - named)
    if unknown:
        there = ", ".join(sorted(named)) or "none"
        raise UsageError(f"{path} has no dynamic dimension '{unknown[0]}'; it has {there}")
    if missing:
        options = " ".join(f"--dim {name}=8" for name in missing)
        raise UsageError(
            f"{path} has dynamic dimensions, and a step is compiled for fixed ones:\n  "
            + "\n  ".join(missing.values())
            + f"\n  give sizes, like {options}"
        )
    return shapes


def example_inputs(path: str | Path, dims: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Random inputs of a model's shapes: normal floats, integers that are rows where they are read
    as row numbers, else 0 or 1."""
    graph = read(path).graph
    from sqcompile.onnx.dtypes import TORCH_TYPES
    from sqcompile.onnx.importer import row_limits

    shapes, limits = sizes(path, graph, dims), row_limits(graph)
    drawn = []
    for value in inputs_of(graph):
        dtype = TORCH_TYPES[value.type.tensor_type.elem_type]
        shape = shapes[value.name]
        if dtype.is_floating_point:
            drawn.append(torch.randn(shape).to(dtype))
        else:
            drawn.append(torch.randint(limits.get(value.name, 2), shape).to(dtype))
    return tuple(drawn)
