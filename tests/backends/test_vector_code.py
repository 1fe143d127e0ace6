"""Nothing in a step runs scalar: the code of representative kernels is vector code."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sqcompile.ops import OPS
from sqcompile.ops.resample_table import linear, table
from tests.backends.cases import I64, Case, Source
from tests.backends.conftest import compile_cases

aten = torch.ops.aten
SCALAR = re.compile(r"\bv(?:add|sub|mul|div|max|min|sqrt|ucomi|cmp\w*)s[sd]\b")
"""Float arithmetic on one element."""
WHOLE = re.compile(r"\bv\w+\s.*%zmm")
"""Any instruction on a whole register of AVX-512."""
SUMS = 32
"""Scalar sums that an ordered sum may have: the last steps of its tree, and a result's tail."""


ROW = 12
"""Scalar operations that a row may have, whatever its length."""


SMALL = 32
"""Scalar operations on a quantiser's few scales and groups."""


def _case(name: str, target: Any, make: Callable[[Source], list[Any]]) -> Case:
    return Case(name, target, target, make)


def _elementwise() -> list[Case]:
    return [
        _case("add", aten.add.Tensor, lambda s: [s.normal(64, 100), s.normal(64, 100)]),
        _case("channels", aten.mul.Tensor, lambda s: [s.normal(64, 9, 3), s.normal(3)]),
        _case("rows", aten.sub.Tensor, lambda s: [s.normal(64, 10), s.normal(64, 1)]),
        _case("odd", aten.div.Tensor, lambda s: [s.normal(64, 131), s.normal(131)]),
        _case("mask", aten.gt.Scalar, lambda s: [s.normal(33, 47), 0.0]),
        _case("where", aten.where.self, lambda s: [s.mask(640), s.normal(640), s.normal(640)]),
        _case("ema", OPS["sq::ema"].target, lambda s: [s.normal(100), s.normal(100), 0.1]),
    ]


def _pooling() -> list[Case]:
    call: list[Any] = [[3, 3], [2, 2], [1, 1]]
    most, mean = OPS["sq::max_pool2d"], OPS["sq::avg_pool2d"]
    shape = [2, 9, 9, 32]
    return [
        _case("max", most.target, lambda s: [s.normal(*shape), *call, [1, 1], False]),
        _case("mean", mean.target, lambda s: [s.normal(*shape), *call]),
        _case(
            "max-backward",
            OPS["sq::max_pool2d_backward"].target,
            lambda s: [
                s.normal(2, 5, 5, 32),
                s.grid(torch.uint8, 2, 5, 5, 32),
                shape,
                *call,
                [1, 1],
            ],
        ),
        _case(
            "mean-backward",
            OPS["sq::avg_pool2d_backward"].target,
            lambda s: [s.normal(2, 5, 5, 32), shape, *call],
        ),
    ]


def _functions() -> list[Case]:
    names = ("exp", "expm1", "log", "erf", "tanh", "sigmoid", "hardswish_slope", "tanh_slope")
    found = [_case(n, OPS[f"sq::{n}"].target, lambda s: [s.normal(33, 131)]) for n in names]
    cdf, slope = OPS["sq::gelu_cdf"].target, OPS["sq::gelu_slope"].target
    for form in (False, True):
        found += [
            _case(f"gelu-{form}", cdf, lambda s, f=form: [s.normal(4323), f]),
            _case(f"slope-{form}", slope, lambda s, f=form: [s.normal(4323), s.normal(4323), f]),
        ]
    quantize, back = OPS["sq::quantize_slope"].target, OPS["sq::slope_backward"].target
    return [
        *found,
        _case("slope-quantize", quantize, lambda s: [s.normal(4323), 203.0, -26, 229]),
        _case(
            "slope-back",
            back,
            lambda s: [s.normal(4323), s.grid(torch.uint8, 4323), -26, 1 / 203],
        ),
    ]


def _rows() -> list[Case]:
    """Rows of attention: a scalar maximum, sum, inverse each, and the steps of their trees."""
    one, two = ("softmax", "log_softmax"), ("softmax_backward", "log_softmax_backward")
    return [
        *(_case(n, OPS[f"sq::{n}"].target, lambda s: [s.normal(64, 65)]) for n in one),
        *(_case(n, OPS[f"sq::{n}"].target, lambda s: [s.normal(64, 65)] * 2) for n in two),
        _case(
            "softmax-q", OPS["sq::softmax_quantize"].target, lambda s: [s.normal(64, 65), 6, False]
        ),
        _case(
            "softmax-q-backward",
            OPS["sq::softmax_quantized_backward"].target,
            lambda s: [s.normal(64, 65), s.grid(torch.uint8, 64, 65), s.normal(64, 1)],
        ),
        _case(
            "nll-backward",
            OPS["sq::nll_loss_backward"].target,
            lambda s: [s.normal(64), s.integers(0, 64, 64, dtype=torch.int64), None, -1, 65],
        ),
    ]


def _copies() -> list[Case]:
    return [
        _case("transpose", aten.t.default, lambda s: [s.normal(70, 33)]),
        _case("nchw", aten.permute.default, lambda s: [s.normal(2, 40, 9, 3), [0, 3, 1, 2]]),
        _case("heads", aten.permute.default, lambda s: [s.normal(2, 7, 3, 40), [0, 2, 1, 3]]),
        _case("cat", aten.cat.default, lambda s: [[s.normal(9, 40), s.normal(9, 33)], 1]),
    ]


def _lookups() -> list[Case]:
    taken, added = OPS["sq::take"].target, OPS["sq::take_backward"].target
    resample, ranges = OPS["sq::resample"].target, OPS["sq::index_range"].target
    first, weight = table(linear(9, 18, 2.0, False))
    return [
        _case("take", taken, lambda s: [s.normal(50, 96), s.integers(0, 49, 70, dtype=I64), 0]),
        _case(
            "take-backward",
            added,
            lambda s: [s.normal(70, 96), s.integers(0, 49, 70, dtype=I64), 0, 50, -1],
        ),
        _case("range", ranges, lambda s: [s.integers(0, 49, 900, dtype=I64), 7]),
        _case("resample", resample, lambda s: [s.normal(9, 64), 0, first, weight, None, None]),
        _case("turn", aten.flip.default, lambda s: [s.normal(9, 100), [1]]),
    ]


def _sums() -> list[Case]:
    summed = OPS["sq::ordered_sum"].target
    return [
        _case("images", summed, lambda s: [s.normal(8, 16, 16, 64), [0, 1, 2], False]),
        _case("few", summed, lambda s: [s.normal(4096, 10), [0], False]),
        _case("rows", summed, lambda s: [s.normal(64, 1024), [1], False]),
    ]


def _quantizers() -> list[Case]:
    """Rows that end in a vector that overlaps."""
    names = ("quantize_stochastic", "shift_quantize", "shift_quantize_pair")
    one, two, three = (OPS[f"sq::{name}"].target for name in names)
    rng = torch.tensor([1, 2, 3, 4])
    return [
        _case("draws", one, lambda s: [s.normal(70, 100), s.uniform(1, 1), None, None, rng, 8, 7]),
        _case("dgrad", two, lambda s: [s.normal(70, 100), None, rng, [0], [1], 4, 4, 7]),
        _case("pair", three, lambda s: [s.normal(70, 100), None, rng, True, 4, 4, 7]),
        _case("tokens", three, lambda s: [s.normal(70, 96), None, rng, True, 4, 4, 7]),
    ]


@pytest.mark.parametrize(
    ("cases", "scalar"),
    [
        (_elementwise(), 0),
        (_functions(), 0),
        (_rows(), ROW),
        (_pooling(), 0),
        (_copies(), 0),
        (_lookups(), 0),
        (_sums(), SUMS),
        (_quantizers(), SMALL),
    ],
    ids=["elementwise", "functions", "rows", "pooling", "copies", "lookups", "sums", "quantizers"],
)
def test_kernels_are_vector_code(cases: list[Case], scalar: int) -> None:
    for case in cases:
        assembly = compile_cases([case], "znver4").assembly()
        assert WHOLE.search(assembly), case.name
        assert len(SCALAR.findall(assembly)) <= scalar, case.name
