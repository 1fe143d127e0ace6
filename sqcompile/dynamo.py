"""torch.compile(model, backend="sqcompile", options={"recipe": "w4a4g4", ...}).

Dynamo hands over one graph for every piece of code that it can trace, with parameters and buffers
among its inputs. Each becomes a variant by the passes and kernels of `sqcompile.compile`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from sqcompile import _torch_compat as compat
from sqcompile.aliases import separate_aliases
from sqcompile.api import build_rewritten, rewrite_captured
from sqcompile.backends import targets
from sqcompile.backends.targets import Target
from sqcompile.capture import capture_graph
from sqcompile.errors import UsageError
from sqcompile.recipe import Recipe
from sqcompile.runtime.graph import CompiledGraph
from sqcompile.runtime.machines import device_type
from sqcompile.runtime.signature import call_key
from sqcompile.runtime.step import check_input


@dataclass(frozen=True)
class Options:
    """What torch.compile's `options` may hold: the keyword arguments of `sqcompile.compile`."""

    target: str | Target = "cpu"
    recipe: str | Recipe | Mapping[str, Any] = "w4a4g4"
    seed: int = 0
    check_finite: bool = False

    @staticmethod
    def of(given: Mapping[str, Any]) -> "Options":
        """From a dictionary; raises UsageError for a name that is not known or a wrong value."""
        known = list(Options.__dataclass_fields__)
        for name in given:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise UsageError(
                    f"backend sqcompile has no option '{name}'; {hint}options: {', '.join(known)}"
                )
        options = Options(**given)
        for name, kind in (("seed", int), ("check_finite", bool)):
            value = getattr(options, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UsageError(f"option {name} is {value!r}; it is of type {kind.__name__}")
        return options


def torch_backend(
    graph: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo to integers; what torch.compile calls, once for each.

    Shapes and numbers are constants: others compile once more. Raises what `sqcompile.compile`
    raises; torch.compile wraps it in BackendCompilerFailed, with the same text.
    """
    if mode is not None:
        raise UsageError(f"backend sqcompile has no mode '{mode}'; leave mode out, give options")
    if torch.is_autocast_enabled("cpu"):
        raise UsageError("autocast is on; leave it off: products are integers, the rest is float32")
    chosen = Options.of(options or {})
    target = targets.get(chosen.target) if isinstance(chosen.target, str) else chosen.target
    if device_type(target.name) != "cpu":
        raise UsageError(
            f"torch.compile with backend sqcompile runs on the CPU; for target {target.name} use "
            "sqcompile.compile"
        )
    recipe = Recipe.load(chosen.recipe)
    compat.specialize(graph)
    computed, outputs = separate_aliases(graph)
    compat.name_modules(computed)
    ports = compat.compiled_graph_ports(computed, example_inputs)
    _check(ports, example_inputs)
    gradients = torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in example_inputs
    )
    with torch.enable_grad():
        captured = capture_graph(computed, example_inputs, ports)
    if not any(port.kind in ("output", "mutation") for port in captured.outputs):
        return graph.forward  # views and constants: nothing to compile
    key = call_key("train" if gradients else "eval", gradients, example_inputs, "flat", ())
    variant = build_rewritten(
        rewrite_captured(captured, recipe, gradients=gradients),
        key,
        target=target,
        check_finite=chosen.check_finite or recipe.check_finite,
    )
    return CompiledGraph(variant, ports, outputs, chosen.seed)


def _check(ports: Sequence[compat.Port], values: Sequence[Any]) -> None:
    for port, value in zip(ports, values, strict=True):
        if isinstance(value, nn.Parameter) and (
            value.dtype != torch.float32 or value.device.type != "cpu"
        ):
            raise UsageError(
                f"parameter {port.name} is {value.dtype} on {value.device}; a compiled step "
                "keeps float32 master weights on the cpu: call model.float().cpu()"
            )
        if isinstance(value, Tensor) and port.kind == "input":
            check_input(value)
