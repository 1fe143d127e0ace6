"""Integer convolutions against int64 sums over taps, and their gradients against autograd."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from sqcompile.ops import OPS
from sqcompile.ops.conv import conv_dgrad, conv_fprop, conv_wgrad, output_shape
from sqcompile.ops.product import dequantize
from sqcompile.ops.product_float import conv, conv_input_grad, conv_weight_grad
from sqcompile.ops.quantize import (
    absmax,
    group_exponent,
    outer_scale,
    quant_scale,
    quantize,
    quantize_stochastic,
)

SEEDS = 4096
ULP = 2.0**-24


@dataclass(frozen=True)
class Geometry:
    """One convolution: sizes of its tensors and how its window moves."""

    batch: int
    groups: int
    channels: int  # per group, as are the outputs
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def x(self) -> list[int]:
        return [self.batch, *self.size, self.groups * self.channels]

    @property
    def w(self) -> list[int]:
        return [self.groups * self.outputs, self.channels, *self.kernel]

    @property
    def window(self) -> list[Any]:
        return [list(self.stride), list(self.padding), list(self.dilation), self.groups]

    @property
    def g(self) -> list[int]:
        return output_shape(self.x, self.w, self.stride, self.padding, self.dilation)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


geometries = st.builds(
    Geometry, st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    pairs(1, 7), pairs(1, 3), pairs(1, 3), pairs(0, 2), pairs(1, 2),
)  # fmt: skip

CASES = [
    Geometry(2, 1, 3, 4, (6, 6), (3, 3), padding=(1, 1)),
    Geometry(2, 1, 3, 4, (7, 5), (3, 3), stride=(2, 2), padding=(1, 1)),
    Geometry(2, 2, 2, 3, (8, 7), (3, 2), stride=(2, 3), padding=(2, 0), dilation=(2, 3)),
    Geometry(3, 4, 1, 1, (5, 5), (3, 3), padding=(1, 1)),
    Geometry(2, 1, 5, 6, (4, 4), (1, 1)),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(shape: list[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape, generator=generator(seed)).to(dtype)


def int64(q: torch.Tensor, exponent: torch.Tensor | None, shift_groups: int) -> np.ndarray:
    wide = q.numpy().astype(np.int64)
    return wide if exponent is None else wide << (shift_groups - 1 - exponent.numpy().astype(int))


def taps(c: Geometry) -> list[tuple[int, int, tuple[slice, slice]]]:
    """Every tap with the slices of the padded input that its windows read."""
    oh, ow = c.g[1:3]
    found = []
    for kh in range(c.kernel[0]):
        for kw in range(c.kernel[1]):
            top, left = kh * c.dilation[0], kw * c.dilation[1]
            rows = slice(top, top + (oh - 1) * c.stride[0] + 1, c.stride[0])
            columns = slice(left, left + (ow - 1) * c.stride[1] + 1, c.stride[1])
            found.append((kh, kw, (rows, columns)))
    return found


def split(v: np.ndarray, axis: int, groups: int) -> list[np.ndarray]:
    return np.split(v, groups, axis)


def padded(x: np.ndarray, c: Geometry) -> np.ndarray:
    (ph, pw) = c.padding
    return np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def int64_fprop(x: np.ndarray, w: np.ndarray, c: Geometry) -> np.ndarray:
    parts = []
    for xg, wg in zip(split(padded(x, c), 3, c.groups), split(w, 0, c.groups), strict=True):
        y = np.zeros([*c.g[:3], c.outputs], dtype=np.int64)
        for kh, kw, (rows, columns) in taps(c):
            y += np.einsum("nhwc,oc->nhwo", xg[:, rows, columns], wg[:, :, kh, kw])
        parts.append(y)
    return np.concatenate(parts, 3)


def int64_dgrad(g: np.ndarray, w: np.ndarray, c: Geometry) -> np.ndarray:
    height, width = (c.size[i] + 2 * c.padding[i] for i in range(2))
    parts = []
    for gg, wg in zip(split(g, 3, c.groups), split(w, 0, c.groups), strict=True):
        dx = np.zeros([c.batch, height, width, c.channels], dtype=np.int64)
        for kh, kw, (rows, columns) in taps(c):
            dx[:, rows, columns] += np.einsum("nhwo,oc->nhwc", gg, wg[:, :, kh, kw])
        parts.append(dx)
    (ph, pw), whole = c.padding, np.concatenate(parts, 3)
    return whole[:, ph : height - ph, pw : width - pw]


def int64_wgrad(g: np.ndarray, x: np.ndarray, c: Geometry) -> np.ndarray:
    parts = []
    for gg, xg in zip(split(g, 3, c.groups), split(padded(x, c), 3, c.groups), strict=True):
        dw = np.zeros([c.outputs, c.channels, *c.kernel], dtype=np.int64)
        for kh, kw, (rows, columns) in taps(c):
            dw[:, :, kh, kw] = np.einsum("nhwo,nhwc->oc", gg, xg[:, rows, columns])
        parts.append(dw)
    return np.concatenate(parts, 0)


@settings(max_examples=200)
@given(
    geometries, st.none() | st.integers(1, 8), st.sampled_from([torch.int8, torch.uint8]),
    st.integers(0, 3), st.integers(0, 99),
)  # fmt: skip
def test_all_three_in_int64(
    c: Geometry, shift: int | None, dtype: torch.dtype, k_chunk: int, seed: int
) -> None:
    assume(min(c.g) > 0)
    x, w = integers(c.x, dtype, seed), integers(c.w, torch.int8, seed + 1)
    g = integers(c.g, torch.int8, seed + 2)
    *pixels, o = c.g
    per_input = per_channel = per_pixel = None
    if shift is not None:
        per_input = torch.randint(0, shift, (1, 1, 1, c.x[3]), generator=generator(seed)).char()
        per_channel = torch.randint(0, shift, (1, 1, 1, o), generator=generator(seed)).char()
        per_pixel = torch.randint(0, shift, (*pixels, 1), generator=generator(seed)).char()
    groups = shift or 1
    forward = (x, w, *c.window, k_chunk, per_input, groups)
    acc, sums = OPS["sq::conv_fprop_sums"](*forward)
    assert acc.equal(conv_fprop(*forward))
    assert sums.tolist() == int64(acc, None, 1).sum((0, 1, 2)).tolist()
    results = [
        (acc, int64_fprop(int64(x, per_input, groups), int64(w, None, 1), c)),
        (
            conv_dgrad(g, w, per_channel, groups, c.x, *c.window, k_chunk),
            int64_dgrad(int64(g, per_channel, groups), int64(w, None, 1), c),
        ),
        (
            conv_wgrad(g, x, per_pixel, groups, c.w, *c.window, k_chunk),
            int64_wgrad(int64(g, per_pixel, groups), int64(x, None, 1), c),
        ),
    ]
    for got, expected in results:
        assert got.dtype == (torch.int64 if k_chunk else torch.int32)
        assert got.is_contiguous() and np.array_equal(got.numpy(), expected)


def test_leaving_int32_raises_without_a_split() -> None:
    g = torch.full((3, 250, 250, 1), 127, dtype=torch.int8)
    exponent = torch.zeros(3, 250, 250, 1, dtype=torch.int8)
    arguments = ([1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1)
    with pytest.raises(OverflowError, match="int32"):
        conv_wgrad(g, g, exponent, 2, *arguments, 0)
    assert int(conv_wgrad(g, g, exponent, 2, *arguments, 9)) == 2 * 127 * 127 * g.numel()


def test_products_that_float64_cannot_hold_raise() -> None:
    g, w = torch.full((1, 2, 2, 1), 127).char(), torch.full((1, 1, 1, 1), 127).char()
    window = [[1, 1], [0, 0], [1, 1], 1]
    per_channel, per_pixel = torch.zeros(1, 1, 1, 1).char(), torch.zeros(1, 2, 2, 1).char()
    with pytest.raises(OverflowError, match="float64"):
        conv_dgrad(g, w, per_channel, 42, [1, 2, 2, 1], *window, 1)
    with pytest.raises(OverflowError, match="float64"):
        conv_wgrad(g, g, per_pixel, 40, [1, 1, 1, 1], *window, 1)
    shifted = 127 * 127 * 2**38
    assert conv_dgrad(g, w, per_channel, 39, [1, 2, 2, 1], *window, 1).unique().item() == shifted
    assert conv_wgrad(g, g, per_pixel, 37, [1, 1, 1, 1], *window, 1).item() == shifted


@pytest.mark.parametrize("name", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
@pytest.mark.parametrize("relu", [False, True])
def test_fused_epilogue_is_the_product_then_dequantize(name: str, relu: bool) -> None:
    c = CASES[2]
    x, w = integers(c.x, torch.uint8, 1), integers(c.w, torch.int8, 2)
    g = integers(c.g, torch.int8, 3)
    arguments = {
        "conv_fprop": (x, w, *c.window, 0),
        "conv_dgrad": (g, w, None, 1, c.x, *c.window, 0),
        "conv_wgrad": (g, x, None, 1, c.w, *c.window, 0),
    }[name]
    acc = OPS[f"sq::{name}"](*arguments)
    channels = [acc.shape[0], 1, 1, 1] if name == "conv_wgrad" else [1, 1, 1, acc.shape[3]]
    scales = [torch.rand(channels, generator=generator(4)), torch.tensor(0.3)]
    bias = torch.randn(channels, generator=generator(5))
    y = dequantize(acc, scales, bias)
    fused = OPS[f"sq::{name}_dequantize"](*arguments, scales, bias, relu)
    assert fused.equal(torch.where(y < 0, torch.zeros_like(y), y) if relu else y)


# the scheme: what a convolution's gradients compute


def float_conv(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, c: Geometry
) -> torch.Tensor:
    """torch's convolution, which counts channels first."""
    return conv2d(x.permute(0, 3, 1, 2), w, bias, *c.window).permute(0, 2, 3, 1)


def real(c: Geometry, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, w, g with samples and output channels that spread over several octaves."""
    g = torch.randn(c.g, generator=generator(seed))
    g = g * 2.0 ** -(torch.arange(c.g[3]) % 5)
    g = g * 2.0 ** -(torch.arange(c.g[0]) * 2).view(-1, 1, 1, 1)
    x = torch.randn(c.x, generator=generator(seed + 1)).relu()
    return x, torch.randn(c.w, generator=generator(seed + 2)), g


class Shifted:
    """g quantised with an outer scale over `outer` and group exponents on the other axes."""

    def __init__(self, g: torch.Tensor, outer: list[int], groups: int, seed: int) -> None:
        inner = [axis for axis in range(4) if axis not in outer]
        if outer == [0]:  # dX: a pixel's gradient enters several outputs, so the sample is free
            inner = [3]
        self.outer = absmax(g, None, [axis for axis in range(4) if axis not in outer])
        channel = absmax(g, self.outer, [axis for axis in range(4) if axis not in inner])
        r = absmax(channel, None, [0, 1, 2, 3])
        self.exponent = group_exponent(channel, groups)
        rng = torch.tensor([seed, 1, 0, 0])
        self.q = quantize_stochastic.reference(g, r, self.outer, self.exponent, rng, 4, 5)
        self.scales = [quant_scale(r, 4, True, groups), outer_scale(self.outer)]
        self.value = self.q.double() * 2.0 ** (groups - 1 - self.exponent.double())
        for scale in self.scales:
            self.value = self.value * scale.double()


@pytest.mark.parametrize("c", CASES)
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_gradients_are_those_of_the_dequantised_operands(c: Geometry, groups: int) -> None:
    x, w, g = real(c, groups)
    everywhere = [0, 1, 2, 3]
    x_r, w_r = absmax(x, None, everywhere), absmax(w, None, everywhere)
    x_q, w_q = quantize(x, x_r, 4, False), quantize(w, w_r, 4, True)
    x_scale, w_scale = quant_scale(x_r, 4, False, 1), quant_scale(w_r, 4, True, 1)
    x64 = (x_q.double() * x_scale.double()).requires_grad_()
    w64 = (w_q.double() * w_scale.double()).requires_grad_()

    s = Shifted(g, [0], groups, 1)
    acc = conv_dgrad(s.q, w_q, s.exponent, groups, c.x, *c.window, 0)
    dx = dequantize(acc, [*s.scales, w_scale], None).double()
    float_conv(x64, w64, None, c).backward(s.value)
    assert bool(((dx - x64.grad).abs() <= 5 * ULP * x64.grad.abs() + 1e-12).all())

    w64.grad = None
    s = Shifted(g, [3], groups, 1)
    acc = conv_wgrad(s.q, x_q, s.exponent, groups, c.w, *c.window, 0)
    scales = [scale.transpose(0, 3) for scale in s.scales]
    dw = dequantize(acc, [*scales, x_scale], None).double()
    float_conv(x64, w64, None, c).backward(s.value)
    assert bool(((dw - w64.grad).abs() <= 5 * ULP * w64.grad.abs() + 1e-12).all())


def test_mean_of_both_gradients_over_4096_seeds() -> None:
    """The mean over draws is the product of the unquantised gradient, to 5 standard errors."""
    c = Geometry(2, 1, 2, 3, (5, 5), (3, 3), stride=(2, 2), padding=(1, 1))
    x, w, g = real(c, 9)
    draws = {name: torch.empty(SEEDS, *c.g).double() for name in ("dx", "dw")}
    for seed in range(SEEDS):
        draws["dx"][seed] = Shifted(g, [0], 4, seed).value
        draws["dw"][seed] = Shifted(g, [3], 4, seed).value
    arguments = {"dx": w.double(), "dw": x.double()}
    for name, values in draws.items():
        results = torch.stack([gradient(name, v, arguments[name], c) for v in values])
        expected = gradient(name, g.double(), arguments[name], c)
        error = results.std(0) / SEEDS**0.5
        assert bool(((results.mean(0) - expected).abs() <= 5 * error + 1e-5).all()), name
        assert float((results.mean(0) - expected).norm() / expected.norm()) < 0.01


def gradient(name: str, g: torch.Tensor, other: torch.Tensor, c: Geometry) -> torch.Tensor:
    if name == "dx":
        return conv_input_grad.reference(g, other, c.x, *c.window)
    return conv_weight_grad.reference(g, other, c.w, *c.window)


@pytest.mark.parametrize("c", CASES)
def test_float_form_against_autograd(c: Geometry) -> None:
    x, w, g = (v.double() for v in real(c, 3))
    bias = torch.randn(c.w[0], generator=generator(4)).double()
    x, w = x.requires_grad_(), w.requires_grad_()
    y = float_conv(x, w, bias, c)
    y.backward(g)
    assert torch.allclose(conv.reference(x, w, bias, *c.window), y)
    assert torch.allclose(gradient("dx", g, w.detach(), c), x.grad)
    assert torch.allclose(gradient("dw", g, x.detach(), c), w.grad)
