"""What a kernel is asked to compute, and the table of those who can.

A `KernelSpec` is everything that a generator needs and nothing else, so two nodes with equal
specs share one kernel. Arguments that only vary at run time (the stream of a quantiser) are not
part of it: a generator names them and reads them from a vector.
"""

import hashlib
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from sqcompile.ops.quantize import limits
from sqcompile.walks import Walk

Generator = Callable[["KernelSpec"], Any]
Attribute = bool | int | float | str | None | tuple[Any, ...]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype ("float32", "int8", "bool", ...) of a contiguous tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ViewSpec(TensorSpec):
    """A tensor that a kernel reads where it lies: along `walk` in the memory of `root`, which is
    what the kernel takes."""

    root: TensorSpec
    walk: Walk


RANGES = "ranges"
"""Attribute of a product's spec, beside the arguments of its op: ((lowest, highest), (lowest,
highest)) of the integers of its two operands, before shifts, as the passes assigned them."""
RANGE = "range"
"""Attribute of a sum's spec: (lowest, highest) of the integers that it adds, where it is known."""
INTO = "into"
"""Attribute of a call that writes a part of its output (`sqcompile.backends.parts`)."""
FUSED = "fused::"
"""Namespace of a group of elementwise ops in one kernel: "fused::add+relu"."""
_FULL = {"int8": (-127, 127), "uint8": (0, 255)}

Operand = TensorSpec | None | tuple[TensorSpec, ...]


@dataclass(frozen=True)
class KernelSpec:
    """One op on given shapes, dtypes and attributes.

    `inputs` are the tensor arguments in schema order: a tensor, None (an optional that is
    absent) or a tuple (a list). `attributes` are the other arguments. A kernel takes the tensors
    that are there, lists flattened, then its run-time attributes as one int64 vector if it has
    any, then the outputs (destination-passing style).
    """

    op: str
    inputs: tuple[tuple[str, Operand], ...]
    attributes: tuple[tuple[str, Attribute], ...]
    outputs: tuple[TensorSpec, ...]

    def __getitem__(self, name: str) -> Any:
        """The attribute called `name`; KeyError when the op has no such argument."""
        return dict(self.attributes)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute called `name`, or `default`."""
        return dict(self.attributes).get(name, default)

    def tensor(self, name: str) -> Any:
        """The operand called `name` (TensorSpec, None or tuple); KeyError when there is none."""
        return dict(self.inputs)[name]

    def tensors(self) -> Iterator[tuple[str, TensorSpec]]:
        """The tensors that a kernel takes, in order; elements of lists are named name_0, ..."""
        for name, operand in self.inputs:
            if isinstance(operand, TensorSpec):
                yield name, operand
            elif operand is not None:
                yield from ((f"{name}_{i}", one) for i, one in enumerate(operand))

    def ranges(self, first: str, second: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """(lowest, highest) of a product's operands: what is proven of them, or what their dtypes
        hold (no quantiser gives -128)."""
        known = self.get(RANGES)
        if known is not None:
            return known[0], known[1]
        return _FULL[self.tensor(first).dtype], _FULL[self.tensor(second).dtype]

    def without(self, names: Sequence[str]) -> "KernelSpec":
        """This spec without the attributes called `names`."""
        kept = tuple((name, value) for name, value in self.attributes if name not in names)
        return KernelSpec(self.op, self.inputs, kept, self.outputs)

    @property
    def short_name(self) -> str:
        """The op without its namespace and overload: sq::quantize -> quantize."""
        return self.op.split("::")[-1].split(".")[0].lstrip("_").replace("+", "_")[:64]

    @property
    def digest(self) -> str:
        """A short name that equal specs share, the same in every process."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


Limit = Callable[["KernelSpec"], str]


def no_limit(spec: "KernelSpec") -> str:
    """Every spec is supported."""
    return ""


@dataclass(frozen=True)
class Kernel:
    """A generator, the attributes that it takes at run time, and what it cannot do: `limit`
    tells why a spec has no kernel, or nothing. `views`: the operands that it reads where they lie,
    and along which walks. `parts`: whether it can write into a part of a larger tensor (`INTO`)."""

    generate: Generator
    run_time: tuple[str, ...] = ()
    limit: Limit = no_limit
    views: Mapping[str, Callable[[Walk], bool]] = field(default_factory=dict)
    parts: bool = False

    def reads(self, name: str, walk: Walk) -> bool:
        """Whether the operand called `name` may be a ViewSpec of this walk."""
        return name in self.views and self.views[name](walk)


class KernelTable:
    """The kernels of one target, by op name ("sq::quantize", "aten::relu.default").

    `limit` tells why a spec has no kernel here, whatever its op and views too, or nothing.
    """

    def __init__(self, target: str, limit: Limit = no_limit) -> None:
        self.target, self.limit = target, limit
        self._kernels: MutableMapping[str, Kernel] = {}
        self._joins: dict[str, Callable[[KernelSpec], bool]] = {}
        self._ends: dict[str, Callable[[KernelSpec], bool]] = {}
        self._one_shape: set[str] = set()
        self._group: Generator | None = None

    def kernel(
        self,
        *ops: str,
        run_time: Sequence[str] = (),
        limit: Limit = no_limit,
        views: Mapping[str, Callable[[Walk], bool]] | None = None,
        parts: bool = False,
    ) -> Callable[[Generator], Generator]:
        """Register a generator for one or several ops.

        `run_time` names integer attributes that reach the kernel in an int64 vector instead of as
        constants. `limit` gives a reason for specs that the generator refuses, "" for others.
        `views` names operands that may be ViewSpecs, with a test of their walks.
        `parts` tells that a result can be written into a part of a larger tensor.
        Raises ValueError when an op has a kernel already.
        """

        def register(generate: Generator) -> Generator:
            for op in ops:
                if op in self._kernels:
                    raise ValueError(f"{op} has a kernel for target '{self.target}' already")
                made = Kernel(generate, tuple(run_time), limit, views or {}, parts)
                self._kernels[op] = made
            return generate

        return register

    def derived(self, target: str, kernels: Mapping[str, Kernel]) -> "KernelTable":
        """A table like this one for another target, with these kernels in the place of its own."""
        table = KernelTable(target)
        table.__dict__.update(vars(self))
        table.target, table._kernels = target, ChainMap(dict(kernels), self._kernels)
        return table

    def elementwise(self, *ops: str, limit: Limit = no_limit) -> Callable[[Generator], Generator]:
        """Register a generator for ops that may also stand in a group."""
        for op in ops:
            self.joins(op, lambda spec: True)
        return self.kernel(*ops, limit=limit)

    def joins(self, op: str, when: Callable[["KernelSpec"], bool], one_shape: bool = False) -> None:
        """Calls of `op` may stand in a group where `when` holds; `one_shape`: only with members
        of its shape, or whose axes split its leading ones alone."""
        self._joins[op] = when
        if one_shape:
            self._one_shape.add(op)

    def ends(self, op: str, when: Callable[["KernelSpec"], bool]) -> None:
        """Calls of `op`, whose result is no elementwise value, may take their first operand from
        the group that computes it, whose members are of its shape, as for `joins`."""
        self._ends[op] = when
        self._one_shape.add(op)

    def group(self, generate: Generator) -> Generator:
        """Register the generator of groups, whose specs `fusion.Plan` makes."""
        self._group = generate
        return generate

    def fusible(self, spec: "KernelSpec") -> bool:
        """Whether a call may be a member of a group that others read."""
        return self._group is not None and spec.op in self._joins and self._joins[spec.op](spec)

    def one_shape(self, spec: "KernelSpec") -> bool:
        """Whether a call wants a group of one shape."""
        return spec.op in self._one_shape

    def ending(self, spec: "KernelSpec") -> bool:
        """Whether a call may be a member of a group that no other member reads."""
        return self._group is not None and spec.op in self._ends and self._ends[spec.op](spec)

    def __contains__(self, op: str) -> bool:
        return op in self._kernels

    def __getitem__(self, op: str) -> Kernel:
        if op.startswith(FUSED) and self._group is not None:
            return Kernel(self._group)
        return self._kernels[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)


def op_name(target: Any) -> str:
    """The key of an fx node's target: "sq::quantize", "aten::add.Tensor".

    The ops of this project have one overload each, which the key leaves out.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    name = target._schema.name
    return name if target.namespace == "sq" else f"{name}.{target._overloadname}"


def tensor_spec(value: torch.Tensor) -> TensorSpec:
    """The spec of a (fake) tensor."""
    return TensorSpec(tuple(int(size) for size in value.shape), str(value.dtype)[6:])


def node_outputs(node: fx.Node) -> tuple[torch.Tensor, ...]:
    """The fake tensors that a node gives, one or several."""
    value = node.meta["val"]
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def node_arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by schema name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args) and not argument.kwarg_only:
            arguments[argument.name] = node.args[index]
        elif argument.name in node.kwargs:
            arguments[argument.name] = node.kwargs[argument.name]
        else:
            arguments[argument.name] = argument.default_value
    return arguments


def spec_of(node: fx.Node) -> tuple[KernelSpec, list[fx.Node]]:
    """The spec of a call_function node and the nodes of its tensor arguments, in kernel order."""
    inputs: list[tuple[str, Operand]] = []
    attributes: list[tuple[str, Attribute]] = []
    nodes: list[fx.Node] = []
    schema = {a.name: a.type for a in node.target._schema.arguments}  # type: ignore[union-attr]
    for name, value in node_arguments(node).items():
        if isinstance(value, fx.Node):
            inputs.append((name, tensor_spec(value.meta["val"])))
            nodes.append(value)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, fx.Node) for v in value):
            inputs.append((name, tuple(tensor_spec(v.meta["val"]) for v in value)))
            nodes.extend(value)
        elif value is None and "Tensor" in str(schema[name]):
            inputs.append((name, None))
        elif "List[Tensor]" in str(schema[name]):
            inputs.append((name, ()))
        else:
            attributes.append((name, _frozen(value)))
    if "sq" in node.meta:
        attributes.append((RANGES, _ranges(node.meta["sq"])))
    if "range" in node.meta:
        attributes.append((RANGE, node.meta["range"]))
    outputs = tuple(tensor_spec(value) for value in node_outputs(node))
    return KernelSpec(op_name(node.target), tuple(inputs), tuple(attributes), outputs), nodes


def _ranges(product: Any) -> tuple[tuple[int, int], ...]:
    """(lowest, highest) integer of both operands of a product, from its ProductSpec."""
    return tuple(limits(operand.stored_bits, operand.signed) for operand in product.operands)


def _frozen(value: Any) -> Attribute:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    return str(value)
