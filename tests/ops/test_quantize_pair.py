"""The pair of quantisers of one gradient: shared draws, and each result unbiased by itself."""

import torch

from sqcompile.ops.philox import draws
from sqcompile.ops.quantize_pair import shift_quantize_pair

SEEDS = 4096
RNG = torch.tensor([7, 1, 0, 0])


def gradient() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of very different sizes, and a weight's scales."""
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(2, 3, 4, generator=generator)
    return g * 2.0 ** -torch.arange(4.0), torch.rand(1, 1, 4, generator=generator) + 0.1


def step_of(e: torch.Tensor, scale: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """The worth of one integer of every element, float64, with 4 groups."""
    return scale.double() * 2.0 ** (3 - e.double()) * outer.double()


def test_both_round_an_element_by_the_same_draw() -> None:
    g, factor = gradient()
    q, e, scale, outer, _, k, d, size, free, _ = shift_quantize_pair(g, factor, RNG, True, 4, 4, 9)
    u = (draws(RNG, g.numel(), 9).view(g.shape).double() + 0.5) / 2**16
    for result, x, step in (
        (q, g * factor, step_of(e, scale, outer)),
        (k, g, step_of(d, size, free)),
    ):
        t = x.double() / step
        fraction = t - t.floor()
        safe = (fraction - (1 - u)).abs() > 1e-5  # where float32 cannot round to the other side
        assert int(safe.sum()) > 20
        assert torch.equal((t.floor() + (fraction >= 1 - u)).clamp(-7, 7)[safe], result[safe] + 0.0)


def test_the_mean_of_each_over_4096_seeds_is_its_gradient() -> None:
    g, factor = gradient()
    totals = [torch.zeros(g.shape, dtype=torch.float64) for _ in range(2)]
    for seed in range(SEEDS):
        rng = torch.tensor([seed, 1, 0, 0])
        found = shift_quantize_pair.reference(g, factor, rng, True, 4, 4, 21)
        for total, q in zip(totals, (found[0], found[5]), strict=True):
            total += q
    steps = step_of(*found[1:4]), step_of(*found[6:9])
    for total, x, step in zip(totals, (g * factor, g), steps, strict=True):
        t = x.double() / step
        fraction = t - t.floor()
        deviation = (fraction * (1 - fraction)).sqrt() / SEEDS**0.5
        assert bool(((total / SEEDS - t).abs() <= 5 * deviation + 1e-5).all())
