"""Ops whose result is their argument under another shape: they need no kernel and no copy."""

from sqcompile.backends.kernels import KernelSpec

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


def _order(spec: KernelSpec, shape: tuple[int, ...]) -> list[int]:
    """The axes longer than 1 in the order in which a permutation leaves them."""
    rank = len(shape)
    axes = list(range(rank))
    if spec.op == "aten::permute.default":
        axes = [d % rank for d in spec["dims"]]
    elif spec.op == "aten::t.default":
        axes.reverse()
    elif rank:
        a, b = spec["dim0"] % rank, spec["dim1"] % rank
        axes[a], axes[b] = axes[b], axes[a]
    return [axis for axis in axes if shape[axis] != 1]
