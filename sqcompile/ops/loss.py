"""The negative log likelihood of class indices, by row, and its gradient."""

import torch
from torch import Tensor

from sqcompile.ops.table import op


def _weight(x: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """The weight of every row: of its class, 0 where it is ignored."""
    if weight is None:
        own = torch.ones(target.shape, dtype=torch.float32)
    else:
        own = weight[target.clamp(0, len(weight) - 1)]
    return torch.where(target == ignored, 0.0, own)


@op("sq::nll_loss", doc="What every row's class costs: minus its log probability, weighted.")
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, ignored: int
) -> tuple[Tensor, Tensor]:
    """x float32 (rows, classes) of log probabilities, target int64 (rows), weight float32
    (classes) or None -> (losses, weights: float32 (rows)); both 0 where the target is `ignored`.

    A target that is no class counts as the nearest class, so that no memory beyond x is read.
    """
    own = _weight(x, target, weight, ignored)
    picked = x.gather(1, target.clamp(0, x.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where(target == ignored, 0.0, -picked * own), own


@nll_loss.meta
def _(x: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(target.shape), x.new_empty(target.shape)


@op("sq::nll_loss_backward", doc="The gradient of nll_loss.")
def nll_loss_backward(
    g: Tensor, target: Tensor, weight: Tensor | None, ignored: int, classes: int
) -> Tensor:
    """g float32 (rows), or of size 1 for all rows, target int64 (rows), weight float32 (classes)
    or None -> float32 (rows, classes): -g * weight at the row's class, 0 elsewhere and where the
    target is `ignored`."""
    own = _weight(g, target, weight, ignored)
    value = torch.where(target == ignored, 0.0, -g.reshape(-1) * own).unsqueeze(1)
    column = torch.arange(classes).unsqueeze(0)
    here = target.clamp(0, classes - 1).unsqueeze(1) == column
    return torch.where(here, value, 0.0)


@nll_loss_backward.meta
def _(g: Tensor, target: Tensor, weight: Tensor | None, ignored: int, classes: int) -> Tensor:
    return g.new_empty((*target.shape, classes))
