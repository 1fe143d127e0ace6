"""Does the compiled step compute the bits that the eager reference graph computes?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from sqcompile.errors import SqError, UsageError, VerificationError
from sqcompile.runtime import machines
from sqcompile.runtime.step import CompiledStep
from sqcompile.runtime.variant import Variant

EMULATOR = "ptx-emulator"
"""What `executed_by` says of kernels that ran without a GPU."""


@dataclass(frozen=True)
class Row:
    """One compared value: what it is ("output", "running statistic", "saved", "gradient"), its
    name, whether all bits agree, and if not, how many elements differ and by how much at most."""

    kind: str
    name: str
    equal: bool
    differing: int
    largest: float


@dataclass(frozen=True)
class VerifyResult:
    """Rows of every forward output, running statistic, saved value and gradient."""

    mode: str
    rows: tuple[Row, ...]

    @property
    def equal(self) -> bool:
        """Whether every bit of every value agrees."""
        return all(row.equal for row in self.rows)

    def _repr_html_(self) -> str:
        """The result in a notebook."""
        from sqcompile.report.notebook import verification_html

        return verification_html(self)


def verify(
    step: CompiledStep,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> VerifyResult:
    """Run forward and backward through kernels and through the rewritten graph in eager PyTorch.

    Incoming gradients are normal draws of `seed`. Parameters and buffers are not changed. Raises
    UsageError for a loaded step, which has no graph to compare with.
    """
    variant = step.prepare(*args, **(kwargs or {}))
    if variant.forward is None:
        raise UsageError("a loaded artifact has no reference graph; verify when compiling")
    values = [value.detach().clone() for value in step.values_of(variant, args, kwargs or {})]
    generator = torch.Generator().manual_seed(seed)
    rng = torch.tensor([seed & 0xFFFFFFFF, 3, 1, 0])
    with torch.no_grad():
        outputs, saved = variant.run_forward(values, rng)
        expected = _reference(variant.forward, [*values, rng])
        rows = _forward_rows(variant, outputs, saved, values, expected)
        if variant.backward is not None:
            tangents = [
                torch.randn(node.meta["val"].shape, generator=generator).to(_device(values))
                for node in variant.backward.graph.find_nodes(op="placeholder")
                if _is_tangent(node)
            ]
            gradients = variant.run_backward(saved, rng, tangents)
            wanted = _reference(variant.backward, [*saved, rng, *tangents])
            names = [port.name for port in variant.signature.gradients]
            rows += _rows("gradient", names, gradients, wanted)
    return VerifyResult(variant.mode, tuple(rows))


def verify_on_target(step: CompiledStep, args: Sequence[Any]) -> tuple[list[VerifyResult], str]:
    """`verify` on what the step's target names -> the results and what executed the kernels.

    That is the CPU, or a GPU, to which the step is moved meanwhile. On a machine without one the
    kernels of every architecture run in the target's emulator, one result for each. Raises
    TargetUnavailableError when the emulator cannot run, VerificationError for a kernel that
    does what it must not, like reading outside its tensors.
    """
    device = machines.device_type(step.target)
    if device == "cpu" or machines.present(device):
        moved = [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]
        home = _device(list(step.parameters()))
        step.to(device)
        try:
            return [verify(step, moved)], machines.executor(step.target) or device
        finally:
            step.to(home)
    executable = step.prepare(*args).executable
    results = []
    for part in machines.emulated_parts(executable.binary):
        executable.emulate(part)
        try:
            result = verify(step, args)
        except SqError as error:
            if error.exit_code != SqError.exit_code:
                raise
            raise VerificationError(f"kernels for {part}: {error}") from error
        results.append(replace(result, mode=f"{result.mode}, {part}"))
    return results, EMULATOR


def _reference(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The graph's results, on the CPU wherever its inputs are."""
    return list(graph(*(value.cpu() for value in inputs)))


def _device(values: Sequence[Tensor]) -> torch.device:
    return values[0].device if values else torch.device("cpu")


def _is_tangent(node: torch.fx.Node) -> bool:
    port = node.meta.get("port")
    return port is not None and port.kind == "tangent"


def _forward_rows(
    variant: Variant,
    outputs: Sequence[Tensor],
    saved: Sequence[Tensor],
    inputs: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> list[Row]:
    ports = variant.signature.outputs
    kinds = {"output": "output", "mutation": "running statistic"}
    rows: list[Row] = []
    for port, actual, wanted in zip(ports, outputs, expected, strict=False):
        rows += _rows(kinds[port.kind], [port.name], [actual], [wanted])
    passed_on = {id(value) for value in inputs}
    computed = [
        (name, value)
        for name, value in zip(variant.signature.saved, saved, strict=True)
        if id(value) not in passed_on
    ]
    names = [name for name, _ in computed]
    rest = expected[len(ports) :][: len(computed)]
    return rows + _rows("saved", names, [value for _, value in computed], rest)


def _rows(
    kind: str, names: Sequence[str], actual: Sequence[Tensor], expected: Sequence[Tensor]
) -> list[Row]:
    return [_row(kind, name, a, e) for name, a, e in zip(names, actual, expected, strict=True)]


def _row(kind: str, name: str, actual: Tensor, expected: Tensor) -> Row:
    actual, expected = actual.cpu(), expected.contiguous()
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return Row(kind, name, False, expected.numel(), float("inf"))
    different = _bits(actual) != _bits(expected)
    count = int(different.sum())
    largest = 0.0
    if count:
        gap = actual.to(torch.float64) - expected.to(torch.float64)
        largest = float(gap[different].abs().max())
    return Row(kind, name, count == 0, count, largest)


def _bits(value: Tensor) -> Tensor:
    """float32 as int32, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return value.contiguous().view(torch.int32) if value.dtype == torch.float32 else value
