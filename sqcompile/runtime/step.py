"""The compiled training step as an nn.Module."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from sqcompile import _torch_compat as compat
from sqcompile.errors import InputError
from sqcompile.recipe import Recipe
from sqcompile.runtime.binding import call
from sqcompile.runtime.clock import Clock
from sqcompile.runtime.machines import device_type
from sqcompile.runtime.signature import CallKey, call_key
from sqcompile.runtime.variant import Variant

Compiler = Callable[[nn.Module, CallKey, Sequence[Any], Mapping[str, Any]], Variant]


class CompiledStep(nn.Module):
    """Call it like the model; `.backward()` on what it returns runs integer kernels.

    Its parameters, buffers and submodules are the model's own objects and its state_dict() has
    exactly the model's keys. A call with other shapes, with other modules in training mode or with
    other frozen parameters compiles once more and is kept. Same (seed, step, inputs, parameters):
    same bits.
    """

    def __init__(
        self,
        model: nn.Module,
        compiler: Compiler | None,
        *,
        recipe: Recipe,
        target: str,
        seed: int = 0,
    ) -> None:
        mode = model.training
        object.__setattr__(self, "_model", model)
        super().__init__()
        self._parameters = model._parameters
        self._buffers = model._buffers
        self._modules = model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = mode
        self._compiler = compiler
        self._clock = Clock(seed)
        self._by_key: dict[CallKey, Variant] = {}
        self.recipe = recipe
        self.target = target

    @property
    def training(self) -> bool:
        """The model's own flag, so that model.eval() and step.eval() are one thing."""
        mode: bool = self.model.training
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.training = mode

    def train(self, mode: bool = True) -> "CompiledStep":
        """Switch between training and evaluation, by the model's own train()."""
        self.model.train(mode)
        return self

    @property
    def model(self) -> nn.Module:
        """The module whose parameters these are (a bare tree of them after `load`)."""
        model: nn.Module = self.__dict__["_model"]
        return model

    @property
    def variants(self) -> list[Variant]:
        """Every compiled form so far, the first call's first."""
        return list(self._by_key.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward in integers.

        Raises InputError for tensors that cannot be taken, CaptureError or UnsupportedOpError
        when a new shape or mode has to be compiled and cannot be.
        """
        leaves, spec = compat.tree_flatten((args, kwargs))
        variant = self._by_key.get(key := self._key(leaves, spec))
        if variant is None:
            variant = self._add(key, args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return self._run(variant, self._values(variant, leaves), tensors)

    def prepare(self, *args: Any, **kwargs: Any) -> Variant:
        """Compile for these arguments in the current mode without running; returns the variant."""
        leaves, spec = compat.tree_flatten((args, kwargs))
        key = self._key(leaves, spec)
        return self._by_key.get(key) or self._add(key, args, kwargs)

    def add_variant(self, variant: Variant) -> None:
        """Take in a variant that was compiled elsewhere (what `load` does)."""
        self._by_key[variant.key] = variant

    def training_state(self) -> dict[str, int]:
        """Seed, step and micro-step of the next training forward, to resume bit for bit."""
        return self._clock.state(self.parameters())

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a training_state(); raises UsageError when it is not one."""
        self._clock.load(dict(state))

    def save(self, directory: str, *, model_file: str | None = None) -> None:
        """Write the artifact: see sqcompile.runtime.artifact.save."""
        from sqcompile.runtime.artifact import save

        save(self, directory, model_file=model_file)

    def _repr_html_(self) -> str:
        """The step in a notebook."""
        from sqcompile.report.notebook import step_html

        return step_html(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledStep":
        """A step of its own on a copy of the model (what weight averaging takes); code is shared,
        the draws continue from the same state."""
        model = deepcopy(self.model, memo)
        step = CompiledStep(model, self._compiler, recipe=self.recipe, target=self.target)
        step.load_training_state(self.training_state())
        step._by_key.update(self._by_key)
        memo[id(self)] = step
        return step

    def __getstate__(self) -> dict[str, Any]:
        """Pickling is refused: a pickle would be run when it is read."""
        raise TypeError(
            "a compiled step holds native code and cannot be pickled: use step.save(directory) "
            "and sqcompile.load(directory), or step.state_dict() for the weights alone"
        )

    def values_of(self, variant: Variant, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The tensors that a variant's forward reads for these arguments, in its order."""
        leaves, _ = compat.tree_flatten((tuple(args), dict(kwargs)))
        return self._values(variant, leaves)

    def _key(self, leaves: Sequence[Any], spec: object) -> CallKey:
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                check_input(leaf, self.target)
        training = self.training
        gradients = torch.is_grad_enabled() or training
        frozen, switched, shared = _particulars(self.model, leaves)
        mode = "train" if training else "eval"
        return call_key(mode, gradients, leaves, spec, frozen, switched, shared)

    def _add(self, key: CallKey, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Variant:
        if self._compiler is None:
            known = "\n".join(f"  {variant.key.describe()}" for variant in self.variants)
            remedy = "compile the model with inputs of this shape and mode and save it again."
            if key.without_gradients() in self._by_key:
                remedy = "call it under torch.no_grad(): it was compiled without gradients."
            raise InputError(
                f"this artifact has no code for: {key.describe()}\nit has:\n{known}\n{remedy}"
            )
        self._by_key[key] = variant = self._compiler(self.model, key, args, kwargs)
        return variant

    def _values(self, variant: Variant, leaves: Sequence[Any]) -> list[Tensor]:
        sources: dict[str, dict[str, Any]] = {
            "param": dict(self.named_parameters(remove_duplicate=False)),
            "buffer": dict(self.named_buffers(remove_duplicate=False)),
            "input": {str(index): leaf for index, leaf in enumerate(leaves)},
        }
        return [sources[port.kind][port.name] for port in variant.signature.inputs]

    def _run(self, variant: Variant, values: list[Tensor], given: list[Tensor]) -> Any:
        key = variant.key
        counts = key.mode == "train" or key.switched  # dropout alone may train
        tick, peek = self._clock.tick, self._clock.peek
        rng = tick(self.parameters(), given) if counts else peek()
        buffers = self.named_buffers(remove_duplicate=False)
        return call(variant, values, rng, {("buffer", name): value for name, value in buffers})


def _particulars(model: nn.Module, leaves: Sequence[Any]) -> tuple[list[str], list[str], list[str]]:
    """`frozen`, `switched` and `shared` of a CallKey."""
    first = {id(leaf): str(at) for at, leaf in reversed(list(enumerate(leaves)))}
    frozen, switched = [], []
    for path, module in _modules(model):
        if module.training != model.training:
            switched.append(path.removesuffix("."))
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                frozen.append(path + name)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if id(tensor) in first:
                first[id(tensor)] = path + name
    shared = [
        f"{at} is {first[id(leaf)]}"
        for at, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and first[id(leaf)] != str(at)
    ]
    return frozen, switched, shared


def _modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it, with "" and "a.b." as paths; one that stands in two places comes
    twice. Every call walks here, so it does less than named_modules()."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{path}{name}.")


def check_input(tensor: Tensor, target: str = "cpu") -> None:
    """Raise InputError for an input that a compiled step cannot take. A step for another device
    is compiled with inputs on the CPU, too: machines that compile may not have the device."""
    described = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    device = device_type(target)
    if tensor.device.type not in ("cpu", device):
        raise InputError(
            f"an input {described} is on {tensor.device}; target {target} takes {device} tensors"
        )
    if tensor.numel() == 0:
        raise InputError(f"an input {described} is empty; leave out empty batches")
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        raise InputError(
            f"an input is {described}; compiled steps read float32: call .float() on it"
        )
