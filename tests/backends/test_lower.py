"""From graphs to results: hand-made graphs through lower, build and Executable."""

import pytest
import torch
from torch import Tensor, fx

from sqcompile.backends import targets
from sqcompile.backends.cpu.build import build
from sqcompile.backends.lower import KernelRecord, lower, unsupported
from sqcompile.ops import OPS
from sqcompile.runtime.executable import Executable, Function
from tests.backends.graphs import Writer

aten = torch.ops.aten
CPU = targets.get("cpu")


def compiled(graph: fx.GraphModule) -> tuple[Function, list[KernelRecord]]:
    lowered = lower({"forward": graph}, CPU)
    return Executable(build(lowered.module, CPU)).function("forward"), lowered.kernels


def check(graph: fx.GraphModule, *inputs: Tensor) -> list[Tensor]:
    """Runs the compiled graph, compares with the references, returns the results."""
    function, _ = compiled(graph)
    results = function(*inputs)
    expected = [one for one in graph(*inputs) if one is not None]
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    return results


def test_outputs_that_are_inputs_views_or_repeated_get_memory_of_their_own() -> None:
    w, x = Writer(), torch.randn(4, 6)
    xn = w.input("x", x)
    doubled = w.call(aten.mul.Tensor, xn, 2.0)
    flat = w.call(aten.view.default, doubled, [-1])
    view = w.call(aten.view.default, xn, [24])
    results = check(w.module(xn, view, doubled, flat, doubled, None), x)
    memory = {result.data_ptr() for result in results} | {x.data_ptr()}
    assert len(memory) == len(results) + 1


def test_views_that_keep_the_order_of_elements_need_no_kernel() -> None:
    w, x = Writer(), torch.randn(1, 4, 1, 6)
    node = w.input("x", x)
    for target, *args in (
        (aten.permute.default, [0, 2, 1, 3]),
        (aten.squeeze.dims, [0, 1]),
        (aten.transpose.int, 0, 0),
        (aten.unsqueeze.default, 0),
        (aten.expand.default, [1, 4, 6]),
        (aten.slice.Tensor, 1, 0, 9),
        (aten.clone.default,),
        (aten.detach.default,),
        (aten.reshape.default, [24]),
    ):
        node = w.call(target, node, *args)
    graph = w.module(w.call(aten.neg.default, node))
    check(graph, x)
    assert [kernel.op for kernel in compiled(graph)[1]] == ["aten::neg.default"]


def test_equal_calls_share_a_kernel_and_streams_do_not_split_it() -> None:
    w = Writer()
    x, rng = torch.randn(3, 50), torch.tensor([1, 2, 3, 4])
    xn, rn = w.input("x", x), w.input("rng", rng)
    r = w.call(OPS["sq::absmax"].target, xn, None, [0, 1])
    quantize = OPS["sq::quantize_stochastic"].target
    outs = [w.call(quantize, xn, r, None, None, rn, 4, stream) for stream in (5, 6)]
    graph = w.module(*outs)
    first, second = check(graph, x, rng)
    assert not torch.equal(first, second)
    records = {kernel.name: kernel.nodes for kernel in compiled(graph)[1]}
    assert len(records["quantize_stochastic"]) == 2


def test_kernels_of_one_op_are_numbered() -> None:
    w, x = Writer(), torch.randn(4, 6)
    xn = w.input("x", x)
    graph = w.module(w.call(aten.mul.Tensor, xn, 2.0), w.call(aten.mul.Tensor, xn, 3.0))
    assert [kernel.name for kernel in compiled(graph)[1]] == ["mul", "mul_1"]


def test_several_results_scalars_and_constants() -> None:
    w, x, count = Writer(), torch.randn(2, 3, 8, 8), torch.tensor(5)
    xn, cn = w.input("x", x), w.input("count", count)
    pool = w.call(OPS["sq::max_pool2d"].target, xn, [2, 2], [2, 2], [0, 0], [1, 1], False)
    more = w.call(aten.add.Tensor, cn, 1)
    full = w.call(aten.full.default, [2, 3], 1.5, pin_memory=False)
    results = check(w.module(w.item(pool, 1), more, full, cn, w.item(pool, 0)), x, count)
    assert results[1].shape == ()


def test_graphs_of_one_module_share_kernels() -> None:
    graphs = {}
    for name in ("forward", "backward"):
        w = Writer()
        graphs[name] = w.module(w.call(aten.neg.default, w.input("x", torch.randn(5))))
    lowered = lower(graphs, CPU)
    (record,) = lowered.kernels
    assert [user.partition("/")[0] for user in record.nodes] == ["forward", "backward"]
    executable = Executable(build(lowered.module, CPU))
    x = torch.randn(5)
    for name in graphs:
        assert torch.equal(executable.function(name)(x)[0], -x)


def test_everything_unsupported_is_told_at_once_with_its_place() -> None:
    w, x = Writer(), torch.randn(4, 4)
    xn = w.input("x", x)
    fine = w.call(aten.neg.default, xn)
    sine, scaled = w.call(aten.sin.default, fine), w.call(aten.add.Tensor, xn, fine, alpha=2)
    graph = w.module(sine, scaled)
    scaled.kwargs = {"alpha": 2}
    found = unsupported(graph, CPU)
    assert [one.op for one in found] == ["aten::sin.default", "aten::add.Tensor"]
    assert found[0].reason == "no kernel for target 'cpu'"
    assert found[1].reason == "alpha = 2; only 1 has a kernel"
    assert found[0].module == "block"
    assert "model.py" in found[0].stack_trace


@pytest.mark.parametrize("mcpu", ["x86-64-v3", "x86-64"])
def test_older_cpus_give_the_same_bits(mcpu: str) -> None:
    target = targets.get("cpu", mcpu=mcpu)
    w, rng = Writer(), torch.tensor([1, 2, 3, 4])
    g, b = torch.randn(64, 48), torch.randint(-7, 8, (48, 33), dtype=torch.int8)
    gn, bn, rn = w.input("g", g), w.input("b", b), w.input("rng", rng)
    r = w.call(OPS["sq::absmax"].target, gn, None, [0, 1])
    q = w.call(OPS["sq::quantize_stochastic"].target, gn, r, None, None, rn, 4, 7)
    graph = w.module(w.call(OPS["sq::shift_matmul"].target, q, bn, None, 1, False, False, 0))
    function = Executable(build(lower({"forward": graph}, target).module, target)).function(
        "forward"
    )
    assert torch.equal(function(g, b, rng)[0], graph(g, b, rng)[0])
