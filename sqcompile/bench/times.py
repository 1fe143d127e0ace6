"""Times of one thing that was run often: percentiles, and how far its medians wander."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

BLOCKS = 5
"""Parts of consecutive runs whose medians give a time's range."""


@dataclass(frozen=True)
class Times:
    """Median, 10th and 90th percentile over `runs` repetitions, in milliseconds. low_ms, high_ms:
    the smallest and the largest median of five blocks of consecutive runs: what the median is worth
    on this machine, which slows down for seconds when others use it."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    low_ms: float
    high_ms: float

    @staticmethod
    def of(seconds: Sequence[float]) -> "Times":
        """From single measurements, in the order in which they were made."""
        values = torch.tensor(seconds, dtype=torch.float64) * 1e3
        p10, middle, p90 = torch.quantile(
            values, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        ).tolist()
        blocks = [median(block.tolist()) for block in values.tensor_split(BLOCKS) if len(block)]
        return Times(middle, p10, p90, len(seconds), min(blocks), max(blocks))
