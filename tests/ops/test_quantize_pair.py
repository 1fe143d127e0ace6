"""The pair of quantisers of one gradient: shared first carries, each result unbiased by itself."""

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


def test_both_begin_with_the_same_carry_and_carry_their_own_errors() -> None:
    """In real arithmetic the integers of the first n rows of a run add up to floor(u + the sum of
    their t): each step of a column's running sum is taken where the sum passes a number less u."""
    g, factor = gradient()
    q, e, scale, outer, _, k, d, size, free, _ = shift_quantize_pair(g, factor, RNG, True, 4, 4, 9)
    u = (draws(RNG, 4, 9).double() + 0.5) / 2**16
    for result, x, step in (
        (q, g * factor, step_of(e, scale, outer)),
        (k, g, step_of(d, size, free)),
    ):
        total = (x.double() / step).view(6, 4).cumsum(0) + u
        safe = (total - total.round()).abs() > 1e-4  # where float32 cannot round to the other side
        assert int(safe.sum()) > 20
        assert torch.equal(total.floor()[safe], result.view(6, 4).double().cumsum(0)[safe])


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
