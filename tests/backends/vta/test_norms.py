"""Sums of norms: which of them an op takes, and how many of a step are taken where."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples import digits_resnet
from sqcompile.api import rewrite
from sqcompile.backends import targets
from sqcompile.backends.lower import lower
from sqcompile.backends.vta.graph import build, norms
from sqcompile.ops import OPS
from sqcompile.passes.plain_products import plain_products
from sqcompile.recipe import Recipe
from sqcompile.report.products import products
from tests.backends.cases import Case
from tests.backends.catalogue import all_cases
from tests.models import MODELS, make

NORMS = {name for name in OPS if "l1_" in name and "norm" in name}
SUM = torch.ops.aten.sum.dim_IntList
ORDER = {
    "forward": (norms.VALUES, norms.DEVIATIONS),
    "backward": (norms.GRADIENTS, norms.TIMES_VALUES, norms.SIGNS),
}
"""The order in which the references take their sums, each time they need them."""


def test_every_norm_of_the_op_table_has_its_sums():
    assert set(norms.SUMS) == NORMS


class Disturbed(TorchDispatchMode):
    """Adds to every int64 sum whose number, counted modulo `period`, is `number`."""

    def __init__(self, number: int, period: int) -> None:
        super().__init__()
        self.number, self.period, self.seen = number, period, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is SUM and result.dtype == torch.int64:
            result = result + 12345 * (self.seen % self.period == self.number)
            self.seen += 1
        return result


def of_norms() -> list[Case]:
    """A case of every norm that sums its own values, and of every one that subtracts no mean."""
    found: dict[tuple[str, bool], Case] = {}
    for case in all_cases():
        if name_of(case) in NORMS and not case.name.endswith("-given"):
            found.setdefault((name_of(case), is_rms(case)), case)
    return list(found.values())


def name_of(case: Case) -> str:
    return case.target._schema.name


def is_rms(case: Case) -> bool:
    return "-rms-" in case.name


@pytest.mark.parametrize("case", of_norms(), ids=lambda case: case.name)
def test_an_op_takes_the_sums_that_its_results_depend_on(case):
    """Its reference gives something else where one of these is another number."""
    expected, read = case.expected(case.arguments()), []
    kinds = ORDER["backward" if "backward" in case.name else "forward"]
    for number, kind in enumerate(kinds):
        with Disturbed(number, len(kinds)):
            found = case.expected(case.arguments())
        if not all(map(torch.equal, expected, found)):
            read.append(kind)
    centred = not is_rms(case)
    assert read == [kind for kind in norms.SUMS[name_of(case)] if centred or not kind.of_centred]


@pytest.fixture
def taken(monkeypatch):
    """taken(model, inputs) -> {role: {kind: (on the accelerator, on the host)}} of a step that went
    through everything but LLVM; what the host takes has a reason."""
    host = SimpleNamespace(build=lambda module, target, images: SimpleNamespace(images=images))
    monkeypatch.setattr(build, "host", host)

    def taken(model, inputs, gradients=True):
        parts = rewrite(model, inputs, {}, Recipe.load("w4a4g4"), gradients=gradients).parts
        graphs = {"forward": parts.forward}
        if gradients:
            graphs["backward"] = parts.backward
        macs = {
            f"{name}/{one.node}": one.macs
            for name, graph in graphs.items()
            for one in products(graph, name)
        }
        target = targets.get("vta", hw="pynq-out32")
        plain = {name: plain_products(graph) for name, graph in graphs.items()}
        made = lower(plain, target)
        known = build.accelerator(build.build(made.module, target), made.kernels, macs)["norms"]
        for kind in (kind for kinds in known.values() for kind in kinds.values()):
            assert bool(kind["why"]) == bool(kind["host"])
        return {
            role: {name: (kind["accelerator"], kind["host"]) for name, kind in kinds.items()}
            for role, kinds in known.items()
        }

    return taken


def counts(values, deviations, gradients, times_values, signs):
    """As `taken` gives it, of what the accelerator takes of `values`, and else the host."""
    host = [(0, count) for count in (deviations, gradients, times_values, signs)]
    return {
        "forward": {"values": values, "deviations": host[0]},
        "backward": dict(
            zip(("gradients", "gradients_times_values", "signs"), host[1:], strict=True)
        ),
    }


NONE = counts((0, 0), 0, 0, 0, 0)


def test_a_batch_norm_behind_a_convolution_has_its_values_summed_there(taken):
    digits = digits_resnet.DigitsResNet()
    images = (torch.rand(2, 1, 8, 8),)
    assert taken(digits, images) == counts((6, 0), 6, 6, 6, 6)
    assert taken(digits.eval(), images, gradients=False) == NONE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # three norms, whose first one's input needs no gradient
        ("gpt", counts((0, 3), 3, 2 + 3, 2 + 3, 2)),
        # the last of three has neither gamma nor beta
        ("groups", counts((0, 3), 3, 3 + 2, 3 + 2, 3)),
        # subtracts no mean: only dbeta, which nothing reads, needs the sum of its gradients
        ("rms", counts((0, 0), 1, 1, 1 + 1, 0)),
    ],
)
def test_other_norms_take_their_sums_on_the_host(taken, name, expected):
    assert taken(*make(name, models=MODELS)) == expected


def test_a_batch_norm_of_a_matrix_product_sums_its_values_itself(taken):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    rows = (torch.randn(12, 6),)
    assert taken(model, rows) == counts((0, 1), 1, 1, 1, 1)
    assert taken(model.eval(), rows) == NONE  # its statistics are constants, backward too
