"""One number of threads for TVM and torch, and the same bits with any."""

import threading

import pytest
import torch

from sqcompile.backends import targets
from sqcompile.backends.cpu import build as build_module
from sqcompile.backends.cpu.build import build
from sqcompile.backends.lower import lower
from sqcompile.errors import UsageError
from sqcompile.ops import OPS
from sqcompile.runtime.executable import Executable
from sqcompile.runtime.threads import get_num_threads, set_num_threads
from tests.backends.graphs import Writer


@pytest.fixture(autouse=True)
def restored() -> object:
    before, torch_before = get_num_threads(), torch.get_num_threads()
    yield
    set_num_threads(before)
    torch.set_num_threads(torch_before)


def test_torch_follows() -> None:
    set_num_threads(1)
    assert get_num_threads() == torch.get_num_threads() == 1


@pytest.mark.parametrize("wrong", [0, -1, 10**6, 1.5, True, None])
def test_wrong_numbers_are_usage_errors(wrong: object) -> None:
    with pytest.raises(UsageError, match="the number of threads is 1 to"):
        set_num_threads(wrong)  # type: ignore[arg-type]


def test_results_do_not_depend_on_threads_or_on_the_calling_thread() -> None:
    w, cpu = Writer(), targets.get("cpu")
    x, rng = torch.randn(64, 16, 16, 16), torch.tensor([1, 2, 3, 4])
    xn, rn = w.input("x", x), w.input("rng", rng)
    r = w.call(OPS["sq::absmax"].target, xn, None, [0, 1, 2, 3])
    q = w.call(OPS["sq::quantize_stochastic"].target, xn, r, None, None, rn, 4, 7)
    total = w.call(OPS["sq::ordered_sum"].target, xn, [0, 2, 3], False)
    graph = w.module(q, total)
    function = Executable(build(lower({"forward": graph}, cpu).module, cpu)).function("forward")
    results = []
    for count in sorted({1, get_num_threads()}):
        set_num_threads(count)
        results.append(function(x, rng))
        caller = threading.Thread(target=lambda: results.append(function(x, rng)))
        caller.start()
        caller.join()
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_code_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    w, cpu = Writer(), targets.get("cpu")
    x = w.input("x", torch.randn(6, 8))
    sums = [w.call(OPS["sq::ordered_sum"].target, x, axes, False) for axes in ([0], [1], [0, 1])]
    module = lower({"forward": w.module(*sums)}, cpu).module
    built = []
    for count in (1, 3):
        monkeypatch.setattr(build_module, "get_num_threads", lambda count=count: count)
        built.append(build(module, cpu))
    assert len(built[0].objects) == 3, "a piece a kernel, up to a number of pieces"
    assert built[0].objects == built[1].objects and built[0].vm == built[1].vm
