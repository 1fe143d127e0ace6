"""The verifier refuses graphs that break a rule, and names the node."""

from dataclasses import replace

import pytest
import torch

from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.verifier import CHECKS, BrokenInvariant, verify
from tests.passes.programs import graph

_SPEC = ProductSpec(
    "fc",
    "fprop",
    (Operand("activation", 4, True), Operand("weight", 4, True, (0,))),
    1,
    True,
    0,
)


def _product(**meta):
    return graph(
        "a: i8[4, 8], b: i8[6, 8] -> y",
        "y = sq.shift_matmul(a, b, None, 1, False, True, 0)",
        y={"sq": _SPEC, **meta},
    )


def _break(module, name, **changes):
    node = next(n for n in module.graph.nodes if n.name == name)
    node.meta.update(changes)
    return module


BROKEN = {
    "products have a precision": graph(
        "x: f32[4, 8], w: f32[6, 8] -> y", "y = sq.matmul(x, w, None, False, True)"
    ),
    "products read integers": graph(
        "x: f32[4, 8], w: f32[6, 8] -> y", "y = sq.matmul(x, w, None, False, True)"
    ),
    "norms read integers": graph("x: f32[4, 8] -> n", "n = sq.layer_norm(x, None, None, 1e-5)"),
    "no dangling quantiser": graph(
        "x: f32[4, 8], r: f32[1, 1] -> x", "q = sq.quantize(x, r, 4, True)"
    ),
    "accumulators are bounded": _product(bound=2**31),
}


def test_every_check_has_a_broken_graph():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_graph_is_refused(check):
    verify(BROKEN[check], frozenset())
    with pytest.raises(BrokenInvariant):
        verify(BROKEN[check], frozenset({check}))


def test_operands_must_have_the_bits_of_the_product():
    module = _product(bound=1)
    for name in ("a", "b"):
        _break(module, name, bits=4, signed=True)
    verify(module, frozenset({"products read integers"}))
    _break(module, "b", bits=8)
    with pytest.raises(BrokenInvariant, match="expects b in 4 bits"):
        verify(module, frozenset({"products read integers"}))


@pytest.mark.parametrize(
    ("call", "bits", "groups", "message"),
    [
        ("a, b, e, 2, False, True, 0", 4, 3, "by 1 bits at most, its operand by 2"),
        ("a, b, None, 3, False, True, 0", 4, 3, "by 2 bits at most, its operand by 2"),
        ("a, b, e, 3, False, True, 0", 4, 1, "by 2 bits at most, its operand by 0"),
        ("a, b, e, 3, False, True, 0", 7, 3, "shifts 7 bits by 2"),
    ],
    ids=["another number of groups", "no exponent", "no groups", "too wide"],
)
def test_a_product_must_shift_as_its_operand_says(call, bits, groups, message):
    def product(call, bits, groups):
        operand = Operand("activation", bits, True, groups=groups, group_axis=1)
        made = graph(
            "a: i8[4, 8], b: i8[6, 8], e: i8[1, 8] -> y",
            f"y = sq.shift_matmul({call})",
            y={"sq": replace(_SPEC, operands=(operand, _SPEC.operands[1]))},
        )
        _break(made, "a", bits=bits, signed=True)
        return _break(made, "b", bits=4, signed=True)

    verify(product("a, b, e, 3, False, True, 0", 6, 3), frozenset({"products read integers"}))
    with pytest.raises(BrokenInvariant, match=message):
        verify(product(call, bits, groups), frozenset({"products read integers"}))


def test_shapes_and_dtypes_must_be_those_of_the_definition():
    module = _break(_product(), "y", val=torch.empty(4, 6, dtype=torch.int64, device="meta"))
    with pytest.raises(BrokenInvariant, match="by its definition torch.int32"):
        verify(module, frozenset())


def test_a_fused_quantiser_whose_integers_nothing_reads_dangles():
    module = graph(
        "x: f32[4, 8], rng: i64[4] -> scale",
        """
        fused = sq.shift_quantize(x, None, rng, [0], [1], 4, 4, 5)
        scale = fused[2]
        """,
    )
    with pytest.raises(BrokenInvariant, match="quantises what nothing reads"):
        verify(module, frozenset({"no dangling quantiser"}))
