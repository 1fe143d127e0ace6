"""The choice between shifted operands and sorted groups: from the figures that it records."""

from dataclasses import replace
from itertools import product as every

import pytest

from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.vta.graph import choice, offload, table
from sqcompile.backends.vta.graph.fused import fused
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.backends.vta.program import product_program
from sqcompile.backends.vta.tiling import DRAM_LATENCY

BITS4 = ("ranges", ((-7, 7), (-7, 7)))


def matrices(a, b, exponent, transpose_b=False):
    n = b[-2] if transpose_b else b[-1]
    attributes = {"groups": 4, "transpose_a": False, "transpose_b": transpose_b, "k_chunk": 0}
    operands = {"a": a, "b": b, "exponent": exponent}
    return spec("sq::shift_matmul", operands, attributes, (*a[:-1], n))


def convolution(op, operands, result, groups=1):
    window = dict.fromkeys(("stride", "padding", "dilation"), (1, 1))
    attributes = {"shift_groups": 4, "groups": groups, "k_chunk": 0} | window
    return spec(op, operands, attributes, result)


def spec(op, operands, attributes, result):
    inputs = tuple((name, TensorSpec(shape, "int8")) for name, shape in operands.items())
    return KernelSpec(op, inputs, (*attributes.items(), BITS4), (TensorSpec(result, "int32"),))


def dgrad(outputs, groups=1):
    operands = {"g": (2, 8, 8, outputs), "w": (outputs, 16, 3, 3), "exponent": (1, 1, 1, outputs)}
    return convolution("sq::conv_dgrad", operands, (2, 8, 8, 16 * groups), groups)


PIXELS = {"g": (2, 8, 8, 64), "x": (2, 8, 8, 16), "exponent": (2, 8, 8, 1)}
PRODUCTS = {
    "dgrad": dgrad(64),
    "short dgrad": dgrad(8),
    "dgrad of channel groups": dgrad(64, groups=2),
    "few values": matrices((256, 16), (16, 64), (1, 16)),
    "many rows": matrices((64, 64), (64, 64), (1, 64)),
    "a batch": matrices((2, 64, 40), (2, 64, 40), (2, 1, 40), transpose_b=True),
    "rows": matrices((64, 40), (40, 40), (64, 1)),
    "pixels": convolution("sq::conv_wgrad", PIXELS, (64, 16, 3, 3)),
    "images": convolution("sq::conv_wgrad", PIXELS | {"exponent": (2, 1, 1, 1)}, (64, 16, 3, 3)),
}
WAYS = {
    "dgrad": "sorted",
    "short dgrad": "sorted",
    "dgrad of channel groups": "sorted",
    "few values": "shifted",
    "many rows": "sorted",
    "a batch": "sorted",
    "rows": "shifted",
    "pixels": "sorted",
    "images": "shifted",
}
"""On int4 elements."""


def made(name, hw):
    (found,) = offload.offload(PRODUCTS[name], PRESETS[hw])
    return found


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_choice_follows_from_the_figures_that_it_records(name):
    found = made(name, "pynq-int4-out32")
    one = found.choice
    assert one.way == WAYS[name]
    if one.one is not None:
        gains = one.one.cycles <= one.shifted * (1 - choice.LEAST_GAIN)
        assert one.way == ("sorted" if gains else "shifted")
        cases = (one.one, one.equal, one.most)
        assert all(case.cycles <= one.shifted for case in cases)
        assert [sum(case.counts) for case in cases] == sorted(sum(case.counts) for case in cases)
        assert not one.reason
    assert found.written_for == (4 if one.way == "sorted" else 0)


def test_products_whose_groups_are_no_planes_say_why():
    for name in ("rows", "images"):
        assert made(name, "pynq-int4").choice.reason == choice.OTHER_AXES


@pytest.mark.parametrize("name", ["dgrad", "many rows", "pixels"])
def test_shifts_that_fit_an_element_are_in_operands(name):
    found = made(name, "pynq").choice
    assert (found.way, found.reason, found.one) == ("shifted", choice.TOO_NARROW, None)


def fprop(channels, kernel):
    out = 16 + 2 - kernel + 1
    operands = {"x": (2, 16, 16, channels), "w": (16, channels, kernel, kernel)}
    operands["exponent"] = (1, 1, 1, channels)
    return convolution("sq::conv_fprop", operands, (2, out, out, 16))


def reader(op, product, result, **attributes):
    (accumulators,) = product.outputs
    return KernelSpec(op, (("self", accumulators),), tuple(attributes.items()), (result,))


@pytest.mark.parametrize("chip", ["pynq-int4", "pynq-int4-out32"])
@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (64, 1), (8, 1)])
def test_sums_are_in_the_programs_of_both_ways(channels, kernel, chip):
    """They count in the figures, and the choice may be another one than without them."""
    product = fprop(channels, kernel)
    sums = reader(
        table.SUM, product, TensorSpec((16,), "int64"), dim=(0, 1, 2), range=(-99999, 99999)
    )
    found = fused(product, sums, PRESETS[chip])
    one = found.choice
    gains = one.one.cycles <= one.shifted * (1 - choice.LEAST_GAIN)
    assert one.way == ("sorted" if gains else "shifted")
    asked = replace(offload.product_spec(product), sums=True)
    assert one.shifted == product_program(PRESETS[chip], asked).cycles(DRAM_LATENCY).total
    assert one.one.cycles == min(
        one.shifted,
        product_program(PRESETS[chip], replace(asked, counts=one.one.counts))
        .cycles(DRAM_LATENCY)
        .total,
    )
    assert found.written_for == (4 if gains else 0)


@pytest.mark.parametrize("name", ["many rows", "few values", "rows"])
def test_a_relu_is_in_the_programs_of_both_ways(name):
    product, chip = PRODUCTS[name], PRESETS["pynq-int4-out32"]
    found = fused(product, reader(table.RELU, product, product.outputs[0]), chip)
    one = found.choice
    asked = replace(offload.product_spec(product), relu=True)
    assert one.shifted == product_program(chip, asked).cycles(DRAM_LATENCY).total
    assert (one.one is None) is (name == "rows")
    gains = one.one and one.one.cycles <= one.shifted * (1 - choice.LEAST_GAIN)
    assert one.way == ("sorted" if gains else "shifted")
    assert found.written_for == (4 if gains else 0)


@pytest.mark.parametrize(("sets", "longest"), [(1, 14), (2, 8), (3, 5)])
def test_no_lengths_ask_for_more_planes_than_the_most(sets, longest):
    block, groups = 3, 3

    def planes(*lengths):
        return sum(-(-max(counts) // block) for counts in zip(*lengths, strict=True))

    for k in range(1, longest + 1):
        ways = [counts for counts in every(range(k + 1), repeat=groups) if sum(counts) == k]
        most = max(planes(*lengths) for lengths in every(ways, repeat=sets))
        assert planes(choice.most_planes(k, groups, sets)) == most
