"""What is kept in memory between forward and backward, ours and PyTorch's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
                node.meta.get("module", ""),
                source_line(node),
                tuple(value.shape),
                str(value.dtype).removeprefix("torch."),
                value.numel() * value.element_size(),
                f"{of}, {bits} bit" if of else "",
            )
        )
    return found


def eager_saved_bytes(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> int:
    """Bytes that eager PyTorch keeps for backward after one forward of `model`.

    Storages are counted once, without those of parameters and buffers, like `saved_tensors`.
    Running statistics and the random state are put back.
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters()]}
    held |= {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed storage's address could come back
        return tensor

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output = model(*args, **(kwargs or {}))
    del output
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return sum(storages.values())
