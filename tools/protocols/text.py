"""A text as bytes, in windows: every byte is predicted from those before it."""

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor

from protocols.protocol import Batch, Data

NAME = "tinyshakespeare.txt"
WANTED = f"""\
this protocol trains on {NAME} (1.1 MB; input.txt of "tinyshakespeare" in
  https://github.com/karpathy/char-rnn): give a folder that holds it with --data"""


def windows(folder: Path | None, *, context: int, batch: int, steps: int) -> Data:
    """`steps` batches of random windows an epoch, from the first nine tenths of the text; the first
    half of the rest validates, the second tests."""
    if folder is None or not (folder / NAME).exists():
        raise click.UsageError(WANTED)
    text = torch.frombuffer(bytearray((folder / NAME).read_bytes()), dtype=torch.uint8)
    first, second = len(text) * 18 // 20, len(text) * 19 // 20
    train = text[:first]

    def epoch(seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            starts = torch.randint(len(train) - context, (batch,), generator=generator)
            yield _rows(train, starts, context)

    return Data(
        epoch,
        steps,
        _in_order(text[first:second], context, batch),
        _in_order(text[second:], context, batch),
    )


def _rows(text: Tensor, starts: Tensor, context: int) -> Batch:
    rows = text[starts[:, None] + torch.arange(context + 1)].long()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def _in_order(text: Tensor, context: int, batch: int) -> list[Batch]:
    starts = torch.arange(0, len(text) - context, context)
    return [_rows(text, one, context) for one in starts.split(batch) if len(one) == batch]
