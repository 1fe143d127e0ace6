"""Where in training a step is: what the random draws depend on besides the seed."""

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from sqcompile import _torch_compat as compat
from sqcompile.errors import UsageError
from sqcompile.ops.philox import fold_seed

_FIELDS = ("seed", "step", "micro_step", "rank")
_SAMPLES = 32
"""Elements of a tensor that are compared as they stand, at least, where it has so many."""


class Clock:
    """(seed, step, micro_step, rank) of the next training forward.

    `step` advances when a parameter has changed since the last training forward, which any
    optimiser's step() does; `micro_step` counts the training forwards since then (gradient
    accumulation). A forward that autograd runs again inside backward (activation checkpointing)
    replays the draws of the forward whose inputs had the same contents: they may have been made
    again. Of several such forwards the last one is first, as backward goes.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank
        self._step = 0
        self._micro_step = 0
        self._seen: dict[int, int] = {}
        self._replays: dict[Hashable, list[int]] = {}

    def tick(
        self, parameters: Iterable[Tensor], inputs: Iterable[Tensor] = (), code: Hashable = None
    ) -> Tensor:
        """rng int64[4] for a training forward of `code` on `inputs`."""
        again, may_repeat = compat.in_backward(), compat.may_be_repeated()
        call = (code, *map(_contents, inputs)) if again or may_repeat else None
        if again and (past := self._replays.get(call)):
            past.insert(0, past.pop())
            return self._rng(self._step, past[0])
        self._advance(parameters)
        micro_step = self._micro_step
        if may_repeat:
            self._replays.setdefault(call, []).append(micro_step)
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


def _contents(tensor: Tensor) -> Hashable:
    """What tells a tensor from others of its size: a hash of all elements, which their order does
    not change, and some of them as they stand. On a GPU this waits for it."""
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(1, len(flat) // _SAMPLES)].contiguous().view(torch.uint8)
    return (
        tensor.dtype,
        tensor.shape,
        int(torch.hash_tensor(flat).view(torch.int64)),
        bytes(some.tolist()),
    )
