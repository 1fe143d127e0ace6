"""Elementwise kernels, of one op or of a group: one pass over memory in vectors."""

from collections.abc import Sequence

from sqcompile.backends.activations import ELEMENTS
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array
from sqcompile.backends.cpu.sinks import Bits, Largest, Stored
from sqcompile.backends.cpu.stream import stream
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.elements import ABSMAX, ENDINGS, PACK, UNPACK, one_pass
from sqcompile.backends.fusion import Member
from sqcompile.backends.kernels import KernelSpec


def _pass(
    f: nest.Function, members: Sequence[Member], inputs: Sequence[Array], results: Sequence[int]
) -> None:
    one = one_pass(members, inputs, results)
    compute = one.start()
    sinks = [_sink(spec, out) for spec, out in zip(one.results, f.outputs, strict=True)]
    stream(one.axes, one.reads, sinks, compute)


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


def _whole_vectors(shape: Sequence[int]) -> bool:
    """Whether packed masks of this shape are read and written by whole bytes and vectors."""
    return bool(shape) and shape[-1] % nest.LANES == 0


def _joint_maximum(spec: KernelSpec) -> bool:
    """Of all elements, or of each place along the last axis."""
    x, axes = spec.tensor("x"), sorted(spec["axes"])
    rank = len(x.shape)
    joint = axes in (list(range(rank)), list(range(rank - 1)))
    return joint and x.size > 0 and spec.tensor("outer") is None


for _op, _element in ELEMENTS.items():
    if _op not in ENDINGS | {UNPACK}:
        KERNELS.elementwise(_op, limit=_element.limit)(single)

# These have kernels of their own; in a group they save a pass over memory.
KERNELS.joins(UNPACK, lambda spec: _whole_vectors(spec.outputs[0].shape), one_shape=True)
KERNELS.ends(PACK, lambda spec: _whole_vectors(spec.tensor("mask").shape))
KERNELS.ends(ABSMAX, _joint_maximum)
