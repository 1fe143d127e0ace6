"""One compiled form of a step: a binary for one mode, one set of shapes and dtypes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from sqcompile.errors import InputError
from sqcompile.runtime.executable import Executable
from sqcompile.runtime.row_numbers import check_given, check_ranges
from sqcompile.runtime.signature import CallKey, Signature

if TYPE_CHECKING:
    from sqcompile.passes.pipeline import Stage


@dataclass(frozen=True)
class Graphs:
    """What a variant was made from: the two graphs as programs that PyTorch can run, the graph
    as text after every pass, and the kernels that the graphs' nodes call."""

    forward: GraphModule
    backward: GraphModule | None
    stages: "list[Stage]"
    kernels: list[Any]


@dataclass
class Variant:
    """A binary with its signature and the graphs it came from.

    graphs: None for a variant that was loaded from an artifact; for one whose code was found in
    the cache, the function that makes them, called when they are first asked for.
    """

    key: CallKey
    signature: Signature
    executable: Executable
    graphs: Graphs | Callable[[], Graphs] | None = None

    def _graphs(self) -> Graphs | None:
        if callable(self.graphs):
            self.graphs = self.graphs()
        return self.graphs

    @property
    def graphs_at_hand(self) -> bool:
        """Whether the graphs are there and need not be made first."""
        return isinstance(self.graphs, Graphs)

    @property
    def forward(self) -> GraphModule | None:
        """The forward graph, None when there are no graphs."""
        graphs = self._graphs()
        return None if graphs is None else graphs.forward

    @property
    def backward(self) -> GraphModule | None:
        """The backward graph, None when there is none."""
        graphs = self._graphs()
        return None if graphs is None else graphs.backward

    @property
    def stages(self) -> "list[Stage]":
        """The graph after every pass; empty when there are no graphs."""
        graphs = self._graphs()
        return [] if graphs is None else graphs.stages

    @property
    def kernels(self) -> list[Any]:
        """A record of every kernel; empty when there are no graphs."""
        graphs = self._graphs()
        return [] if graphs is None else graphs.kernels

    @property
    def mode(self) -> str:
        """ "train" or "eval"."""
        return self.key.mode

    def run_forward(
        self, inputs: Sequence[Tensor], rng: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(outputs and buffer updates, saved values) of one forward; raises InputError naming
        the graph node when check_finite found a NaN or an infinity, and for a row number that a
        table does not have, given or computed."""
        signature = self.signature
        check_given(signature.index_limits, signature.inputs, inputs)
        results = self.executable.function("forward")(*inputs, _beside(rng, inputs))
        results, ranges = _split(results, len(results) - len(signature.range_limits))
        check_ranges(signature.range_limits, ranges)
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
        rng = _beside(rng, [*saved, *tangents])
        results = self.executable.function("backward")(*saved, rng, *tangents)
        return self._checked(results, self.signature.exposed_backward)

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


def _beside(rng: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The state of the draws on the device of the tensors: the one transfer of a step."""
    return rng.to(tensors[0].device, non_blocking=True) if tensors else rng


def _split(values: list[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    return values[:count], values[count:]
