"""Products that write into their part of a concatenation, compiled and run."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from sqcompile.backends.kernels import INTO
from sqcompile.ops import OPS
from tests.backends.graphs import Writer
from tests.backends.test_lower import check, compiled

aten = torch.ops.aten
PRODUCT = OPS["sq::shift_matmul_dequantize"].target
BATCHES, HEADS, TOKENS, WIDTH = 2, 3, 7, 16


class Attention:
    """Three products of heads and what is between them and their concatenation."""

    def __init__(self) -> None:
        self.w, self.given, self.nodes = Writer(), [], []
        size = (BATCHES * HEADS, TOKENS, TOKENS)
        generator = torch.Generator().manual_seed(1)
        for name, shape in (("p", size), ("v", (*size[:2], WIDTH))):
            self.add(name, torch.randint(-7, 8, shape, generator=generator, dtype=torch.int8))
        self.add("s", torch.rand(size[0], 1, 1, generator=generator))

    def add(self, name: str, value: Tensor) -> None:
        self.nodes.append(self.w.input(name, value))
        self.given.append(value)

    def product(self, transpose: bool) -> fx.Node:
        """Heads side by side: (BATCHES, TOKENS, HEADS * WIDTH)."""
        p, v, s = self.nodes[:3]
        place = [[BATCHES, HEADS, TOKENS, WIDTH], [0, 2, 1, 3]]
        args: list[Any] = [p, v, None, 1, transpose, False, 0, [s], None, False, None, None]
        y = self.w.call(PRODUCT, *args, *place)
        return self.w.call(aten.view.default, y, [BATCHES, TOKENS, HEADS * WIDTH])

    def turned(self) -> fx.Node:
        """The same of a product whose columns lie side by side."""
        p, v, s = self.nodes[:3]
        place = [[BATCHES, HEADS, WIDTH, TOKENS], [0, 3, 1, 2]]
        args: list[Any] = [v, p, None, 1, True, False, 0, [s], None, False, None, None]
        y = self.w.call(PRODUCT, *args, *place)
        return self.w.call(aten.view.default, y, [BATCHES, TOKENS, HEADS * WIDTH])

    def between(self, reads: fx.Node) -> fx.Node:
        """A value of the concatenation's size that another kernel makes."""
        wide = self.w.call(aten.expand.default, reads, [3 * BATCHES, TOKENS, HEADS * WIDTH])
        return self.w.call(aten.mul.Tensor, wide, wide)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_products_write_into_their_parts(axis: int) -> None:
    a = Attention()
    parts = [a.product(False), a.turned(), a.product(True)]
    whole = a.w.call(aten.cat.default, parts, axis)
    graph = a.w.module(a.w.call(aten.neg.default, whole))
    check(graph, *a.given)
    _, kernels = compiled(graph)
    assert [record.op for record in kernels if "cat" in record.op] == []
    starts = [record.spec[INTO][2] for record in kernels if record.spec.get(INTO)]
    assert len(starts) == 3


def test_a_concatenation_outlives_what_is_computed_between_its_parts() -> None:
    """Memory is planned: values of its size come and go before, between and after the parts."""
    a = Attention()
    a.add("x", torch.randn(1, TOKENS, HEADS * WIDTH))
    x, results = a.nodes[-1], []
    for round_ in range(3):
        first = a.product(False)
        results.append(a.between(x))
        second = a.turned()
        x = a.w.call(aten.slice.Tensor, results[-1], 0, round_, round_ + 1)
        third = a.product(True)
        whole = a.w.call(aten.cat.default, [first, second, third], 0)
        results.append(a.w.call(aten.add.Tensor, whole, a.between(x)))
    check(a.w.module(*results[1::2], results[-2]), *a.given)


@pytest.mark.parametrize("case", ["read again", "twice", "not a product", "across a border"])
def test_other_concatenations_are_copies(case: str) -> None:
    a = Attention()
    a.add("x", torch.randn(BATCHES, TOKENS, HEADS * WIDTH))
    first, outputs = a.product(False), []
    second = {"twice": first, "not a product": a.nodes[-1]}.get(case)
    second = a.turned() if second is None else second
    parts, axis = [first, second], 2
    if case == "read again":
        outputs.append(a.w.call(aten.neg.default, second))
    if case == "across a border":
        parts = [a.w.call(aten.view.default, one, [6, TOKENS * WIDTH]) for one in parts]
        axis = 1
    outputs.append(a.w.call(aten.cat.default, parts, axis))
    graph = a.w.module(*outputs)
    check(graph, *a.given)
    _, kernels = compiled(graph)
    assert not any(record.spec.get(INTO) for record in kernels)
