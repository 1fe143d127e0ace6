"""What is kept in memory between forward and backward, ours and PyTorch's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sqcompile import _torch_compat as compat
from sqcompile.passes.printing import source_line

if TYPE_CHECKING:
    from sqcompile.runtime.variant import Variant


@dataclass(frozen=True)
class Saved:
    """One tensor that forward keeps for backward; `of` says of what it is the packed form."""

    name: str
    module: str
    line: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    of: str

    def to_json(self) -> dict[str, Any]:
        """The tensor as JSON-able data."""
        return {**vars(self), "shape": list(self.shape)}


def saved_tensors(variant: "Variant") -> list[Saved]:
    """What the compiled step keeps, in backward's order.

    Parameters and buffers are left out: they are held anyway. An input of the model is counted.
    """
    assert variant.backward is not None
    found = []
    placeholders = variant.backward.graph.find_nodes(op="placeholder")
    for name, node in zip(variant.signature.saved, placeholders, strict=False):
        if name.startswith(("param:", "buffer:")):
            continue
        value = node.meta["val"]
        of, bits = node.meta.get("saves", ("", 0))
        found.append(
            Saved(
                name,
                node.meta.get("module") or compat.module_path(node),
                source_line(node),
                tuple(value.shape),
                str(value.dtype).removeprefix("torch."),
                value.numel() * value.element_size(),
                f"{of}, {bits} bit" if of else "",
            )
        )
    return found


def saved_by_layer(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Bytes that one forward of a module keeps for backward, by the path of the submodule that
    ran when they were saved; measured with autograd's hooks, so for a compiled step too (which
    runs as a whole: all under "").

    Storages are counted once, where they are first saved, without those of parameters and
    buffers, like `saved_tensors`. Running statistics and the random state are put back.
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters()]}
    held |= {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    running = [""]
    layers: dict[str, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            held.add(storage.data_ptr())
            layers[running[-1]] = layers.get(running[-1], 0) + storage.nbytes()
            alive.append(tensor)  # a freed storage's address could come back
        return tensor

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with (
        _named_while_running(model, running),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output = model(*args, **(kwargs or {}))
    del output
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return layers


@contextmanager
def _named_while_running(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the path of the submodule that runs as the last element of `running`, in this block."""
    hooks = []
    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(lambda *_, p=path: running.append(p)))
            hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def eager_saved_bytes(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Bytes that a module keeps for backward after one forward; see `saved_by_layer`."""
    return sum(saved_by_layer(model, args, kwargs).values())


def layers(tensors: Sequence[Saved], eager: Mapping[str, int] | None) -> list[dict[str, Any]]:
    """Bytes by module, ours and fp32 PyTorch's (None where they are not known), in the order in
    which ours are saved; 0 where one keeps nothing."""
    ours: dict[str, int] = {}
    for tensor in tensors:
        ours[tensor.module] = ours.get(tensor.module, 0) + tensor.bytes
    names = [*ours, *(name for name in eager or {} if name not in ours)]
    return [
        {
            "module": name,
            "bytes": ours.get(name, 0),
            "fp32_eager_bytes": None if eager is None else eager.get(name, 0),
        }
        for name in names
    ]
