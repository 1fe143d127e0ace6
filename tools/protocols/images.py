"""CIFAR-10 as float images, and the augmentation that goes with it."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from protocols.protocol import Batch, Data

MEAN, DEVIATION = (0.4913, 0.4821, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, by channel."""
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in the binary version: its label, then three planes."""
WANTED = """\
{folder} holds no CIFAR-10.
  Give --data a folder with cifar-10-batches-bin/ (the "binary version" of
  https://www.cs.toronto.edu/~kriz/cifar.html), or with cifar10_train_jpeg.npz and
  cifar10_test_jpeg.npz (arrays data, offsets, labels: JPEG files one behind the other)."""


def cifar10(folder: Path | None, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 3, 32, 32) uint8 and labels (count,) int64 of split "train" or
    "test"."""
    if folder is None:
        raise click.UsageError("this protocol trains on CIFAR-10: give its folder with --data")
    archive, binary = folder / f"cifar10_{split}_jpeg.npz", folder / "cifar-10-batches-bin"
    if archive.exists():
        images, labels = _from_jpeg(archive, count)
    elif binary.is_dir():
        images, labels = _from_binary(binary, split, count)
    else:
        raise click.UsageError(WANTED.format(folder=folder))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _from_jpeg(path: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    held = np.load(path, allow_pickle=False)
    data, offsets = held["data"], held["offsets"][: count + 1]
    parts = (data[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False))
    images = np.stack([np.asarray(Image.open(BytesIO(part)).convert("RGB")) for part in parts])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), held["labels"][:count]


def _from_binary(
    folder: Path, split: str, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    if missing := [name for name in names if not (folder / name).exists()]:
        raise click.UsageError(f"{folder} lacks {', '.join(missing)}: unpack CIFAR-10 again")
    records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    records = records.reshape(-1, RECORD)[:count]
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0]


def normalised(images: Tensor, side: int) -> Tensor:
    """Images averaged to side x side, each channel with mean 0 and deviation 1."""
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
    return (F.avg_pool2d(images.float() / 255, 32 // side) - mean) / deviation


def augmented(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels both ways, zeros at its border, and every second
    one mirrored."""
    n, _, height, width = x.shape
    y0, x0 = (torch.randint(2 * shift + 1, (n, 1), generator=generator) for _ in range(2))
    rows, columns = y0 + torch.arange(height), x0 + torch.arange(width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = F.pad(x, (shift,) * 4).permute(0, 2, 3, 1)
    picked = images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def cut(x: Tensor, y: Tensor, size: int) -> list[Batch]:
    """Batches of one size; a rest is left out."""
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(y) - size + 1, size)]


def cifar10_splits(
    folder: Path | None, *, side: int, train: int, validation: int, batch: int, shift: int
) -> Data:
    """The first `train` training images, the `validation` behind them, and all test images."""
    images, y = cifar10(folder, "train", train + validation)
    x = normalised(images, side)
    test, test_labels = cifar10(folder, "test", 10_000)

    def epoch(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(train, generator=generator).split(batch):
            if len(rows) == batch:
                yield augmented(x[rows], shift, generator), y[rows]

    return Data(
        epoch,
        train // batch,
        cut(x[train:], y[train:], 250),
        cut(normalised(test, side), test_labels, 250),
    )
