"""Ops of one rounding per element, with broadcasting, and groups of them: a table of what an
element is, for the kernels of every target.

Scalar arguments are constants of the kernel. In a group every value has a register of its own;
float products are fenced where the group also adds, because a compiler may round the two once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tvm import tirx

from sqcompile.backends import builder
from sqcompile.backends.builder import Array, Expr
from sqcompile.backends.exact import fence, literal
from sqcompile.backends.functions import Keep
from sqcompile.backends.fusion import Member
from sqcompile.backends.kernels import KernelSpec, Limit, TensorSpec, no_limit
from sqcompile.backends.strides import broadcast, contiguous
from sqcompile.walks import common_axes, split_strides

Compute = Callable[[Sequence[Expr], Keep], Sequence[Expr]]
"""compute(value of each read, keep) -> value of each output, for one element. keep(value) holds a
value in a register under a name of its own: TVM's simplifier, which is not exact for floats, does
not look through it."""
Expression = Callable[..., Expr]
Constants = Callable[[KernelSpec], Sequence[float]]


@dataclass(frozen=True)
class Element:
    """What one element of an op is: `of(arguments)`, tensors and scalars converted to the dtype of
    the result, or to the one that torch promotes the operands to; absent arguments are None and a
    condition stays bool. `constants` follow the arguments, then the attributes called `options`,
    as Python values. `held`: `of` takes a `Keep` last, for values that it reads more than once.
    `multiplies` and `adds` say what a
    compiler could contract; `limit` tells which specs have no kernel."""

    arguments: tuple[str, ...]
    of: Expression
    promoted: bool = False
    multiplies: bool = False
    adds: bool = False
    constants: Constants = lambda spec: ()
    options: tuple[str, ...] = ()
    held: bool = False
    limit: Limit = no_limit

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
        return literal(value) if self.dtype == "float32" else builder.const(value, self.dtype)

    def of(self, operands: Sequence[Expr], keep: Keep) -> Expr:
        """The element, from those of the tensor arguments."""
        given = self.scalars | {
            name: self._converted(name, value)
            for name, value in zip(self.tensors, operands, strict=True)
        }
        more = [*self.more, keep] if self.element.held else self.more
        value = self.element.of(*(given[name] for name in self.element.arguments), *more)
        return fence(value) if self.fenced else value

    def _converted(self, name: str, value: Expr) -> Expr:
        same = builder.dtype_of(value) == self.dtype or name == "condition"
        return value if same else builder.cast(value, self.dtype)


@dataclass(frozen=True)
class Read:
    """An operand and the strides with which the axes of the result walk it; `packed`: a mask of
    eight elements to a byte, which they walk as they do the result."""

    array: Array
    strides: tuple[int, ...]
    packed: bool = False


@dataclass(frozen=True)
class Pass:
    """Members in one pass over `axes`: what is read, and the members' specs whose results are
    stored. `start` makes the constants where it is called and gives what an element of each result
    is from an element of each read."""

    axes: list[int]
    reads: list[Read]
    results: list[KernelSpec]
    start: Callable[[], Compute]


def one_pass(members: Sequence[Member], inputs: Sequence[Array], results: Sequence[int]) -> Pass:
    """All members in one pass; `results` are the numbers of the values that are stored."""
    axes = common_axes([walked(member.spec) for member in members])
    assert axes is not None
    numbers: dict[Read, int] = {}
    places: list[list[int | None]] = []
    for member in members:
        places.append([])
        shape = walked(member.spec)
        for number, (_, operand) in zip(member.operands, member.spec.tensors(), strict=True):
            if number >= len(inputs):
                places[-1].append(None)
                continue
            packed = member.spec.op == UNPACK
            own = contiguous(shape) if packed else broadcast(shape, operand.shape)
            read = Read(inputs[number], tuple(split_strides(shape, own, axes)), packed)
            places[-1].append(numbers.setdefault(read, len(numbers)))

    made = [members[number - len(inputs)].spec for number in results]
    return Pass(axes, list(numbers), made, partial(_compute, members, len(inputs), places, results))


def _compute(
    members: Sequence[Member],
    inputs: int,
    places: Sequence[Sequence[int | None]],
    results: Sequence[int],
) -> Compute:
    """Make the constants, then tell how to compute; `places` are the reads of each member."""
    used = [ELEMENTS[member.spec.op] for member in members]
    adds = len(members) > 1 and any(element.adds for element in used)
    values = [
        _Value(m.spec, adds and e.multiplies and m.spec.outputs[0].dtype == "float32")
        for m, e in zip(members, used, strict=True)
    ]

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
            known[inputs + index] = keep(one) if len(members) > 1 else one
        return [known[number] for number in results]

    return compute


def walked(spec: KernelSpec) -> tuple[int, ...]:
    """The axes that a member loops over."""
    walked = spec.tensor("x" if spec.op == ABSMAX else "mask") if spec.op in ENDINGS else None
    return walked.shape if isinstance(walked, TensorSpec) else spec.outputs[0].shape


def enter(*ops: str, **element: Any) -> None:
    """Put ops that compute the same into the table."""
    for op in ops:
        ELEMENTS[op] = Element(**element)


def _zero(x: Expr) -> Expr:
    return builder.zero(builder.dtype_of(x))


def _is_float(x: Expr) -> bool:
    return "float" in builder.dtype_of(x)


def _int32(x: Expr) -> Expr:
    return builder.bits_of(x, "int32")


def _negative(x: Expr) -> Expr:
    """-x; for floats a flipped sign bit, because 0 - x is not -x at zero."""
    if not _is_float(x):
        return _zero(x) - x
    return builder.bits_of(tirx.bitwise_xor(_int32(x), builder.const(-(2**31), "int32")), "float32")


def _magnitude(x: Expr) -> Expr:
    if not _is_float(x):
        return builder.select(x < _zero(x), _zero(x) - x, x)
    return builder.bits_of(
        tirx.bitwise_and(_int32(x), builder.const(0x7FFFFFFF, "int32")), "float32"
    )


def _clamp(x: Expr, low: Expr, high: Expr) -> Expr:
    """NaN stays, and so does -0.0 at a limit of 0.0, as in torch."""
    raised = x if low is None else builder.select(x < low, low, x)
    return raised if high is None else builder.select(raised > high, high, raised)


def _hardtanh_backward(g: Expr, x: Expr, low: Expr, high: Expr) -> Expr:
    return builder.select(tirx.any(x <= low, x >= high), _zero(g), g)


def _sign(x: Expr) -> Expr:
    dtype, zero = builder.dtype_of(x), _zero(x)
    one = builder.const(1, dtype)
    return builder.select(x > zero, one, builder.select(x < zero, builder.const(-1, dtype), zero))


def _truth(x: Expr) -> Expr:
    """x != 0; by its bits for a float, because TVM's comparison is false for NaN."""
    if builder.dtype_of(x) == "bool":
        return x
    bits = tirx.bitwise_and(_int32(x), builder.const(0x7FFFFFFF, "int32")) if _is_float(x) else x
    return tirx.NE(bits, _zero(bits))


def _not(condition: Expr) -> Expr:
    """TVM would turn the negation of a comparison into another one, which NaN does not pass."""
    flipped = tirx.bitwise_xor(builder.cast(condition, "uint8"), builder.const(1, "uint8"))
    return tirx.NE(flipped, builder.zero("uint8"))


def _scaled(spec: KernelSpec) -> str:
    return "" if spec["alpha"] == 1 else f"alpha = {spec['alpha']}; only 1 has a kernel"


_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def _no_conversion(spec: KernelSpec) -> str:
    source, result = spec.tensor("self").dtype, spec.outputs[0].dtype
    if source in _OTHER_FLOATS or result in _OTHER_FLOATS:
        return f"a conversion from {source} to {result}; floats are float32 in a step"
    return "float to integer conversion" if source == "float32" != result != "bool" else ""


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
enter("aten::_to_copy.default", limit=_no_conversion, of=lambda x: x, **_ONE)
enter("aten::full.default", of=lambda x: x, arguments=("fill_value",))
enter("aten::relu.default", of=lambda x: builder.select(x < _zero(x), _zero(x), x), **_ONE)
enter(
    "aten::threshold_backward.default",
    of=lambda g, x, limit: builder.select(x <= limit, _zero(g), g),
    arguments=("grad_output", "self", "threshold"),
)
enter("sq::clip_range", of=lambda r, share: r * share, arguments=("r", "share"), multiplies=True)
enter(
    "aten::leaky_relu.default",
    of=lambda x, slope: builder.select(x > _zero(x), x, x * slope),
    arguments=("self", "negative_slope"),
    multiplies=True,
)
enter(
    "aten::leaky_relu_backward.default",
    of=lambda g, x, slope: builder.select(x > _zero(x), g, g * slope),
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
enter("aten::reciprocal.default", of=lambda x: builder.const(1, builder.dtype_of(x)) / x, **_ONE)
enter(
    "aten::where.self",
    "aten::where.ScalarOther",
    "aten::where.Scalar",
    of=builder.select,
    arguments=("condition", "self", "other"),
)
enter(
    "sq::ema",
    of=lambda old, new, kept, added: fence(old * kept) + fence(new * added),
    arguments=("old", "new"),
    constants=lambda spec: (1.0 - spec["momentum"], spec["momentum"]),
    adds=True,
)


# These have kernels of their own; in a group they save a pass over memory.
ELEMENTS[UNPACK] = Element(("packed",), lambda bit: bit)
ELEMENTS[PACK] = Element(("mask",), lambda bit: bit)
ELEMENTS[ABSMAX] = Element(
    ("x",), lambda x: tirx.bitwise_and(_int32(x), builder.const(0x7FFFFFFF, "int32"))
)
