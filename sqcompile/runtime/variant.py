"""One compiled form of a step: a binary for one mode, one set of shapes and dtypes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from sqcompile.errors import InputError
from sqcompile.runtime.executable import Executable
from sqcompile.runtime.signature import CallKey, Signature

if TYPE_CHECKING:
    from sqcompile.passes.pipeline import Stage


@dataclass
class Variant:
    """A binary with its signature, and, unless it was loaded, the graphs it came from."""

    key: CallKey
    signature: Signature
    executable: Executable
    forward: GraphModule | None = None
    backward: GraphModule | None = None
    stages: "list[Stage]" = field(default_factory=list)
    kernels: list[Any] = field(default_factory=list)

    @property
    def mode(self) -> str:
        """ "train" or "eval"."""
        return self.key.mode

    def run_forward(
        self, inputs: Sequence[Tensor], rng: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(outputs and buffer updates, saved values) of one forward; raises InputError naming
        the graph node when check_finite found a NaN or an infinity, and for a row number that a
        table does not have."""
        signature = self.signature
        self._check_indices(inputs)
        results = self.executable.function("forward")(*inputs, rng)
        results = self._checked(results, signature.exposed_forward)
        outputs, computed = _split(results, len(signature.outputs))
        places = {f"{port.kind}:{port.name}": i for i, port in enumerate(signature.inputs)}
        rest = iter(computed)
        saved = [inputs[places[n]] if n in places else next(rest) for n in signature.saved]
        return outputs, saved

    def run_backward(
        self, saved: Sequence[Tensor], rng: Tensor, tangents: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients, in the order of signature.gradients."""
        results = self.executable.function("backward")(*saved, rng, *tangents)
        return self._checked(results, self.signature.exposed_backward)

    def _check_indices(self, inputs: Sequence[Tensor]) -> None:
        if not self.signature.index_limits:
            return
        ports = [f"{port.kind}:{port.name}" for port in self.signature.inputs]
        for limit in self.signature.index_limits:
            given = inputs[ports.index(limit.port)]
            lowest, highest = (int(value) for value in given.aminmax())
            if lowest < limit.low or highest >= limit.high:
                wrong = lowest if lowest < limit.low else highest
                kind, _, name = limit.port.partition(":")
                raise InputError(
                    f"{limit.where}\n  {kind} {name} holds the row number {wrong}\n"
                    f"  this table takes {limit.low} .. {limit.high - 1}."
                )

    def _checked(self, results: list[Tensor], exposed: Sequence[str]) -> list[Tensor]:
        if not exposed:
            return results
        kept, watched = _split(results, len(results) - len(exposed))
        for what, absmax in zip(exposed, watched, strict=True):
            if not torch.isfinite(absmax).all():
                raise InputError(
                    f"{what}\n  holds a NaN or an infinity (check_finite is on)\n"
                    "  look at the input, the learning rate and the loss of this step."
                )
        return kept


def _split(values: list[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    return values[:count], values[count:]
