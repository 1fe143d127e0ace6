"""Kernels that read slices, selects and permutes where they lie: which do, and that bits stay."""

from operator import getitem

import pytest
import torch
from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import assembly, build
from sqcompile.backends.fusion import Group, Plan
from sqcompile.backends.lower import lower
from sqcompile.ops import OPS
from sqcompile.runtime.executable import Executable
from tests.backends.cases import Source
from tests.backends.conftest import OLDER_CPUS
from tests.backends.graphs import Build, Call, written
from tests.backends.test_kernels import bits
from tests.backends.test_vector_code import ROW, SCALAR, WHOLE

aten = torch.ops.aten
CPU = targets.get("cpu")


def steps(build: Build, *inputs: Tensor) -> list[str]:
    """The ops of a graph that are computed, in order."""
    plan = Plan(written(build, *inputs).graph, CPU.kernels)
    return [
        (step.spec if isinstance(step, Group) else plan.specs[step][0]).short_name
        for step in plan.steps
    ]


def op(name: str) -> object:
    return OPS[f"sq::{name}"].target


def head(c: Call, x: fx.Node, which: int, heads: int) -> fx.Node:
    """(n, t, 3 * heads * d) -> the part `which`, (n * heads, t, d)."""
    n, t, width = x.meta["val"].shape
    part = width // 3
    cut = c(aten.slice.Tensor, x, 2, which * part, (which + 1) * part)
    apart = c(aten.reshape.default, cut, [n, t, heads, part // heads])
    turned = c(aten.transpose.int, apart, 1, 2)
    copied = c(aten.clone.default, turned, memory_format=torch.contiguous_format)
    return c(aten.reshape.default, copied, [n * heads, t, part // heads])


def attention(heads: int) -> Build:
    """A part is measured and quantised as a product wants it."""

    def build_(c: Call, x: fx.Node) -> list[fx.Node]:
        found = []
        for which, axes in ((1, [1, 2]), (2, [0, 1, 2])):
            part = head(c, x, which, heads)
            r = c(op("absmax"), part, None, axes)
            found += [r, c(op("quantize"), part, r, 6, True)]
        return found

    return build_


def selected(c: Call, x: fx.Node) -> list[fx.Node]:
    """A part of a permuted tensor."""
    parts = c(aten.permute.default, x, [2, 0, 3, 1, 4])
    k = c(aten.select.int, parts, 0, 1)
    k = c(aten.reshape.default, k, [-1, *k.meta["val"].shape[2:]])
    return [c(op("absmax"), k, None, [0, 2]), c(op("absmax"), k, None, [1])]


def gradient(heads: int) -> Build:
    """Both ShiftQuants of an attention's gradient, and one without groups."""

    def build_(c: Call, g: fx.Node, rng: fx.Node) -> list[fx.Node]:
        part = head(c, g, 0, heads)
        found = []
        for args in (([0, 2], [0, 1], 6, 3, 7), ([0, 1], [0, 2], 6, 3, 8), ([0], [], 8, 1, 9)):
            made = c(op("shift_quantize"), part, None, rng, *args)
            found += [c(getitem, made, i) for i in range(5)]
        r = c(op("absmax"), part, None, [0, 1])
        return [*found, c(op("quantize_stochastic"), part, r, None, None, rng, 8, 3)]

    return build_


def joined(c: Call, q: fx.Node, k: fx.Node, v: fx.Node) -> list[fx.Node]:
    """A concatenation of permuted parts, one of them transposed."""
    a, b = (c(aten.permute.default, one, [0, 2, 1, 3]) for one in (q, k))
    return [c(aten.cat.default, [a, b, c(aten.permute.default, v, [0, 3, 1, 2])], 2)]


def leading(c: Call, x: fx.Node) -> list[fx.Node]:
    """The first rows: in order, but not all."""
    r = c(op("absmax"), c(aten.slice.Tensor, x, 0, 0, 2), None, [0, 1])
    turned = c(aten.permute.default, c(aten.permute.default, x, [1, 0]), [1, 0])
    return [r, c(op("absmax"), turned, None, [0])]


def chain(c: Call, x: fx.Node) -> list[fx.Node]:
    """Two copies on end are one."""
    cut = c(aten.slice.Tensor, x, 1, 3, 1000, 2)
    return [c(aten.permute.default, cut, [1, 0, 2])]


def stuck(c: Call, x: fx.Node) -> list[fx.Node]:
    """A view that cuts across what a permute made: no walk leads there."""
    turned = c(aten.permute.default, x, [1, 0])
    return [c(aten.permute.default, c(aten.reshape.default, turned, [-1, 5]), [1, 0])]


def programs() -> dict[str, tuple[Build, list[Tensor]]]:
    """Graphs and their inputs, for the kernels of every target."""
    s = Source("reads")
    rng = torch.tensor([5, 1, 0, 0])
    return {
        "heads": (attention(3), [s.edges(2, 9, 3 * 3 * 32)]),
        "tails": (attention(2), [s.edges(3, 7, 3 * 2 * 21)]),
        "one-head": (attention(1), [s.normal(1, 5, 3 * 16)]),
        "large": (attention(4), [s.normal(4, 65, 3 * 4 * 64)]),
        "selected": (selected, [s.edges(2, 9, 3, 2, 19)]),
        "gradient": (gradient(3), [s.normal(2, 9, 3 * 3 * 32), rng]),
        "large-gradient": (gradient(4), [s.normal(4, 65, 3 * 4 * 64), rng]),
        "joined": (joined, [s.normal(2, 3, 7, 20), s.normal(2, 3, 7, 20), s.normal(2, 1, 20, 7)]),
        "leading": (leading, [s.normal(5, 33)]),
        "chain": (chain, [s.normal(3, 11, 18)]),
        "stuck": (stuck, [s.normal(6, 10)]),
    }


@pytest.mark.parametrize("mcpu", ["", *OLDER_CPUS], ids=["host", *OLDER_CPUS])
def test_readers_give_the_bits_of_copies(mcpu: str) -> None:
    target = targets.get("cpu", mcpu=mcpu)
    found = programs()
    graphs = {name: written(build_, *inputs) for name, (build_, inputs) in found.items()}
    executable = Executable(build(lower(graphs, target).module, target))
    for name, (_, inputs) in found.items():
        wanted = graphs[name](*inputs)
        for got, want in zip(executable.function(name)(*inputs), wanted, strict=True):
            assert got.dtype == want.dtype
            assert (bits(got) == bits(want)).all(), name


def test_what_quantisers_read_is_not_copied() -> None:
    found = programs()

    def of(name: str) -> list[str]:
        build_, inputs = found[name]
        return steps(build_, *inputs)

    assert of("heads") == of("tails") == ["absmax", "quantize"] * 2
    assert of("selected") == ["absmax", "absmax"]
    assert of("gradient") == ["shift_quantize"] * 3 + ["absmax", "quantize_stochastic"]
    assert of("joined") == ["cat"]
    assert of("leading") == ["absmax", "absmax"]
    assert of("chain") == ["permute"]
    assert of("stuck") == ["permute", "permute"]


def test_short_runs_and_other_readers_want_a_copy() -> None:
    def read_twice(c: Call, x: fx.Node) -> list[fx.Node]:
        part = head(c, x, 0, 2)
        return [c(op("absmax"), part, None, [1, 2]), c(op("softmax"), part)]

    x = torch.randn(2, 5, 96)
    assert steps(read_twice, x) == ["transpose", "absmax", "softmax"]
    assert "transpose" in steps(attention(2), torch.randn(2, 5, 48))
    rng = torch.zeros(4, dtype=torch.int64)
    assert "transpose" in steps(gradient(2), torch.randn(2, 5, 3 * 2 * 20), rng)


def test_what_reads_in_place_is_vector_code() -> None:
    target = targets.get("cpu", mcpu="znver4")
    build_, inputs = attention(4), [torch.randn(2, 65, 3 * 4 * 64)]
    built = build(lower({"heads": written(build_, *inputs)}, target).module, target)
    for source in built.sources.values():
        code = assembly(source)
        assert WHOLE.search(code)
        assert len(SCALAR.findall(code)) <= ROW
