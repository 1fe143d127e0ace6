"""Groups of elementwise ops: which form, in which order they run, and that bits stay."""

import pytest
import torch
from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import assembly, build
from sqcompile.backends.fusion import MOST_NODES, Group, Plan
from sqcompile.backends.lower import lower
from sqcompile.ops import OPS
from sqcompile.runtime.executable import Executable
from sqcompile.walks import common_axes, split_strides
from tests.backends.cases import Source
from tests.backends.conftest import OLDER_CPUS
from tests.backends.graphs import Build, Call, written
from tests.backends.test_kernels import FUSED, bits

aten = torch.ops.aten
CPU = targets.get("cpu")


def steps(build: Build, *inputs: Tensor) -> list[str]:
    """The steps of a graph: the ops of groups, the names of other nodes."""
    plan = Plan(written(build, *inputs).graph, CPU.kernels)
    return [step.spec.op if isinstance(step, Group) else step.name for step in plan.steps]


def residual(c: Call, x: fx.Node, y: fx.Node) -> list[fx.Node]:
    r = c(aten.relu.default, c(aten.add.Tensor, x, y))
    return [r, c(aten.gt.Scalar, r, 0)]


def channels(c: Call, x: fx.Node, scale: fx.Node, bias: fx.Node) -> list[fx.Node]:
    """A view in the middle; a value that meets itself; a mask of what is not a number."""
    y = c(aten.add.Tensor, c(aten.mul.Tensor, x, scale), bias)
    flat = c(aten.view.default, y, [-1])
    rest = c(aten.sub.Tensor, c(aten.relu.default, flat), flat)
    return [c(aten.view.default, rest, [5, -1]), c(aten.ne.Tensor, rest, rest)]


def rows(c: Call, x: fx.Node, scale: fx.Node, bias: fx.Node) -> list[fx.Node]:
    y = c(aten.add.Tensor, c(aten.mul.Tensor, x, scale), bias)
    leaky = c(aten.leaky_relu.default, y, 0.1)
    return [c(aten.add.Tensor, leaky, x), c(aten.sub.Tensor, c(aten.div.Tensor, leaky, 4.0), y)]


def around(c: Call, x: fx.Node, y: fx.Node) -> list[fx.Node]:
    """A path that leaves and comes back: two groups."""
    a = c(aten.mul.Tensor, x, y)
    mean = c(OPS["sq::ordered_sum"].target, a, [1], True)
    left = c(aten.sub.Tensor, a, mean)
    return [c(aten.mul.Tensor, left, a), c(aten.add.Tensor, c(aten.neg.default, a), left)]


def sgd(c: Call, p: fx.Node, g: fx.Node, m: fx.Node) -> list[fx.Node]:
    momentum = c(aten.add.Tensor, c(aten.mul.Tensor, m, 0.9), g)
    return [c(aten.sub.Tensor, p, c(aten.mul.Tensor, momentum, 0.1)), momentum]


def masks(c: Call, x: fx.Node, m: fx.Node) -> list[fx.Node]:
    both = c(aten.logical_and.default, c(aten.gt.Scalar, x, 0.25), m)
    kept = c(aten.where.ScalarOther, both, x, 0.0)
    return [c(aten._to_copy.default, both, dtype=torch.float32), kept]


def spread(c: Call, x: fx.Node, m: fx.Node) -> list[fx.Node]:
    wide = c(aten.expand.default, c(aten.view.default, x, [4, 1, 1, 6]), [4, 3, 5, 6])
    return [c(aten.where.ScalarOther, m, c(aten.div.Scalar, wide, 15), 0.0)]


def activation(c: Call, x: fx.Node, y: fx.Node) -> list[fx.Node]:
    """What forward does behind a residual addition."""
    r, mask = residual(c, x, y)
    packed = c(OPS["sq::pack_mask"].target, mask)
    axes = list(range(len(r.meta["val"].shape)))
    return [r, packed, c(OPS["sq::absmax"].target, r, None, axes)]


def gradient(c: Call, g: fx.Node, h: fx.Node, packed: fx.Node) -> list[fx.Node]:
    """What backward does before a norm."""
    shape = list(g.meta["val"].shape)
    mask = c(OPS["sq::unpack_mask"].target, packed, shape)
    masked = c(aten.where.ScalarOther, mask, c(aten.add.Tensor, g, h), 0.0)
    axes = list(range(len(shape) - 1))
    return [masked, c(OPS["sq::absmax"].target, masked, None, axes)]


def largest(c: Call, x: fx.Node, s: fx.Node) -> list[fx.Node]:
    y = c(aten.mul.Tensor, x, s)
    axes = [list(range(len(x.meta["val"].shape)))[:end] for end in (-1, None)]
    return [y, *(c(OPS["sq::absmax"].target, y, None, a) for a in axes)]


def curve(c: Call, x: fx.Node, bias: fx.Node) -> list[fx.Node]:
    """An MLP's activation between two products, which see tokens as one axis, and its slope."""
    x = c(aten.add.Tensor, x, bias)
    cdf = c(OPS["sq::gelu_cdf"].target, x, False)
    slope = c(OPS["sq::gelu_slope"].target, x, cdf, False)
    slope = c(OPS["sq::quantize_slope"].target, slope, 203.0, -26, 229)
    y = c(aten.mul.Tensor, x, cdf)
    rows = c(aten.view.default, y, [-1, x.meta["val"].shape[-1]])
    maxima = (c(OPS["sq::absmax"].target, rows, None, axes) for axes in ([0], [0, 1]))
    return [rows, slope, *maxima]


def _mask(s: Source, count: int) -> Tensor:
    return s.grid(torch.uint8, count // 8)


def programs() -> dict[str, tuple[Build, list[Tensor]]]:
    """Graphs and their inputs, for the groups of every target."""
    s = Source("fusion")
    infinite = torch.full((5, 16), torch.inf)
    return {
        "residual": (residual, [s.edges(4, 8, 8, 16), s.edges(4, 8, 8, 16)]),
        "three-channels": (channels, [s.edges(5, 8, 8, 3), s.normal(1, 1, 1, 3), s.normal(3)]),
        "ten-channels": (channels, [s.edges(5, 40, 8, 10), s.normal(1, 1, 1, 10), s.normal(10)]),
        "short-rows": (rows, [s.edges(97, 10), s.normal(97, 1), s.normal(10)]),
        "blocks": (rows, [s.edges(13, 37, 70), s.normal(37, 1), s.normal(13, 1, 70)]),
        "long-rows": (rows, [s.edges(9, 200), s.normal(9, 1), s.normal(200)]),
        "around": (around, [s.normal(13, 70), s.normal(13, 70)]),
        "sgd": (sgd, [s.normal(5000), s.normal(5000), s.normal(5000)]),
        "one": (sgd, [s.normal(1), s.normal(1), s.normal(1)]),
        "activation": (activation, [s.edges(4, 8, 8, 16), s.edges(4, 8, 8, 16)]),
        "large-activation": (activation, [s.normal(9, 33, 32, 16), s.normal(9, 33, 32, 16)]),
        "flat-activation": (activation, [s.normal(20016), s.normal(20016)]),
        "gradient": (gradient, [s.edges(2, 5, 7, 32), s.normal(2, 5, 7, 32), _mask(s, 2240)]),
        "large-gradient": (gradient, [*s.normal(2, 8, 1000, 32).unbind(), _mask(s, 256000)]),
        "maxima": (largest, [s.edges(60, 7, 50), s.normal(50)]),
        "few-maxima": (largest, [s.edges(300, 3), s.normal(3)]),
        "curve": (curve, [s.edges(3, 40, 35), s.normal(35)]),
        "large-curve": (curve, [s.edges(4, 30, 200), s.normal(200)]),
        "masks": (masks, [s.normal(7, 31), s.mask(7, 31)]),
        "spread": (spread, [s.normal(4, 6), s.mask(4, 3, 5, 6)]),
        "not-a-number": (channels, [infinite, torch.ones(16), torch.ones(16)]),
    }


@pytest.mark.parametrize("mcpu", ["", *OLDER_CPUS], ids=["host", *OLDER_CPUS])
def test_groups_give_the_bits_of_their_ops(mcpu: str) -> None:
    target = targets.get("cpu", mcpu=mcpu)
    found = programs()
    graphs = {name: written(build_, *inputs) for name, (build_, inputs) in found.items()}
    executable = Executable(build(lower(graphs, target).module, target))
    for name, (_, inputs) in found.items():
        wanted = graphs[name](*inputs)
        for got, want in zip(executable.function(name)(*inputs), wanted, strict=True):
            assert got.dtype == want.dtype
            same = bits(got) == bits(want)
            if want.is_floating_point():
                same |= got.isnan() & want.isnan()
            assert same.all(), name


def test_no_group_rounds_a_product_and_a_sum_at_once() -> None:
    graphs = {name: written(build_, *inputs) for name, (build_, inputs) in programs().items()}
    for source in build(lower(graphs, CPU).module, CPU).sources.values():
        assert not FUSED.findall(assembly(source))


def test_a_chain_is_one_step_and_names_its_ops() -> None:
    x = torch.randn(4, 6)
    assert steps(residual, x, x) == ["fused::add+relu+gt"]
    assert steps(sgd, x, x, x) == ["fused::mul+add+mul+sub"]
    wide = torch.randn(4, 16)
    assert steps(activation, wide, wide) == ["fused::add+relu+gt+pack_mask+absmax"]
    assert steps(curve, torch.randn(2, 5, 6), x[0]) == [
        "fused::add+gelu_cdf+gelu_slope+quantize_slope+mul+absmax+absmax"
    ]
    mask = torch.zeros(8, dtype=torch.uint8)
    assert sorted(steps(gradient, wide, wide, mask)[0].removeprefix("fused::").split("+")) == [
        "absmax",
        "add",
        "unpack_mask",
        "where",
    ]
    assert steps(spread, x, torch.ones(4, 3, 5, 6).bool()) == ["fused::expand+div+where"]


def test_a_path_that_leaves_a_group_and_comes_back_splits_it() -> None:
    x = torch.randn(4, 6)
    assert steps(around, x, x) == ["fused::mul+neg", "ordered_sum_default", "fused::sub+mul+add"]


def test_different_sizes_stay_apart() -> None:
    def build_(c: Call, x: fx.Node, s: fx.Node) -> list[fx.Node]:
        return [c(aten.mul.Tensor, x, c(aten.mul.Tensor, s, s))]

    assert len(steps(build_, torch.randn(4, 6), torch.randn(6))) == 2


def test_groups_are_bounded() -> None:
    def build_(c: Call, x: fx.Node) -> list[fx.Node]:
        for _ in range(2 * MOST_NODES + 1):
            x = c(aten.relu.default, x)
        return [x]

    assert len(steps(build_, torch.randn(4))) == 3


def test_equal_groups_share_a_kernel_that_reports_its_nodes() -> None:
    def build_(c: Call, *x: fx.Node) -> list[fx.Node]:
        return [*residual(c, x[0], x[1]), *residual(c, x[1], x[2])]

    x = torch.randn(4, 6)
    (kernel,) = lower({"forward": written(build_, x, x, x)}, CPU).kernels
    assert (kernel.name, kernel.op) == ("add_relu_gt", "fused::add+relu+gt")
    assert kernel.nodes == [
        "forward/add_tensor+relu_default+gt_scalar",
        "forward/add_tensor_1+relu_default_1+gt_scalar_1",
    ]


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ([(6, 4), (2, 12)], [2, 3, 4]),
        ([(6, 4), (4, 6)], None),
        ([(1, 5), (5, 1, 1)], [5]),
        ([(), (1, 1)], [1]),
        ([(0, 3)], [0]),
    ],
)
def test_common_axes(shapes: list[tuple[int, ...]], axes: list[int] | None) -> None:
    assert common_axes(shapes) == axes


def test_strides_of_split_axes() -> None:
    assert split_strides((2, 12), (0, 1), (2, 3, 4)) == [0, 4, 1]
    assert split_strides((6, 4), (1, 0), (2, 3, 4)) == [3, 1, 0]
