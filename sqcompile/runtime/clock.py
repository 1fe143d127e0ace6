"""Where in training a step is: what the random draws depend on besides the seed."""

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from sqcompile import _torch_compat as compat
from sqcompile.errors import UsageError
from sqcompile.ops.philox import fold_seed

_FIELDS = ("seed", "step", "micro_step", "rank")


class Clock:
    """(seed, step, micro_step, rank) of the next training forward.

    `step` advances when a parameter has changed since the last training forward, which any
    optimiser's step() does; `micro_step` counts the training forwards since then (gradient
    accumulation). A forward that autograd runs again inside backward (activation checkpointing)
    replays the draws of the forward with the same inputs.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank
        self._step = 0
        self._micro_step = 0
        self._seen: dict[int, int] = {}
        self._replays: dict[Hashable, int] = {}

    def tick(self, parameters: Iterable[Tensor], call: Hashable) -> Tensor:
        """rng int64[4] for a training forward; `call` identifies its inputs."""
        if compat.in_backward() and call in self._replays:
            return self._rng(self._step, self._replays[call])
        self._advance(parameters)
        micro_step = self._micro_step
        self._replays[call] = micro_step
        self._micro_step += 1
        return self._rng(self._step, micro_step)

    def peek(self) -> Tensor:
        """rng int64[4] for a forward that does not count (evaluation)."""
        return self._rng(self._step, self._micro_step)

    def state(self, parameters: Iterable[Tensor]) -> dict[str, int]:
        """What the next training forward will use, as plain integers."""
        self._advance(parameters)
        return {
            "seed": self.seed,
            "step": self._step,
            "micro_step": self._micro_step,
            "rank": self.rank,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`; parameters may be loaded before or after.

        Raises UsageError when a field is missing, unknown or no non-negative integer.
        """
        if set(state) != set(_FIELDS):
            raise UsageError(f"a training state has the fields {', '.join(_FIELDS)}; got {state}")
        for name in _FIELDS:
            value = state[name]
            if not isinstance(value, int) or (name != "seed" and value < 0):
                raise UsageError(f"training state: {name} is {value!r}, not a whole number")
        self.seed, self.rank = state["seed"], state["rank"]
        self._step, self._micro_step = state["step"], state["micro_step"]
        self._seen = {}
        self._replays.clear()

    def _advance(self, parameters: Iterable[Tensor]) -> None:
        versions = {id(parameter): parameter._version for parameter in parameters}
        if any(self._seen.get(key, version) != version for key, version in versions.items()):
            self._step += 1
            self._micro_step = 0
            self._replays.clear()
        self._seen = versions

    def _rng(self, step: int, micro_step: int) -> Tensor:
        return torch.tensor([fold_seed(self.seed), step, micro_step, self.rank])
