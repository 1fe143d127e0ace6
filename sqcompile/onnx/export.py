"""export: a step's integer graph as an ONNX model file."""

import os
import tempfile
from pathlib import Path
from typing import Any

from sqcompile.errors import SqError, UnsupportedOpError, UsageError
from sqcompile.onnx.needs import onnx_package

GRAPHS = ("eval", "forward", "backward")
"""What can be exported of a step."""
LIMIT = 2**31 - 2**20
"""Bytes of one file: protocol buffers end at 2 GB. External data is not written."""


def export(
    source: Any, path: str | Path, *, graph: str = "eval", inline: bool = False
) -> dict[str, Any]:
    """Write a graph of `source`, a CompiledStep or the path of a run folder, to an ONNX file.

    graph: "eval", the forward of evaluation with weights as constants; "forward" of training, with
    parameters as inputs that have their values as default, and what backward needs as outputs;
    "backward". inline: write the ops of domain `sqcompile` as ONNX ops, not as functions of the
    model, for engines without functions. Returns what was written: path, bytes, numbers of
    nodes and functions, and names of inputs and outputs.

    While it runs, references of ops are traced in this process: `verify` and training through the
    references wait for it; compiled kernels do not care.

    Raises UsageError (no such graph), UnsupportedOpError with every op that has no exact form,
    TargetUnavailableError without the package onnx.
    """
    model = build(source, graph=graph, inline=inline)
    data = model.SerializeToString()
    _put(Path(path), data)
    return {
        "path": str(path),
        "graph": graph,
        "bytes": len(data),
        "nodes": len(model.graph.node),
        "functions": len(model.functions),
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
    }


def build(
    source: Any, *, graph: str = "eval", inline: bool = False, accumulators: bool = False
) -> Any:
    """The ONNX model that `export` writes. accumulators: every product's int32 or int64 sums are
    outputs too, named `NODE.accumulator`."""
    onnx = onnx_package()
    if graph not in GRAPHS:
        raise UsageError(f"there is no graph '{graph}'; take one of {', '.join(GRAPHS)}")
    from sqcompile.onnx import model as models
    from sqcompile.onnx.source import of_folder, of_step
    from sqcompile.runtime.step import CompiledStep

    found = of_step(source, graph) if isinstance(source, CompiledStep) else of_folder(source, graph)
    size = sum(tensor.nbytes for tensor in found.weights.values())
    if size > LIMIT:
        raise UsageError(
            f"the weights have {size / 2**30:.1f} GB, and an ONNX file holds 2 GB\n"
            "  external data is not supported: export a smaller model."
        )
    model, refused = models.model(found, accumulators=accumulators)
    if model is None:
        raise UnsupportedOpError(_report(refused))
    if inline and model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def _report(refused: list[Any]) -> str:
    count = f"{len(refused)} op" + ("s have" if len(refused) > 1 else " has")
    lines = [
        f"{one.line or '(no source line)'}\n  {one.op}: {one.why}"
        + (f"  (module: {one.module})" if one.module else "")
        for one in refused
    ]
    return f"{count} no exact ONNX form:\n" + "\n".join(lines)


def _put(path: Path, data: bytes) -> None:
    """Write a file aside and rename it, so that what was there stays until it is whole."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except OSError:
            os.unlink(aside)
            raise
    except OSError as error:
        raise SqError(
            f"cannot write {path}: {error.strerror or error}\n  what was there is unchanged."
        ) from error
