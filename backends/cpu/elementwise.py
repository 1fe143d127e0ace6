"""Ops of one rounding per element, with broadcasting, and groups of them: a table of what an
element is.

Scalar arguments are constants of the kernel. In a group every value has a register of its own;
float products are fenced where the group also adds, because LLVM would round the two once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr
from sqcompile.backends.cpu.sinks import Bits, Largest, Stored
from sqcompile.backends.cpu.stream import Keep, Read, stream
from sqcompile.backends.cpu.sweep import broadcast, contiguous
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.fusion import Member
from sqcompile.backends.kernels import KernelSpec, Limit, TensorSpec, no_limit
from sqcompile.walks import common_axes, split_strides

Expression = Callable[..., Expr]
Constants = Callable[[KernelSpec], Sequence[float]]


@dataclass(frozen=True)
class Element:
    """What one element of an op is: `of(arguments)`, tensors and scalars converted to the dtype of
    the result, or to the one that torch promotes the operands to; absent arguments are None and a
    condition stays bool. `constants` follow the arguments, then the attributes called `options`,
    as Python values. `held`: `of` takes a `Keep` last, for values that it reads more than once.
    `multiplies` and `adds` say what LLVM could contract."""

    arguments: tuple[str, ...]
    of: Expression
    promoted: bool = False
    multiplies: bool = False
    adds: bool = False
    constants: Constants = lambda spec: ()
    options: tuple[str, ...] = ()
    held: bool = False

    def dtype(self, spec: KernelSpec) -> str:
        """The dtype that `of` computes in."""
        return _promoted(spec, self.arguments) if self.promoted else spec.outputs[0].dtype


ELEMENTS: dict[str, Element] = {}
UNPACK, PACK, ABSMAX = "sq::unpack_mask", "sq::pack_mask", "sq::absmax"
ENDINGS = {PACK, ABSMAX}


def _promoted(spec: KernelSpec, arguments: tuple[str, ...]) -> str:
    """The dtype that torch promotes the arguments to."""
    values: list[Any] = []
    for name, operand in spec.inputs:
        if name in arguments and isinstance(operand, TensorSpec):
            dtype = getattr(torch, operand.dtype)
            values.append(torch.empty(operand.shape, dtype=dtype, device="meta"))
    values += [value for name, value in spec.attributes if name in arguments and value is not None]
    return str(torch.result_type(values[0], values[-1]))[6:]


class _Value:
    """A member of a group at work: its constants made ahead, its element from operands."""

    def __init__(self, spec: KernelSpec, fenced: bool) -> None:
        self.element, self.fenced = ELEMENTS[spec.op], fenced
        self.dtype = self.element.dtype(spec)
        self.tensors = [name for name, _ in spec.tensors()]
        self.scalars = {
            name: self._constant(spec.get(name))
            for name in self.element.arguments
            if name not in self.tensors
        }
        self.more = [self._constant(value) for value in self.element.constants(spec)]
        self.more += [spec[name] for name in self.element.options]

    def _constant(self, value: Any) -> Expr:
        if value is None:
            return None
        return nest.literal(value) if self.dtype == "float32" else nest.const(value, self.dtype)

    def of(self, operands: Sequence[Expr], keep: Keep) -> Expr:
        """The element, from those of the tensor arguments."""
        given = self.scalars | {
            name: self._converted(name, value)
            for name, value in zip(self.tensors, operands, strict=True)
        }
        more = [*self.more, keep] if self.element.held else self.more
        value = self.element.of(*(given[name] for name in self.element.arguments), *more)
        return nest.fence(value) if self.fenced else value

    def _converted(self, name: str, value: Expr) -> Expr:
        same = nest.dtype_of(value) == self.dtype or name == "condition"
        return value if same else nest.cast(value, self.dtype)


def _pass(
    f: nest.Function, members: Sequence[Member], inputs: Sequence[Array], results: Sequence[int]
) -> None:
    """All members in one pass; `results` are the numbers of the values that are stored."""
    axes = common_axes([_walked(member.spec) for member in members])
    assert axes is not None
    used = [ELEMENTS[member.spec.op] for member in members]
    adds = len(members) > 1 and any(element.adds for element in used)
    values = [
        _Value(m.spec, adds and e.multiplies and m.spec.outputs[0].dtype == "float32")
        for m, e in zip(members, used, strict=True)
    ]
    numbers: dict[Read, int] = {}
    places: list[list[int | None]] = []
    for member in members:
        places.append([])
        shape = _walked(member.spec)
        for number, (_, operand) in zip(member.operands, member.spec.tensors(), strict=True):
            if number >= len(inputs):
                places[-1].append(None)
                continue
            packed = member.spec.op == UNPACK
            own = contiguous(shape) if packed else broadcast(shape, operand.shape)
            read = Read(inputs[number], tuple(split_strides(shape, own, axes)), packed)
            places[-1].append(numbers.setdefault(read, len(numbers)))

    def compute(elements: Sequence[Expr], keep: Keep) -> list[Expr]:
        known: dict[int, Expr] = {}
        held = {index: keep(one) for index, one in enumerate(elements)} if len(members) > 1 else {}
        for index, (member, value, reads) in enumerate(zip(members, values, places, strict=True)):
            operands: list[Expr] = []
            for position, (number, read) in enumerate(zip(member.operands, reads, strict=True)):
                one = known[number] if read is None else held.get(read, elements[read])
                # Two names for a value that meets itself: TVM takes x - x for 0, x == x for true.
                again = len(members) > 1 and number in member.operands[:position]
                operands.append(keep(one) if again else one)
            one = value.of(operands, keep)
            known[len(inputs) + index] = keep(one) if len(members) > 1 else one
        return [known[number] for number in results]

    made = [members[number - len(inputs)].spec for number in results]
    sinks = [_sink(spec, out) for spec, out in zip(made, f.outputs, strict=True)]
    stream(axes, list(numbers), sinks, compute)


def _walked(spec: KernelSpec) -> tuple[int, ...]:
    """The axes that a member loops over."""
    walked = spec.tensor("x" if spec.op == ABSMAX else "mask") if spec.op in ENDINGS else None
    return walked.shape if isinstance(walked, TensorSpec) else spec.outputs[0].shape


def _sink(spec: KernelSpec, out: Array) -> Stored:
    if spec.op == PACK:
        return Bits(out)
    if spec.op == ABSMAX:
        shape = spec.tensor("x").shape
        return Largest(out, len(spec["axes"]) < len(shape), shape[-1])
    return Stored(out)


def single(spec: KernelSpec) -> object:
    """One pass, in vectors: see sqcompile.backends.cpu.stream."""
    with nest.function(spec) as f:
        inputs = [f[name] for name, _ in spec.tensors()]
        _pass(f, [Member(spec, tuple(range(len(inputs))))], inputs, [len(inputs)])
    return f.result


@KERNELS.group
def group(spec: KernelSpec) -> object:
    """One pass, in vectors, whatever the number of ops."""
    with nest.function(spec) as f:
        _pass(f, spec["members"], [f[name] for name, _ in spec.tensors()], spec["results"])
    return f.result


def enter(*ops: str, limit: Limit = no_limit, **element: Any) -> None:
    """Put ops that compute the same into the table."""
    for op in ops:
        ELEMENTS[op] = Element(**element)
    KERNELS.elementwise(*ops, limit=limit)(single)


def _zero(x: Expr) -> Expr:
    return nest.zero(nest.dtype_of(x))


def _is_float(x: Expr) -> bool:
    return "float" in nest.dtype_of(x)


def _int32(x: Expr) -> Expr:
    return nest.bits_of(x, "int32")


def _negative(x: Expr) -> Expr:
    """-x; for floats a flipped sign bit, because 0 - x is not -x at zero."""
    if not _is_float(x):
        return _zero(x) - x
    return nest.bits_of(tirx.bitwise_xor(_int32(x), nest.const(-(2**31), "int32")), "float32")


def _magnitude(x: Expr) -> Expr:
    if not _is_float(x):
        return nest.select(x < _zero(x), _zero(x) - x, x)
    return nest.bits_of(tirx.bitwise_and(_int32(x), nest.const(0x7FFFFFFF, "int32")), "float32")


def _clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """NaN stays, and so does -0.0 at a limit of 0.0, as in torch."""
    raised = x if low is None else nest.select(x < low, low, x)
    return raised if high is None else nest.select(raised > high, high, raised)


def _hardtanh_backward(g: Expr, x: Expr, low: Expr, high: Expr) -> Expr:
    return nest.select(tirx.any(x <= low, x >= high), _zero(g), g)


def _sign(x: Expr) -> Expr:
    dtype, zero = nest.dtype_of(x), _zero(x)
    one = nest.const(1, dtype)
    return nest.select(x > zero, one, nest.select(x < zero, nest.const(-1, dtype), zero))


def _truth(x: Expr) -> Expr:
    """x != 0; by its bits for a float, because TVM's comparison is false for NaN."""
    if nest.dtype_of(x) == "bool":
        return x
    bits = tirx.bitwise_and(_int32(x), nest.const(0x7FFFFFFF, "int32")) if _is_float(x) else x
    return tirx.NE(bits, _zero(bits))


def _not(condition: Expr) -> Expr:
    """TVM would turn the negation of a comparison into another one, which NaN does not pass."""
    flipped = tirx.bitwise_xor(nest.cast(condition, "uint8"), nest.const(1, "uint8"))
    return tirx.NE(flipped, nest.zero("uint8"))


def _scaled(spec: KernelSpec) -> str:
    return "" if spec["alpha"] == 1 else f"alpha = {spec['alpha']}; only 1 has a kernel"


def _to_integers(spec: KernelSpec) -> str:
    source, result = spec.tensor("self").dtype, spec.outputs[0].dtype
    floats = source == "float32" != result and result != "bool"
    return "float to integer conversion" if floats or "float64" in (source, result) else ""


_PAIR: dict[str, Any] = {"arguments": ("self", "other")}
_ONE: dict[str, Any] = {"arguments": ("self",)}

for _name, _of in {"add": lambda a, b: a + b, "sub": lambda a, b: a - b}.items():
    enter(
        f"aten::{_name}.Tensor", f"aten::{_name}.Scalar", limit=_scaled, of=_of, adds=True, **_PAIR
    )

for _name, _of in {"mul": lambda a, b: a * b, "div": lambda a, b: a / b}.items():
    # A division by a power of two is a product to LLVM.
    enter(f"aten::{_name}.Tensor", f"aten::{_name}.Scalar", of=_of, multiplies=True, **_PAIR)

for _name, _of in {
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": tirx.EQ,
    "ne": lambda a, b: _not(tirx.EQ(a, b)),
}.items():
    enter(f"aten::{_name}.Tensor", f"aten::{_name}.Scalar", of=_of, promoted=True, **_PAIR)

enter(
    "aten::logical_and.default",
    of=lambda a, b: tirx.And(_truth(a), _truth(b)),
    promoted=True,
    **_PAIR,
)
enter(
    "aten::logical_or.default",
    of=lambda a, b: tirx.Or(_truth(a), _truth(b)),
    promoted=True,
    **_PAIR,
)
enter("aten::logical_not.default", of=lambda x: _not(_truth(x)), promoted=True, **_ONE)
enter("aten::sgn.default", "aten::sign.default", of=_sign, **_ONE)
enter("aten::neg.default", of=_negative, **_ONE)
enter("aten::abs.default", of=_magnitude, **_ONE)
enter("sq::sqrt", of=tirx.sqrt, arguments=("x",))
enter("aten::clone.default", "aten::expand.default", of=lambda x: x, **_ONE)
enter("aten::_to_copy.default", limit=_to_integers, of=lambda x: x, **_ONE)
enter("aten::full.default", of=lambda x: x, arguments=("fill_value",))
enter("aten::relu.default", of=lambda x: nest.select(x < _zero(x), _zero(x), x), **_ONE)
enter(
    "aten::threshold_backward.default",
    of=lambda g, x, limit: nest.select(x <= limit, _zero(g), g),
    arguments=("grad_output", "self", "threshold"),
)
enter("sq::clip_range", of=lambda r, share: r * share, arguments=("r", "share"), multiplies=True)
enter(
    "aten::leaky_relu.default",
    of=lambda x, slope: nest.select(x > _zero(x), x, x * slope),
    arguments=("self", "negative_slope"),
    multiplies=True,
)
enter(
    "aten::leaky_relu_backward.default",
    of=lambda g, x, slope: nest.select(x > _zero(x), g, g * slope),
    arguments=("grad_output", "self", "negative_slope"),
    multiplies=True,
)
enter("aten::hardtanh.default", of=_clamp, arguments=("self", "min_val", "max_val"))
enter(
    "aten::hardtanh_backward.default",
    of=_hardtanh_backward,
    arguments=("grad_output", "self", "min_val", "max_val"),
)
enter("aten::clamp.default", of=_clamp, arguments=("self", "min", "max"))
enter("aten::reciprocal.default", of=lambda x: nest.const(1, nest.dtype_of(x)) / x, **_ONE)
enter(
    "aten::where.self",
    "aten::where.ScalarOther",
    "aten::where.Scalar",
    of=nest.select,
    arguments=("condition", "self", "other"),
)
enter(
    "sq::ema",
    of=lambda old, new, kept, added: nest.fence(old * kept) + nest.fence(new * added),
    arguments=("old", "new"),
    constants=lambda spec: (1.0 - spec["momentum"], spec["momentum"]),
    adds=True,
)


def _whole_vectors(shape: Sequence[int]) -> bool:
    """Whether packed masks of this shape are read and written by whole bytes and vectors."""
    return bool(shape) and shape[-1] % nest.LANES == 0


def _joint_maximum(spec: KernelSpec) -> bool:
    """Of all elements, or of each place along the last axis."""
    x, axes = spec.tensor("x"), sorted(spec["axes"])
    rank = len(x.shape)
    joint = axes in (list(range(rank)), list(range(rank - 1)))
    return joint and x.size > 0 and spec.tensor("outer") is None


# These have kernels of their own; in a group they save a pass over memory.
ELEMENTS[UNPACK] = Element(("packed",), lambda bit: bit)
ELEMENTS[PACK] = Element(("mask",), lambda bit: bit)
ELEMENTS[ABSMAX] = Element(
    ("x",), lambda x: tirx.bitwise_and(_int32(x), nest.const(0x7FFFFFFF, "int32"))
)
KERNELS.joins(UNPACK, lambda spec: _whole_vectors(spec.outputs[0].shape), one_shape=True)
KERNELS.ends(PACK, lambda spec: _whole_vectors(spec.tensor("mask").shape))
KERNELS.ends(ABSMAX, _joint_maximum)
