"""Data movement: every op is one strided read into a contiguous result."""

from collections.abc import Sequence

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array
from sqcompile.backends.cpu.sinks import Stored
from sqcompile.backends.cpu.stream import stream
from sqcompile.backends.cpu.strided import copy
from sqcompile.backends.cpu.sweep import contiguous, in_runs, refined
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.walks import split_strides


def _gather(spec: KernelSpec, name: str, read: Sequence[int], begin: int = 0) -> object:
    with nest.function(spec) as f:
        (out,) = f.outputs
        copy(f[name], out, out.shape, read, contiguous(out.shape), begin)
    return f.result


def _axis(axis: int, rank: int) -> int:
    return axis % rank if rank else 0


@KERNELS.kernel("aten::permute.default")
def permute(spec: KernelSpec) -> object:
    """Rows of the result in parallel."""
    shape = spec.tensor("self").shape
    own = contiguous(shape)
    return _gather(spec, "self", [own[_axis(d, len(shape))] for d in spec["dims"]])


@KERNELS.kernel("aten::transpose.int")
def transpose(spec: KernelSpec) -> object:
    """Rows of the result in parallel."""
    shape = spec.tensor("self").shape
    own = contiguous(shape)
    if shape:
        a, b = _axis(spec["dim0"], len(shape)), _axis(spec["dim1"], len(shape))
        own[a], own[b] = own[b], own[a]
    return _gather(spec, "self", own)


@KERNELS.kernel("aten::t.default")
def t(spec: KernelSpec) -> object:
    """Rows of the result in parallel."""
    return _gather(spec, "self", contiguous(spec.tensor("self").shape)[::-1])


@KERNELS.kernel("aten::slice.Tensor")
def slice_(spec: KernelSpec) -> object:
    """Rows of the result in parallel."""
    shape = spec.tensor("self").shape
    axis = _axis(spec["dim"], len(shape))
    start, _, step = slice(spec["start"], spec["end"], spec["step"]).indices(shape[axis])
    read = contiguous(shape)
    begin = start * read[axis]
    read[axis] *= step
    return _gather(spec, "self", read, begin)


@KERNELS.kernel("aten::flip.default")
def flip(spec: KernelSpec) -> object:
    """Rows of the result in parallel, read backwards along the axes."""
    shape = spec.tensor("self").shape
    read, begin = contiguous(shape), 0
    for axis in {_axis(d, len(shape)) for d in spec["dims"]} if shape else ():
        begin += (shape[axis] - 1) * read[axis]
        read[axis] = -read[axis]
    return _gather(spec, "self", read, begin)


@KERNELS.kernel("aten::select.int")
def select(spec: KernelSpec) -> object:
    """Rows of the result in parallel."""
    shape = spec.tensor("self").shape
    axis = _axis(spec["dim"], len(shape))
    read = contiguous(shape)
    step = read.pop(axis)
    return _gather(spec, "self", read, spec["index"] % shape[axis] * step)


@KERNELS.kernel("aten::cat.default", views={"tensors": in_runs})
def cat(spec: KernelSpec) -> object:
    """One input after the other, each as rows in parallel."""
    with nest.function(spec) as f:
        (out,) = f.outputs
        write = contiguous(out.shape)
        axis, put = _axis(spec["dim"], len(out.shape)), 0
        for source in f.list("tensors"):
            if source.size:
                extents, (read,) = refined(source)
                into = split_strides(source.shape, write, extents)
                copy(source, out, extents, read, into, source.walk.begin, put)
                put += source.shape[axis] * write[axis]
    return f.result


@KERNELS.kernel("aten::constant_pad_nd.default")
def constant_pad_nd(spec: KernelSpec) -> object:
    """Fills, then copies the part of the input that is inside; negative padding crops."""
    with nest.function(spec) as f:
        source, (out,) = f["self"], f.outputs
        rank, pad = len(out.shape), spec["pad"]
        front = [0] * rank
        for i in range(len(pad) // 2):
            front[rank - 1 - i] = pad[2 * i]
        _fill(out, spec["value"])
        sizes = zip(source.shape, out.shape, front, strict=True)
        ends = [(max(-p, 0), min(n, m - p)) for n, m, p in sizes]
        read, write = contiguous(source.shape), contiguous(out.shape)
        begin = sum(first * step for (first, _), step in zip(ends, read, strict=True))
        put = sum((e[0] + p) * step for e, p, step in zip(ends, front, write, strict=True))
        copy(source, out, [max(b - a, 0) for a, b in ends], read, write, begin, put)
    return f.result


def _fill(out: Array, value: float) -> None:
    constant = nest.const(value, out.dtype)
    stream([out.size], [], [Stored(out)], lambda elements, keep: [constant])
