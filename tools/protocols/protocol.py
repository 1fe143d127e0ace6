"""What a training protocol is: a network, data in three splits, and how it is trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Batches (input, class indices), all of one size within a split.

    train gives one epoch's, in the order and with the augmentation of the generator's seed;
    recipes and schedules are chosen by `validation`; `test` is for reporting alone.
    """

    train: Callable[[int], Iterator[Batch]]
    steps: int
    validation: Sequence[Batch]
    test: Sequence[Batch]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the learning rate rises from 0 over the first `warmup` of all steps
    and falls to 0 along a cosine. `decay` is the weight decay of matrices and convolutions; vectors
    (biases, norms) have none."""

    epochs: int
    optimizer: str
    lr: float
    decay: float
    warmup: float


@dataclass(frozen=True)
class Protocol:
    """`load` reads the data, from a folder where the protocol needs one that pip does not bring."""

    title: str
    make_model: Callable[[], nn.Module]
    load: Callable[[Path | None], Data]
    schedule: Schedule
    seeds: int
