"""The op table: every entry is documented, traces, and its meta function tells the truth."""

import inspect
from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from sqcompile.ops import OPS, Op, find, op
from sqcompile.ops.resample_table import adaptive, linear, table


def f32(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.25


def i8(*shape: int, low: int = -8, high: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=generator).to(torch.int8)


def u8(*shape: int) -> torch.Tensor:
    return i8(*shape, low=0, high=16).to(torch.uint8)


def i64(*shape: int, high: int) -> torch.Tensor:
    return i8(*shape, low=-1, high=high).long()


def zeros8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int8)


RNG = torch.tensor([1, 2, 3, 4])
WINDOW = [[2, 1], [1, 0], [1, 2], 2]  # stride, padding, dilation, groups
X, W, G = (2, 5, 6, 4), (6, 2, 3, 2), (2, 3, 4, 6)
POOL = [[2, 3], [2, 1], [1, 0]]  # kernel, stride, padding
FPROP = [u8(*X), i8(*W), *WINDOW, 0]
SHIFTS = [i8(1, 1, 1, 4, low=0, high=3), 3]  # exponent, shift groups of FPROP
DGRAD = [i8(*G), i8(*W), zeros8(1, 1, 1, 6), 3, list(X), *WINDOW, 0]
WGRAD = [i8(*G), u8(*X), zeros8(2, 3, 4, 1), 2, list(W), *WINDOW, 1]
BATCHED = [i8(3, 5, 4), i8(3, 6, 5), zeros8(3, 5, 1), 4, True, True, 2]
TABLE = table(linear(5, 9, None, False))
UNEVEN = table(adaptive(7, 3))
CLASSES = torch.tensor([1, 3, 0, 1, 2])
NORM = [1e-5, 16, 4, 0.3352]

EXAMPLES: dict[str, list[list[Any]]] = {
    "draws": [[RNG, 300, 2**32 - 1], [RNG, 0, 0]],
    "absmax": [[f32(3, 4, 5), None, [0, 2]], [f32(3, 4), f32(3, 1), [0]], [f32(3, 4), None, []]],
    "group_exponent": [[f32(1, 1, 1, 7), 4], [f32(3, 1), 1]],
    "quantize": [
        [f32(3, 4), f32(3, 1), 4, True],
        [f32(3, 4), f32(1, 1), 8, False],
        [f32(3, 4), f32(1, 1), 4, False, i8(1, 4, low=0, high=3)],
        [f32(2, 3, 4), f32(1, 1, 1), 6, True, i8(2, 1, 4, low=0, high=3), 3],
    ],
    "quantize_stochastic": [
        [f32(3, 4), f32(1, 1), f32(3, 1), zeros8(1, 4), RNG, 4, 5],
        [f32(2, 4, 5, 3), f32(1, 1, 1, 3), None, None, RNG, 8, 5],
    ],
    "quantize_rows": [[f32(3, 4), 4, True], [f32(2, 3, 1, 1), 8, False], [f32(3), 2, True]],
    "shift_quantize": [
        [f32(3, 4), f32(1, 4), RNG, [0], [1], 4, 4, 5],
        [f32(2, 3, 4, 5), None, RNG, [3], [0, 1, 2], 6, 3, 5],
        [f32(3, 4), None, RNG, [], [], 8, 1, 5],
    ],
    "shift_quantize_pair": [
        [f32(3, 4), f32(1, 4), RNG, True, 4, 4, 5],
        [f32(2, 3, 4, 5), None, RNG, False, 8, 1, 5],
    ],
    "clip_range": [[f32(3, 1), 0.5]],
    "quant_scale": [[f32(3, 1), 4, True, 4], [f32(1), 4, False, 1]],
    "group_scale": [[f32(1, 1), zeros8(1, 4), 4, False]],
    "outer_scale": [[f32(3, 1, 1)]],
    "shift_matmul": [
        [i8(3, 5), u8(5, 4), zeros8(1, 5), 4, False, False, 0],
        [i8(3, 5), u8(4, 5), None, 1, False, True, 0],
        BATCHED,
    ],
    "shift_matmul_dequantize": [
        [*BATCHED, [f32(3, 1, 1), f32(1, 4, 1)], f32(6), True],
        [*BATCHED, [f32(3, 1, 1)], None, False, f32(3, 4, 6), u8(9)],
        [*BATCHED, [f32(3, 1, 1)], None, False, None, None, [3, 2, 2, 6], [2, 0, 3, 1]],
        [i8(3, 5), u8(4, 5), None, 1, False, True, 0, [], None, False],
    ],
    "shift_matmul_dequantize_absmax": [
        [*BATCHED, [f32(3, 1, 1), f32(1, 4, 1)], f32(6), True],
        [*BATCHED, [f32(3, 1, 1)], f32(6), True, [3, 4, 2, 3], [1, 0, 2, 3]],
        [i8(3, 5), u8(4, 5), None, 1, False, True, 0, [], None, False],
    ],
    "dequantize": [[i8(3, 4).int(), [f32(3, 1)], f32(4)], [i8(2, 2).long().view(4), [], None]],
    "conv_fprop": [FPROP, [*FPROP, *SHIFTS]],
    "conv_fprop_sums": [FPROP, [*FPROP, *SHIFTS]],
    "conv_dgrad": [DGRAD],
    "conv_wgrad": [WGRAD],
    "conv_fprop_dequantize": [
        [*FPROP, [f32(1, 1, 1, 6)], f32(6), True],
        [*FPROP, [f32(1, 1, 1, 6)], f32(6), True, *SHIFTS],
    ],
    "conv_dgrad_dequantize": [
        [*DGRAD, [f32(2, 1, 1, 1)], None, False],
        [*DGRAD, [f32(2, 1, 1, 1)], None, False, f32(*X), u8((prod(X) + 7) // 8)],
    ],
    "conv_wgrad_dequantize": [[*WGRAD, [f32(6, 1, 1, 1), f32(1)], None, False]],
    "matmul": [
        [f32(3, 5), f32(5, 4), f32(4), False, False],
        [f32(2, 5, 3), f32(2, 4, 5), None, True, True],
    ],
    "conv": [[f32(*X), f32(*W), f32(6), *WINDOW], [f32(*X), f32(*W), None, *WINDOW]],
    "conv_input_grad": [[f32(*G), f32(*W), list(X), *WINDOW]],
    "conv_weight_grad": [[f32(*G), f32(*X), list(W), *WINDOW]],
    "l1_batch_norm": [
        [i8(*X).int(), f32(4), f32(4), f32(4), f32(4), *NORM],
        [i8(5, 4), f32(4), None, None, None, *NORM],
        [i8(5, 4).int(), f32(4), None, None, None, *NORM, i8(2, 2).long().view(4)],
    ],
    "l1_batch_norm_backward": [
        [i8(*X), f32(4), i8(*X), f32(4), f32(4), 0.3352],
        [i8(5, 4), f32(4), i8(5, 4), f32(4), None, 0.3352],
    ],
    "l1_batch_norm_relu_quantize": [
        [i8(*X).int(), f32(X[-1]), f32(X[-1]), f32(X[-1]), f32(X[-1]), *NORM, True, 4, False],
        [i8(5, 3).int(), f32(3), None, None, None, 1e-5, 16, 6, 0.1, False, 8, True],
        [i8(5, 3).int(), f32(3), *[None] * 3, *NORM, False, 8, True, i8(3).long(), 0.5],
        [i8(*X).int(), f32(4), *[f32(4)] * 3, *NORM, True, 4, False, i8(4).long(), 0.5, 3],
    ],
    "l1_batch_norm_add_relu": [
        [i8(*X).int(), f32(X[-1]), f32(X[-1]), f32(X[-1]), f32(X[-1]), *NORM, f32(*X), True],
        [i8(5, 3).int(), f32(3), None, None, None, 1e-5, 16, 6, 0.1, None, False],
        [i8(*X).int(), f32(4), *[None] * 3, *NORM, f32(*X), True, None, 3],
    ],
    "l1_batch_norm_packed_backward": [
        [i8(5, 3), f32(3), u8(8), f32(3), f32(3), 0.3352],
    ],
    "l1_batch_norm_backward_quantize": [
        [i8(*X), f32(4), i8(*X), f32(4), f32(4), 0.3352, f32(1, 1, 1, 4), RNG, True, 4, 4, 5],
        [i8(5, 3), f32(3), u8(8), f32(3), None, 0.3352, None, RNG, False, 8, 1, 5],
    ],
    "quantize_l1_layer_norm": [
        [f32(5, 4), 8, f32(4), f32(4), *NORM],
        [f32(5, 4), 6, None, None, 1e-5, 0, 6, 0.1, False],
    ],
    "quantize_l1_layer_norm_backward": [
        [f32(5, 4), f32(4), RNG, 8, 7, u8(10), f32(5, 1), 0.3352],
        [f32(5, 3), None, RNG, 6, 7, i8(5, 3), f32(5, 1), 0.1, False],
    ],
    "l1_layer_norm_packed_backward": [[i8(5, 4), f32(5, 1), u8(10), f32(5, 1), 0.3352]],
    "l1_layer_norm_affine_packed_backward": [[i8(5, 4), f32(1, 4), u8(10), 0.3352]],
    "l1_layer_norm": [
        [i8(5, 4), f32(5, 1), f32(4), f32(4), *NORM],
        [i8(5, 4), f32(5, 1), None, None, *NORM, False],
    ],
    "l1_layer_norm_backward": [
        [i8(5, 4), f32(5, 1), i8(5, 4), f32(5, 1), 0.3352],
        [i8(5, 4), f32(5, 1), i8(5, 4), f32(5, 1), 0.3352, False],
    ],
    "l1_layer_norm_affine_backward": [[i8(5, 4), f32(1, 4), i8(5, 4), 0.3352]],
    "l1_group_norm": [
        [i8(2, 5, 2, 3), f32(2, 1, 2, 1), f32(2, 3), f32(2, 3), *NORM],
        [i8(2, 5, 4, 1), f32(2, 1, 4, 1), None, None, *NORM],
    ],
    "l1_group_norm_backward": [
        [i8(2, 5, 2, 3), f32(2, 1, 2, 1), i8(2, 5, 2, 3), f32(2, 1, 2, 1), 0.3352],
    ],
    "l1_group_norm_packed_backward": [
        [i8(2, 5, 2, 3), f32(2, 1, 2, 1), u8(30), f32(2, 1, 2, 1), 0.3352],
    ],
    "ema": [[f32(4), f32(4), 0.1]],
    "sqrt": [[f32(4).abs()]],
    "exp": [[f32(3, 4)]],
    "expm1": [[f32(3, 4)]],
    "log": [[f32(3, 4)]],
    "erf": [[f32(3, 4)]],
    "tanh": [[f32(3, 4)]],
    "sigmoid": [[f32(3, 4)]],
    "gelu_cdf": [[f32(3, 4), False], [f32(3, 4), True]],
    "gelu_slope": [[f32(3, 4), f32(3, 4), False], [f32(3, 4), f32(3, 4), True]],
    "silu_slope": [[f32(3, 4), f32(3, 4)]],
    "hardswish_slope": [[f32(3, 4)]],
    "tanh_slope": [[f32(3, 4)]],
    "sigmoid_slope": [[f32(3, 4)]],
    "elu": [[f32(3, 4), 1.5, 1.25, 0.5]],
    "elu_slope": [[f32(3, 4), 1.5, 1.25, 0.5, False], [f32(3, 4), 1.5, 1.25, 1.0, True]],
    "quantize_slope": [[f32(3, 4), 203.0, -26, 229], [f32(3, 4), 11.0, -1, 12]],
    "slope_backward": [[f32(3, 4), u8(3, 4), -26, 1 / 203]],
    "softmax": [[f32(2, 3, 4)], [f32(3, 0)]],
    "softmax_backward": [[f32(2, 3, 4), f32(2, 3, 4)]],
    "softmax_quantize": [[f32(2, 3, 4), 6, False], [f32(3, 4), 8, True], [f32(3, 0), 4, False]],
    "softmax_quantized_backward": [[f32(2, 3, 4), u8(2, 3, 4), f32(2, 3, 1)]],
    "log_softmax": [[f32(3, 4)]],
    "log_softmax_backward": [[f32(3, 4), f32(3, 4)]],
    "nll_loss": [[f32(5, 4), CLASSES, f32(4), 1], [f32(5, 4), CLASSES, None, -100]],
    "nll_loss_backward": [[f32(5), CLASSES, f32(4), 1, 4], [f32(1), CLASSES, None, -100, 4]],
    "batch_norm": [[f32(*X), f32(4), f32(4), 1e-5], [f32(5, 4).double(), None, None, 1e-5]],
    "batch_norm_backward": [
        [f32(*X), f32(*X), f32(4), f32(4)],
        [f32(5, 4), f32(5, 4), f32(4), None],
    ],
    "layer_norm": [
        [f32(5, 4), f32(4), f32(4), 1e-5],
        [f32(5, 4).double(), None, None, 1e-5, False],
    ],
    "layer_norm_backward": [
        [f32(5, 4), f32(5, 4), f32(5, 1), f32(4)],
        [f32(5, 4), f32(5, 4), f32(5, 1), None, False],
    ],
    "group_norm": [
        [f32(2, 5, 3, 6), f32(6), f32(6), 2, 1e-5],
        [f32(2, 6).double(), None, None, 6, 1e-5],
    ],
    "group_norm_backward": [
        [f32(2, 5, 3, 6), f32(2, 15, 2, 3), f32(2, 1, 2, 1), f32(6)],
        [f32(2, 6), f32(2, 1, 6, 1), f32(2, 1, 6, 1), None],
    ],
    "max_pool2d": [[f32(*X), *POOL, [1, 2], True]],
    "max_pool2d_backward": [
        [f32(2, 3, 4, 4), u8(2, 3, 4, 4), list(X), *POOL, [1, 1]],
    ],
    "avg_pool2d": [[f32(*X), *POOL]],
    "avg_pool2d_backward": [[f32(2, 3, 4, 4), list(X), *POOL]],
    "ordered_sum": [[f32(3, 40, 5), [0, 2], False], [f32(3, 40), [1], True], [f32(3), [], False]],
    "take": [[f32(5, 4), i64(7, high=5), 0], [u8(2, 5, 3), i64(4, high=9).int(), 1]],
    "take_backward": [
        [f32(7, 4), i64(7, high=5), 0, 5, -1],
        [f32(2, 4, 3), i64(4, high=9).int(), 1, 5, 0],
    ],
    "index_range": [[i64(3, 5, high=9), None], [i64(7, high=9).int(), 2], [i64(0, high=1), 0]],
    "dropout_mask": [[RNG, [3, 50], 6554, 5], [RNG, [], 0, 2**32 - 1]],
    "resample": [
        [f32(2, 5, 3), 1, *TABLE, None, None],
        [f32(4, 7), 1, *UNEVEN, *TABLE],
    ],
    "amax": [[f32(3, 4)], [f32(3)]],
    "pack_int4": [[i8(3, 5)], [u8(2, 2)], [zeros8(0)]],
    "unpack_int4": [[u8(8), [3, 5], True], [u8(2), [2, 2], False]],
    "pack_mask": [[f32(3, 5) > 0.5], [f32(0) > 0.5]],
    "unpack_mask": [[u8(2), [3, 5]]],
}

CASES = [(name, case) for name, cases in EXAMPLES.items() for case in range(len(cases))]


def entry(name: str) -> Op:
    return OPS[f"sq::{name}"]


def tensors(outputs: Any) -> tuple[torch.Tensor, ...]:
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def fake(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if isinstance(value, list):
        return [fake(item, mode) for item in value]
    return value


def strided(value: Any) -> Any:
    """The same tensor with another layout in memory."""
    if isinstance(value, torch.Tensor) and value.dim() > 1:
        return value.transpose(0, 1).contiguous().transpose(0, 1)
    return [strided(item) for item in value] if isinstance(value, list) else value


def test_every_op_has_an_example() -> None:
    assert sorted(f"sq::{name}" for name in EXAMPLES) == sorted(OPS)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_entry_is_documented_and_complete(name: str) -> None:
    one = OPS[name]
    assert name.startswith("sq::") and one.name == name
    assert one.doc.endswith(".") and len(one.doc) > 15
    assert inspect.getdoc(one.reference)
    assert one.meta_function is not None
    assert one.target._schema.name == name and find(one.target) is one
    assert not one.target._schema.is_mutable


@pytest.mark.parametrize(("name", "case"), CASES)
def test_meta_agrees_with_the_reference(name: str, case: int) -> None:
    arguments = EXAMPLES[name][case]
    got = tensors(entry(name)(*arguments))
    with FakeTensorMode() as mode:
        shapes = tensors(entry(name)(*(fake(argument, mode) for argument in arguments)))
    assert len(got) == len(shapes)
    for real, shape in zip(got, shapes, strict=True):
        assert (real.shape, real.dtype, real.stride()) == (
            shape.shape,
            shape.dtype,
            shape.stride(),
        )
    described = tuple((tuple(real.shape), real.dtype) for real in got)
    assert entry(name).outputs(*arguments) == described
    assert entry(name).several == (len(got) > 1)


def test_outputs_are_asked_of_the_meta_function_once(scratch_name: str) -> None:
    asked: list[tuple[int, ...]] = []

    def repeat(x: torch.Tensor, times: float) -> torch.Tensor:
        return x.repeat(int(times))

    one = op(scratch_name, doc="Repeats.")(repeat)

    @one.meta
    def _(x: torch.Tensor, times: float) -> torch.Tensor:
        asked.append(tuple(x.shape))
        return x.new_empty(int(len(x) * times))

    for _ in range(2):
        assert one.outputs(f32(3), 2.0) == (((6,), torch.float32),)
        assert one.outputs(f32(3).double(), 2.0) == (((6,), torch.float64),)
        assert one.outputs(f32(3), 3.0) == (((9,), torch.float32),)
        assert one.outputs(f32(4), 3.0) == (((12,), torch.float32),)
    assert asked == [(3,), (3,), (3,), (4,)]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_torch_accepts_the_registration(name: str, case: int) -> None:
    opcheck(
        entry(name).target,
        tuple(EXAMPLES[name][case]),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_layout_in_memory_changes_nothing(name: str, case: int) -> None:
    arguments = EXAMPLES[name][case]
    expected = tensors(entry(name)(*arguments))
    got = tensors(entry(name)(*(strided(argument) for argument in arguments)))
    for one, other in zip(got, expected, strict=True):
        assert one.is_contiguous()
        if one.dtype.is_floating_point and name in FLOAT_FORMS:
            assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        else:
            assert one.equal(other)


FLOAT_FORMS = {
    "matmul", "conv", "conv_input_grad", "conv_weight_grad", "batch_norm", "batch_norm_backward",
    "layer_norm", "layer_norm_backward", "group_norm", "group_norm_backward",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "rest"),
    [
        ("batch_norm", X, [1e-5]),
        ("layer_norm", (5, 4), [1e-5]),
        ("layer_norm", (5, 4), [1e-5, False]),
        ("group_norm", X, [2, 1e-5]),
    ],
    ids=["batch", "layer", "rms", "group"],
)
def test_autograd_traces_through_the_norms(
    name: str, shape: tuple[int, ...], rest: list[Any]
) -> None:
    leaves = [v.requires_grad_() for v in (f32(*shape), f32(4), f32(4))]
    opcheck(entry(name).target, (*leaves, *rest))


@pytest.fixture
def scratch_name() -> Iterator[str]:
    yield "sq::only_in_this_test"
    OPS.pop("sq::only_in_this_test", None)


def test_a_second_registration_raises(scratch_name: str) -> None:
    def body(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    op(scratch_name, doc="Adds one.")(body)
    with pytest.raises(ValueError, match="one definition"):
        op(scratch_name, doc="Adds one again.")(body)
    with pytest.raises(ValueError, match="one definition"):
        op("sq::absmax", doc="Another absmax.")(body)


def test_find_knows_only_ops_of_the_table() -> None:
    assert find(torch.ops.aten.relu.default) is None
    assert find(torch.relu) is None and find("sq::absmax") is None
    assert find(torch.ops.sq.absmax.default) is OPS["sq::absmax"]
