"""Ops whose result is their argument under another shape: they need no kernel and no copy."""

from sqcompile.backends.kernels import KernelSpec
from sqcompile.walks import Walk

ALWAYS = {
    "aten::view.default",
    "aten::reshape.default",
    "aten::_unsafe_view.default",
    "aten::unsqueeze.default",
    "aten::squeeze.default",
    "aten::squeeze.dim",
    "aten::squeeze.dims",
    "aten::detach.default",
    "aten::alias.default",
    "aten::clone.default",
    "aten::lift_fresh_copy.default",
}
"""Ops whose result has the elements of their argument in the same order."""
_REORDERED = {"aten::permute.default", "aten::transpose.int", "aten::t.default"}
_SAME_WHEN_FULL = {"aten::expand.default", "aten::slice.Tensor", "aten::_to_copy.default"}
_PARTS = {"aten::slice.Tensor", "aten::select.int"}
SOMETIMES = _REORDERED | _SAME_WHEN_FULL
"""Ops that are views for some arguments and copies for others."""


def is_view(spec: KernelSpec) -> bool:
    """Whether the result is the argument under another shape."""
    if spec.op in ALWAYS:
        return True
    if spec.op not in SOMETIMES:
        return False
    source, result = spec.tensor("self"), spec.outputs[0]
    if spec.op in _SAME_WHEN_FULL:
        return bool(source == result)
    return _order(spec, source.shape) == [d for d, n in enumerate(source.shape) if n != 1]


def lays(spec: KernelSpec) -> bool:
    """Whether an op only lays its argument's elements, or a part of them, otherwise."""
    return is_view(spec) or spec.op in _REORDERED | _PARTS


def walked(spec: KernelSpec, walk: Walk) -> Walk | None:
    """Where the elements of an op's result lie when those of its argument lie along `walk`; None
    for ops that compute, and where they lie along no walk."""
    (out,) = spec.outputs if len(spec.outputs) == 1 else (None,)
    if out is not None and is_view(spec):
        return walk.reshaped(out.shape)
    if spec.op in _REORDERED:
        return walk.permuted(_axes(spec, len(walk.shape)))
    if spec.op in _PARTS and walk.shape:
        axis = spec["dim"] % len(walk.shape)
        size = walk.shape[axis]
        if spec.op == "aten::select.int":
            return walk.selected(axis, spec["index"] % size)
        start, end, step = slice(spec["start"], spec["end"], spec["step"]).indices(size)
        return walk.sliced(axis, start, len(range(start, end, step)), step)
    return None


def _order(spec: KernelSpec, shape: tuple[int, ...]) -> list[int]:
    """The axes longer than 1 in the order in which a permutation leaves them."""
    return [axis for axis in _axes(spec, len(shape)) if shape[axis] != 1]


def _axes(spec: KernelSpec, rank: int) -> list[int]:
    """All axes in that order."""
    axes = list(range(rank))
    if spec.op == "aten::permute.default":
        return [d % rank for d in spec["dims"]]
    if spec.op == "aten::t.default":
        return axes[::-1]
    if rank:
        a, b = spec["dim0"] % rank, spec["dim1"] % rank
        axes[a], axes[b] = axes[b], axes[a]
    return axes
