"""Runs of several recipes and seeds as means, spreads and gaps."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

FP32 = "fp32"


def summarise(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """By recipe and split: every seed's accuracy, their mean and deviation, the mean loss, and the
    gaps in percentage points below the fp32 run of the same seed, with the mean's standard error.
    `training_loss` is every seed's mean loss over the last epoch."""
    summary: dict[str, Any] = {}
    for name, runs in found.items():
        summary[name] = {
            "seeds": len(runs),
            "seconds": mean(run["seconds"] for run in runs),
            "saved_bytes": runs[0]["saved_bytes"],
            "training_loss": [run["losses"][-1] for run in runs],
        }
        for split in ("validation", "test"):
            values = [run[split]["accuracy"] for run in runs]
            gaps = [
                100 * (base[split]["accuracy"] - run[split]["accuracy"])
                for base, run in zip(found[FP32], runs, strict=True)
            ]
            summary[name][split] = {
                "accuracy": values,
                "mean": mean(values),
                "sd": spread(values),
                "loss": mean(run[split]["loss"] for run in runs),
                "gaps": gaps,
                "gap": mean(gaps),
                "gap_sd": spread(gaps),
                "gap_se": spread(gaps) / sqrt(len(gaps)),
            }
    return summary


def spread(values: Sequence[float]) -> float:
    """The sample's standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line for every recipe."""
    for name, run in summary.items():
        told = f"{name:14}{run['seeds']:3} seeds"
        for split in ("validation", "test"):
            one = run[split]
            told += f"  {split} {100 * one['mean']:.2f} % (sd {100 * one['sd']:.2f})"
            if name != FP32:
                told += f", gap {one['gap']:+.2f} +- {one['gap_se']:.2f}"
        yield f"{told}  {run['seconds']:.0f} s, {run['saved_bytes'] / 1e6:.1f} MB saved"
