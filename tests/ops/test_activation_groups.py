"""ShiftQuant of activations: grids in float32 scalars, products against float64 autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from sqcompile.ops.conv import conv_fprop, conv_wgrad
from sqcompile.ops.norm import l1_batch_norm
from sqcompile.ops.norm_fused import l1_batch_norm_relu_quantize
from sqcompile.ops.norm_residual import l1_batch_norm_add_relu
from sqcompile.ops.product import dequantize, shift_matmul
from sqcompile.ops.quantize import (
    TINY,
    absmax,
    clip_range,
    group_exponent,
    group_scale,
    limits,
    quant_scale,
    quantize,
)

ULP = 2.0**-24
F32 = np.float32


def spread(*shape: int, seed: int, signed: bool = False) -> torch.Tensor:
    """Values whose channels, the last axis, spread over several octaves."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (x if signed else x.relu()) * 2.0 ** -(torch.arange(shape[-1]) % 5)


def grouped(
    x: torch.Tensor, bits: int, signed: bool, groups: int, share: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(integers, exponent, range) as the graphs have them."""
    every = list(range(x.dim()))
    channel = absmax(x, None, every[:-1])
    r = clip_range(absmax(channel, None, every), share)
    exponent = group_exponent(channel, groups)
    return quantize(x, r, bits, signed, exponent), exponent, r


@given(st.integers(2, 8), st.booleans(), st.integers(1, 8), st.integers(0, 99))
def test_quantize_and_scales_in_float32_scalars(
    bits: int, signed: bool, groups: int, seed: int
) -> None:
    x = spread(3, 7, seed=seed, signed=signed)
    q, exponent, r = grouped(x, bits, signed, groups, 0.6)
    low, high = limits(bits, signed)
    steps, worth = F32(high) / F32(r.item()), F32(r.item()) / F32(high)
    for (row, column), value in np.ndenumerate(x.numpy()):
        power = F32(2.0 ** int(exponent[0, column]))
        assert int(q[row, column]) == int(np.clip(np.rint(value * (steps * power)), low, high))
    assert group_scale(r, exponent, bits, signed).tolist() == [
        [worth / F32(2.0 ** int(e)) for e in exponent[0]]
    ]


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_a_channel_has_the_steps_of_its_group(groups: int) -> None:
    x = spread(64, 9, seed=1)
    q, exponent, r = grouped(x, 4, False, groups)
    scale = group_scale(r, exponent, 4, False)
    error = (x.double() - q.double() * scale.double()).abs()
    # in a channel's own range: the absmax of its group holds it
    assert bool((error <= scale * (0.5 + 2**-14)).all())
    # a product that shifts sees the same values
    shifted = q.double() * 2.0 ** (groups - 1 - exponent.double())
    assert shifted.mul(quant_scale(r, 4, False, groups)).equal(q.double() * scale.double())


@given(st.integers(2, 6), st.booleans(), st.integers(2, 3), st.integers(0, 99))
def test_integers_that_carry_their_shifts(bits: int, signed: bool, groups: int, seed: int) -> None:
    x = spread(4, 7, seed=seed, signed=signed)
    q, exponent, r = grouped(x, bits, signed, groups)
    shifted = quantize(x, r, bits, signed, exponent, groups)
    assert shifted.dtype == q.dtype
    assert shifted.int().equal(q.int() * 2 ** (groups - 1 - exponent.int()))


def test_below_tiny_integers_are_zero_and_scales_one() -> None:
    x = torch.full((3, 4), TINY * 0.9)
    q, exponent, r = grouped(x, 4, True, 3)
    assert not q.any()
    assert group_scale(r, exponent, 4, True).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("groups", [2, 3, 4])
def test_linear_products_are_those_of_the_dequantised_activation(signed: bool, groups: int) -> None:
    x, w = spread(11, 13, seed=2, signed=signed), torch.randint(-7, 8, (5, 13)).to(torch.int8)
    q, exponent, r = grouped(x, 4, signed, groups, 0.7)
    x64 = q.double() * group_scale(r, exponent, 4, signed).double()
    w64 = w.double().requires_grad_()
    acc = shift_matmul(q, w, exponent, groups, False, True, 0)
    y = dequantize(acc, [quant_scale(r, 4, signed, groups)], None).double()
    expected = x64 @ w64.T
    assert bool(((y - expected).abs() <= 2 * ULP * expected.abs()).all())
    g = torch.randint(-7, 8, (11, 5)).to(torch.int8)
    expected.backward(g.double())
    acc = shift_matmul(g, q, None, 1, True, False, 0)
    dw = dequantize(acc, [group_scale(r, exponent, 4, signed)], None).double()
    assert bool(((dw - w64.grad).abs() <= 2 * ULP * w64.grad.abs()).all())


@pytest.mark.parametrize(("conv_groups", "width"), [(1, 6), (2, 3), (6, 1)])
def test_convolutions_are_those_of_the_dequantised_activation(conv_groups: int, width: int) -> None:
    window = ([2, 1], [1, 1], [1, 1], conv_groups)
    x, w = spread(2, 7, 5, 6, seed=3), torch.randint(-7, 8, (12, width, 3, 3)).to(torch.int8)
    q, exponent, r = grouped(x, 4, False, 3)
    scale = group_scale(r, exponent, 4, False)
    x64, w64 = q.double() * scale.double(), w.double().requires_grad_()
    acc = conv_fprop(q, w, *window, 0, exponent, 3)
    y = dequantize(acc, [quant_scale(r, 4, False, 3)], None).double()
    expected = conv2d(x64.permute(0, 3, 1, 2), w64, None, *window).permute(0, 2, 3, 1)
    assert bool(((y - expected).abs() <= 2 * ULP * expected.abs()).all())
    g = torch.randint(-7, 8, y.shape).to(torch.int8)
    expected.backward(g.double())
    acc = conv_wgrad(g, q, None, 1, list(w.shape), *window, 0)
    per_input = scale.view(conv_groups, width).repeat_interleave(12 // conv_groups, 0)
    dw = dequantize(acc, [per_input.view(12, width, 1, 1)], None).double()
    assert bool(((dw - w64.grad).abs() <= 2 * ULP * w64.grad.abs()).all())


@pytest.mark.parametrize("groups", [1, 3])
def test_batch_norms_measure_their_channels(groups: int) -> None:
    x = (spread(4, 9, 6, seed=4, signed=True) * 1000).to(torch.int32)
    gamma = 2.0 ** -torch.arange(6)
    rest = (torch.full((6,), 0.1), None, gamma, None, 1e-5, 4, 4, 0.3352)
    y = torch.relu(l1_batch_norm(x, *rest)[0])
    largest = y.amax((0, 1))
    expected = [min(groups - 1, int(np.log2(float(largest.max() / v)))) for v in largest]
    fused = l1_batch_norm_relu_quantize(x, *rest, True, 4, False, None, 0.5, groups)
    added = l1_batch_norm_add_relu(x, *rest, torch.zeros_like(y), True, None, groups)
    assert fused[1].item() == 0.5 * largest.max() and added[1].item() == largest.max()
    if groups == 1:
        assert fused[7].shape == added[7].shape == (0,)
        assert fused[0].equal(quantize(y, fused[1], 4, False))
        return
    assert fused[7].tolist() == added[7].tolist() == [[expected]]
    assert len(set(expected)) == groups
    exponent = torch.tensor([[expected]], dtype=torch.int8)
    assert fused[0].equal(quantize(y, fused[1], 4, False, exponent))
