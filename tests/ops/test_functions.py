"""Float functions against float64, on numbers of every exponent; what they give at the limits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sqcompile.ops import OPS

INF, NAN = float("inf"), float("nan")
LARGEST = torch.finfo(torch.float32).max


def function(name: str) -> Callable[..., Tensor]:
    return OPS[f"sq::{name}"].reference


def every_exponent() -> Tensor:
    """Some two million finite float32, evenly spaced by their bits, of both signs."""
    bits = torch.arange(0, 0x7F800000, 1999, dtype=torch.int32)
    return torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])


def units(got: Tensor, exact: Tensor) -> Tensor:
    """The error in units of the last place of the exact result, subnormal ones included."""
    exponent = torch.frexp(exact.abs().clamp(min=2.0**-126)).exponent.double() - 24
    return (got.double() - exact).abs() / 2.0**exponent


@pytest.mark.parametrize(
    ("name", "exact", "limit"),
    [
        ("exp", torch.exp, 1.0),
        ("expm1", torch.expm1, 4.0),
        ("log", torch.log, 1.0),
        ("erf", torch.erf, 6.0),
        ("tanh", torch.tanh, 6.0),
        ("sigmoid", torch.sigmoid, 3.0),
    ],
)
def test_close_to_float64(name: str, exact: Callable[..., Tensor], limit: float) -> None:
    dense = torch.linspace(-12, 12, 500_001)
    x = torch.cat([every_exponent(), dense])
    wanted = exact(x.double())
    there = wanted.abs() <= LARGEST
    got = function(name)(x)
    assert units(got[there], wanted[there]).max() < limit
    beyond = wanted.abs() > 1.0001 * LARGEST
    assert got[beyond].equal(wanted[beyond].float())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("exp", {-INF: 0.0, INF: INF, -0.0: 1.0, 1e-45: 1.0, -150.0: 0.0, 3e38: INF}),
        ("expm1", {-INF: -1.0, INF: INF, 0.0: 0.0, 1e-40: 1e-40}),
        ("log", {-0.0: -INF, 1e-45: -103.27893, INF: INF, 1.0: 0.0, -1.0: NAN, -INF: NAN}),
        ("erf", {-INF: -1.0, INF: 1.0, -0.0: -0.0, 5.0: 1.0}),
        ("tanh", {-INF: -1.0, INF: 1.0, -0.0: -0.0, 10.0: 1.0, 1e-40: 1e-40}),
        ("sigmoid", {-INF: 0.0, INF: 1.0, 0.0: 0.5, -200.0: 0.0}),
    ],
)
def test_limits(name: str, values: dict[float, float]) -> None:
    got = function(name)(torch.tensor(list(values)))
    wanted = torch.tensor(list(values.values()))
    assert torch.equal(got.isnan(), wanted.isnan())
    known = ~wanted.isnan()
    assert got[known].equal(wanted[known])
    if name in ("erf", "tanh"):
        assert torch.equal(got.signbit(), wanted.signbit())


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "erf", "tanh", "sigmoid"])
def test_not_a_number_stays(name: str) -> None:
    both = torch.tensor([0x7FC00000, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert function(name)(both).isnan().all()


def test_exp_of_the_order_that_is_written() -> None:
    """A scalar at a time, in numpy's float32: no vector library, no fused operation."""
    import numpy as np

    f = np.float32
    values = np.random.default_rng(0).normal(0, 20, 300).astype(f)
    for x in values:
        moved = f(x * f(1.4426950408889634)) + f(1.5 * 2**23)
        n = int(np.asarray(moved).view(np.int32)) - 0x4B400000
        r = f(f(x - f(f(n) * f(0.693359375))) - f(f(n) * f(-2.12194440e-4)))
        p = f(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
            p = f(f(p * r) + f(c))
        q = f(f(f(r * r) * p) + r)
        y = f(f(f(q + f(1)) * f(2.0 ** (n >> 1))) * f(2.0 ** (n - (n >> 1))))
        assert function("exp")(torch.tensor([float(x)])).item() == float(y)
