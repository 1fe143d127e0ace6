"""The quantised gradient of a batch norm: the two results, over many seeds, are dx in float64."""

from math import pi, sqrt

import torch

from sqcompile.ops.norm_gradient import l1_batch_norm_backward_quantize
from sqcompile.ops.pack import pack_int4

SEEDS = 2048
STEP = 0.3352


def exact(g: torch.Tensor, k: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """dx by the formula of the rule, in float64, from the saved values themselves."""
    h, xhat = g.double(), (k.double() + 0.5) * STEP
    sign = xhat.sign()
    slope = sqrt(pi / 2) * (h * xhat).mean((0, 1))
    return factor.double() * (h - h.mean((0, 1)) - slope * (sign - sign.mean((0, 1))))


def test_both_results_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    g = torch.randint(-127, 128, (3, 4, 6), generator=generator).to(torch.int8)
    k = torch.randint(-8, 8, g.shape, generator=generator).to(torch.int8)
    scale, coefficient, gamma, weight = torch.rand(4, 6, generator=generator) + 0.1
    row = weight.view(1, 1, 6)
    totals = [torch.zeros(g.shape, dtype=torch.float64) for _ in range(2)]
    for seed in range(SEEDS):
        rng = torch.tensor([seed, 1, 0, 0])
        found = l1_batch_norm_backward_quantize.reference(
            g, scale, pack_int4.reference(k), coefficient, gamma, STEP, row, rng, True, 4, 4, 5
        )
        for total, q in zip(totals, (found[0], found[5]), strict=True):
            total += q
    dx = exact(g, k, gamma * scale * coefficient)
    for total, first, x in zip(totals, (1, 6), (dx * row, dx), strict=True):
        e, size, outer = (one.double() for one in found[first : first + 3])
        t = x / (size * 2.0 ** (3 - e) * outer)
        fraction = t - t.floor()
        deviation = (fraction * (1 - fraction)).clamp(min=1e-4).sqrt() / SEEDS**0.5
        assert bool(((total / SEEDS - t).abs() <= 5 * deviation + 1e-4).all())
    assert torch.allclose(found[10].double(), (g * (k + 0.5) * STEP).sum((0, 1)).double() * scale)
    assert torch.allclose(found[11].double(), g.double().sum((0, 1)) * scale)
