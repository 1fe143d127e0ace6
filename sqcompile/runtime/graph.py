"""One graph of torch.compile, compiled: called with parameters, buffers and inputs as Dynamo
passes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sqcompile._torch_compat import Port
from sqcompile.aliases import Outputs
from sqcompile.runtime.binding import call
from sqcompile.runtime.clocks import clock_of
from sqcompile.runtime.variant import Variant


class CompiledGraph:
    """graph(*inputs) -> tuple of outputs.

    ports: what every input is; outputs: how they are made from the variant's results. Dynamo may
    run one graph for several models of a class: nothing of a model is kept here.
    """

    def __init__(
        self, variant: Variant, ports: Sequence[Port], outputs: Outputs, seed: int
    ) -> None:
        self.variant = variant
        self._outputs = outputs
        self._seed = seed
        places = {(port.kind, port.name): place for place, port in enumerate(ports)}
        self._read = [places[port.kind, port.name] for port in variant.signature.inputs]
        self._parameters = [place for place, port in enumerate(ports) if port.kind == "param"]
        self._inputs = [place for place, port in enumerate(ports) if port.kind == "input"]
        changed = [port for port in variant.signature.outputs if port.kind == "mutation"]
        self._written = {(port.wrt, port.name): places[port.wrt, port.name] for port in changed}

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        """Run forward; gradients flow through autograd where they are wanted."""
        # What autograd saves must not be what is written.
        kept = set(self._written.values())
        values = [args[place].clone() if place in kept else args[place] for place in self._read]
        written = {name: args[place] for name, place in self._written.items()}
        results = call(self.variant, values, self._rng(args), written)
        return self._outputs.of(args, results)

    def _rng(self, args: Sequence[Any]) -> Tensor:
        parameters = [args[place] for place in self._parameters]
        clock = clock_of(parameters, self._seed)
        if not (self.variant.signature.gradients and torch.is_grad_enabled()):
            return clock.peek()
        inputs = [args[place] for place in self._inputs]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        return clock.tick(parameters, tensors, id(self))
