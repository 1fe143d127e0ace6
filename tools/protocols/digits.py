"""scikit-learn's handwritten digits: 1797 grey images of 8x8, ten classes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from protocols.images import cut
from protocols.protocol import Batch, Data

TRAIN, VALIDATION, BATCH = 896, 180, 64


def digits(folder: Path | None) -> Data:
    """The first 896 images train, the next 180 validate, and the last 720, by other writers, test.
    They come with scikit-learn: no folder is read."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)

    def epoch(seed: int) -> Iterator[Batch]:
        order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(BATCH):
            yield x[rows], y[rows]

    middle, end = slice(TRAIN, TRAIN + VALIDATION), slice(-720, None)
    return Data(
        epoch,
        TRAIN // BATCH,
        cut(x[middle], y[middle], VALIDATION),
        cut(x[end], y[end], VALIDATION),
    )
