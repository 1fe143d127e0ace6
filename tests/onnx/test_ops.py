"""Every op of the table as ONNX, run by onnxruntime: the bits of its reference."""

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sqcompile.onnx.emitters import FAMILIES
from sqcompile.onnx.table import EMITTERS
from sqcompile.ops import OPS
from tests.backends import cases_quantize
from tests.backends.cases_quantize import below_one
from tests.onnx.runs import one_call, run, same
from tests.ops.test_table import EXAMPLES, RNG

FLOAT_FORMS = {
    "matmul", "conv", "conv_input_grad", "conv_weight_grad",
    "batch_norm", "batch_norm_backward", "layer_norm", "layer_norm_backward",
    "group_norm", "group_norm_backward",
}  # fmt: skip
"""What passes replace: no graph that is exported has them."""
EVERY_EXAMPLE = {"shift_matmul", "quantize", "take_backward", "index_range", "ordered_sum"}
"""Ops whose emitters have forms that the last example does not show."""

CASES = [
    (name, arguments)
    for name, examples in EXAMPLES.items()
    if name not in FLOAT_FORMS
    for arguments in (examples if name in EVERY_EXAMPLE else examples[-1:])
]


def check(name: str, arguments: list) -> None:
    entry = OPS[f"sq::{name}"]
    leaves = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    got = run(one_call(entry.target, arguments), {f"x{i}": x for i, x in enumerate(leaves)})
    wanted = entry.reference(*arguments)
    wanted = [wanted] if isinstance(wanted, Tensor) else wanted
    for actual, expected in zip(got.values(), wanted, strict=True):
        assert same(actual, expected)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[name for name, _ in CASES])
def test_an_op_has_the_bits_of_its_reference(name: str, arguments: list) -> None:
    check(name, arguments)


def edges(*shape: int) -> Tensor:
    """Zeros of both signs, subnormal, tiny and huge numbers among normal ones."""
    some = [0.0, -0.0, 1e-40, -1e-40, 2.0**-101, 1e30, -1e30, 3.0, -3.0, 0.5, -0.5, 100.0, -100.0]
    count = torch.Size(shape).numel()
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(count))
    drawn[: len(some)] = torch.tensor(some)
    return drawn.view(shape)


STATE = torch.tensor([2**40 + 7, -1, 5, 9])
BELOW_ONE = [None, None, cases_quantize.RNG, 4, 1]
LONG = torch.randn(2, 2500, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("exp", [edges(4, 7)]),
        ("log", [edges(4, 7)]),
        ("expm1", [edges(4, 7)]),
        ("sigmoid", [edges(4, 7)]),
        ("gelu_slope", [edges(4, 7), edges(4, 7), False]),
        ("elu", [edges(4, 7), 1.5, 1.25, 0.5]),
        ("softmax", [torch.cat([edges(4, 7), torch.full((1, 7), -torch.inf)])]),
        ("amax", [edges(4, 7)]),
        ("quantize_stochastic", [edges(35, 5), torch.ones(1, 1), None, None, STATE, 4, 2**32 - 1]),
        ("quantize_stochastic", [below_one((35, 50)), torch.full((1, 1), 7.0), *BELOW_ONE]),
        ("shift_quantize", [edges(35, 5), None, RNG, [0], [1], 6, 3, 9]),
        ("quantize_rows", [torch.cat([edges(4, 7), torch.zeros(1, 7)]), 4, True]),
        ("ordered_sum", [LONG, [1], True]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_edges_too(name: str, arguments: list) -> None:
    check(name, arguments)


def test_integers_too_wide_for_a_byte_with_their_shifts_are_split_by_groups() -> None:
    """8 bits and 3 groups: 127 << 2 is no byte."""
    drawn = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (5, 40), generator=drawn).to(torch.int8)
    b = torch.randint(-127, 128, (40, 6), generator=drawn).to(torch.int8)
    exponent = torch.randint(0, 3, (1, 40), generator=drawn).to(torch.int8)
    check("shift_matmul", [a, b, exponent, 3, False, False, 0])
    check("shift_matmul", [a, b, exponent, 3, False, False, 7])


def test_bytes_that_kernels_without_vnni_would_saturate_are_given_unsigned() -> None:
    """Two products of 255 and 127 do not fit 16 bits; the second operand becomes unsigned."""
    a = torch.full((3, 64), 255, dtype=torch.uint8)
    b = torch.full((64, 2), 127, dtype=torch.int8)
    arguments = [a, b, None, 1, False, False, 0]
    check("shift_matmul", arguments)
    (product,) = [
        node
        for node in one_call(OPS["sq::shift_matmul"].target, arguments).graph.node
        if node.op_type == "MatMulInteger"
    ]
    assert len(product.input) == 4


def test_emitters_are_of_ops_that_exist() -> None:
    assert FAMILIES and all(isinstance(op, torch._ops.OpOverload) for op in EMITTERS)
