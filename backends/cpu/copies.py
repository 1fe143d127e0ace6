"""Data movement: every op is one strided read into a contiguous result."""

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array
from sqcompile.backends.cpu.sinks import Stored
from sqcompile.backends.cpu.stream import stream
from sqcompile.backends.cpu.strided import copy
from sqcompile.backends.cpu.sweep import contiguous, refined
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.strides import flipped, fronts, joined
from sqcompile.backends.views import walked
from sqcompile.walks import Walk, split_strides


def anywhere(walk: Walk) -> bool:
    """A copy reads along any walk."""
    return True


@KERNELS.kernel(
    "aten::permute.default",
    "aten::transpose.int",
    "aten::t.default",
    "aten::slice.Tensor",
    "aten::select.int",
    views={"self": anywhere},
)
def rearranged(spec: KernelSpec) -> object:
    """Rows of the result in parallel; a chain of these ops is one copy."""
    with nest.function(spec) as f:
        source, (out,) = f["self"], f.outputs
        walk = walked(spec, source.walk)
        if out.size:
            assert walk is not None
            write = contiguous(walk.extents)
            copy(source, out, walk.extents, walk.strides, write, walk.begin)
    return f.result


@KERNELS.kernel("aten::flip.default")
def flip(spec: KernelSpec) -> object:
    """Rows of the result in parallel, read backwards along the axes."""
    read, begin = flipped(spec.tensor("self").shape, spec["dims"])
    with nest.function(spec) as f:
        (out,) = f.outputs
        copy(f["self"], out, out.shape, read, contiguous(out.shape), begin)
    return f.result


@KERNELS.kernel("aten::cat.default", views={"tensors": anywhere})
def cat(spec: KernelSpec) -> object:
    """One input after the other, each as rows in parallel."""
    with nest.function(spec) as f:
        (out,) = f.outputs
        write = contiguous(out.shape)
        for source, put in joined(f.list("tensors"), out.shape, spec["dim"]):
            extents, (read,) = refined(source)
            into = split_strides(source.shape, write, extents)
            copy(source, out, extents, read, into, source.walk.begin, put)
    return f.result


@KERNELS.kernel("aten::constant_pad_nd.default")
def constant_pad_nd(spec: KernelSpec) -> object:
    """Fills, then copies the part of the input that is inside; negative padding crops."""
    with nest.function(spec) as f:
        source, (out,) = f["self"], f.outputs
        front = fronts(spec["pad"], len(out.shape))
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
