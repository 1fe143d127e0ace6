"""A small model of every ONNX op that is read: inputs, constants, attributes."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Case = tuple[list[np.ndarray], list[np.ndarray | None], dict[str, Any]]
"""Inputs, initialisers behind them (None is left out), attributes. Three keys are no attributes:
`outputs` counts them, `table` is a weight before all, `order` has the names of the inputs."""


def f(*shape: int) -> np.ndarray:
    """Distinct floats around zero."""
    count = int(np.prod(shape))
    values = (np.arange(count) * 7 % 11 - 5) / 4 + np.arange(count) / 97
    return values.reshape(shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def i32(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def one(value: float, rank: int = 0) -> np.ndarray:
    """A float of `rank` axes."""
    return np.full([1] * rank, value, np.float32)


X, IMAGE = f(3, 4), f(2, 4, 5, 6)
POSITIVE = np.abs(X) + np.float32(0.5)
BOOLS = X > 0
NORM = [f(4) + np.float32(2), f(4), f(4), np.abs(f(4)) + np.float32(1)]

CASES: dict[str, list[Case]] = {
    **{op: [([X, X[::-1].copy()], [], {})] for op in ("Add", "Sub", "Mul")},
    **{
        op: [
            ([X, X[::-1].copy()], [one(0.25)], {}),
            ([X], [one(0.5)], {"order": ["w0", "x0"]}),
            ([f(4)], [one(1, rank=3)], {}),
        ]
        for op in ("Min", "Max")
    },
    **{
        op: [([X, X[::-1].copy()], [], {})]
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    },
    **{
        op: [([BOOLS, ~BOOLS[::-1]], [], {}), ([BOOLS], [np.array(True)], {})]
        for op in ("And", "Or", "Xor")
    },
    **{
        op: [([X], [], {})]
        for op in (
            "Identity", "Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu", "HardSwish",
            "Softplus", "Mish", "Sign", "Floor", "Ceil", "Sin", "Cos", "LeakyRelu", "Elu", "Celu",
            "Selu", "Softmax", "LogSoftmax", "ReduceMean", "ReduceMax", "ReduceMin", "Shape",
            "Size",
        )
    },
    **{op: [([POSITIVE], [], {})] for op in ("Log", "Sqrt", "Reciprocal")},
    "ReduceSum": [([X], [], {}), ([X.astype(np.int32)], [i(1)], {})],
    "Not": [([BOOLS], [], {})],
    "HardSigmoid": [([X], [], {"alpha": 1 / 6})],
    "Gelu": [([X], [], {}), ([X], [], {"approximate": "tanh"})],
    "Swish": [],
    "Div": [([X, POSITIVE], [], {}), ([i(7, -7, 5)], [i(2)], {})],
    "Pow": [
        ([X], [np.float32(3)], {}),
        ([POSITIVE], [np.float32(0.5)], {}),
        ([i(1, 2, 9)], [np.float32(0.5)], {}),
        ([f(4)], [one(2, rank=2)], {}),
        ([X], [one(2)], {"order": ["w0", "x0"]}),
    ],
    "Clip": [([X], [np.float32(-0.5), np.float32(0.75)], {})],
    "Where": [
        ([BOOLS, X, POSITIVE], [], {}),
        ([BOOLS], [i32(1).reshape(()), i32(0).reshape(())], {}),
        ([X, POSITIVE], [np.array(True)], {"order": ["w0", "x0", "x1"]}),
    ],
    "Cast": [([X], [], {"to": TensorProto.INT64})],
    "CastLike": [([i(1, 2), f(2)], [], {})],
    "Einsum": [([X, X], [], {"equation": "ij,kj->ik"})],
    "Dropout": [([X], [np.float32(0.25)], {})],
    "Constant": [([], [], {"value": numpy_helper.from_array(X)})],
    "ConstantOfShape": [([], [i(2, 3)], {}), ([], [i()], {})],
    "Range": [
        ([], [np.int64(1), np.int64(9), np.int64(2)], {}),
        ([], [np.int64(5), np.int64(1), np.int64(1)], {}),
    ],
    "Reshape": [([X], [i(2, -1)], {}), ([X], [i(0, 2, 2)], {})],
    "Flatten": [([IMAGE], [], {}), ([IMAGE], [], {"axis": 2}), ([f(5)], [], {})],
    "Transpose": [([IMAGE], [], {"perm": [0, 2, 3, 1]}), ([X], [], {})],
    "Squeeze": [([f(3, 1, 4)], [i(1)], {})],
    "Unsqueeze": [([X], [i(0, 3)], {})],
    "Concat": [([X, X], [], {"axis": 1})],
    "Split": [([X], [i(1, 3)], {"axis": 1, "outputs": 2})],
    "Slice": [
        ([IMAGE], [i(1, 0), i(5, 9), i(2, 3), i(2, 1)], {}),
        ([X], [i(-2), i(99)], {}),
        ([IMAGE], [i(0, 0), i(2, 4), None, i(1, 2)], {}),
    ],
    "Gather": [
        ([i(2, 0)], [], {"table": f(5, 4)}),
        ([X], [np.int64(-1)], {"axis": 1}),
        ([IMAGE], [np.array([[0, -1]])], {"axis": 2}),
    ],
    "Expand": [([f(3, 1)], [i(2, 3, 4)], {})],
    "Pad": [([X], [i(1, 0, 0, 2), np.float32(0.5)], {})],
    "Trilu": [([f(4, 4)], [], {"upper": 0})],
    "Conv": [
        ([IMAGE], [f(6, 2, 3, 3), f(6)], {"group": 2, "strides": [2, 1], "pads": [1, 2, 1, 2]}),
        ([IMAGE], [f(3, 4, 3, 2)], {"pads": [0, 1, 1, 0]}),
        ([IMAGE], [f(3, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ([f(2, 4, 7)], [f(3, 4, 3)], {"dilations": [2]}),
    ],
    "Gemm": [
        ([X], [f(5, 4), f(5)], {"transB": 1}),
        ([X], [f(4, 5)], {}),
        ([X], [f(3, 5), f(5)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ],
    "MatMul": [([X], [f(4, 6)], {}), ([f(2, 3, 4), f(2, 4, 5)], [], {})],
    "BatchNormalization": [([IMAGE], NORM, {}), ([X], NORM, {})],
    "LayerNormalization": [([X], NORM[:2], {}), ([X], NORM[:1], {"epsilon": 1e-3})],
    "RMSNormalization": [([X], NORM[:1], {})],
    "GroupNormalization": [([IMAGE], NORM[:2], {"num_groups": 2})],
    "InstanceNormalization": [([IMAGE], NORM[:2], {})],
    "MaxPool": [
        ([IMAGE], [], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
        ([IMAGE], [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
        (
            [IMAGE],
            [],
            {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1},
        ),
        ([IMAGE], [], {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    ],
    "AveragePool": [([IMAGE], [], {"kernel_shape": [2, 2], "count_include_pad": 1})],
    "GlobalAveragePool": [([IMAGE], [], {})],
    "GlobalMaxPool": [([IMAGE], [], {}), ([f(2, 5, 5)], [], {}), ([f(2, 3, 2, 2, 2)], [], {})],
    "Resize": [
        (
            [IMAGE],
            [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        ),
        ([IMAGE], [None, None, i(12, 10)], {"mode": "linear", "axes": [3, 2]}),
    ],
}  # fmt: skip

REFUSED: dict[str, tuple[str, Case]] = {
    "gamma other than": ("Selu", ([X], [], {"gamma": 2.0})),
    "to FLOAT8E4M3FN": ("Cast", ([X], [], {"to": TensorProto.FLOAT8E4M3FN})),
    "a mean of integers": ("ReduceMean", ([i32(1, 2)], [], {})),
    "an index beyond the 3 of axis 0": ("Gather", ([X], [i(7)], {})),
    "diagonals that depend": ("Trilu", ([X, np.int64(1)], [], {})),
    "a number that depends": ("Pad", ([X, one(3)], [i(0, 1, 0, 1)], {"order": ["x0", "w0", "x1"]})),
    "its output 2 is read": ("LayerNormalization", ([X], NORM[:2], {"outputs": 2})),
    "more than half a window": (
        "AveragePool",
        ([IMAGE], [], {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    ),
    "other axes than the last two": (
        "Resize",
        ([IMAGE], [None, np.array([1, 2, 2, 1], np.float32)], {"mode": "linear"}),
    ),
    "antialias": (
        "Resize",
        ([IMAGE], [None, None, i(2, 4, 2, 3)], {"mode": "linear", "antialias": 1}),
    ),
    "keep_aspect_ratio_policy not_larger": (
        "Resize",
        (
            [IMAGE],
            [None, None, i(2, 4, 10, 10)],
            {"mode": "linear", "keep_aspect_ratio_policy": "not_larger"},
        ),
    ),
    "pytorch_half_pixel to one row": (
        "Resize",
        (
            [IMAGE],
            [None, None, i(2, 4, 1, 3)],
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        ),
    ),
}
"""What a message says, of a node that onnxruntime reads and this does not."""


def model(op: str, case: Case, opset: int = 23) -> onnx.ModelProto:
    """One node: inputs x0, x1, ..., initialisers w0, w1, ..."""
    inputs, constants, attributes = case
    attributes = dict(attributes)
    count = attributes.pop("outputs", 1)
    table = attributes.pop("table", None)
    order = attributes.pop("order", None)
    named = {f"w{k}": value for k, value in enumerate(constants) if value is not None}
    rest = [f"w{k}" if value is not None else "" for k, value in enumerate(constants)]
    names = order or [*(f"x{k}" for k in range(len(inputs))), *rest]
    if table is not None:
        named["embedding.weight"] = table
        names.insert(0, "embedding.weight")
    outputs = [f"y{k}" for k in range(count)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, name=f"/part/{op}", **attributes)],
        "one",
        [
            helper.make_tensor_value_info(
                f"x{k}", helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for k, value in enumerate(inputs)
        ],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in named.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    made = onnx.shape_inference.infer_shapes(made)
    for output in made.graph.output:
        if not output.type.WhichOneof("value"):  # inference does not know this op
            output.type.CopyFrom(made.graph.input[0].type)
    return made
