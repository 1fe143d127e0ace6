"""dgrad: the correlation of the gradient with the flipped weights, a phase for each residue of
the stride."""

from sqcompile.backends.conv_geometry import Geometry, backward
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_correlate import Correlation, correlate
from sqcompile.backends.cpu.conv_operands import store
from sqcompile.backends.cpu.conv_vectors import shifts
from sqcompile.backends.cpu.conv_weights import Reading
from sqcompile.backends.kernels import KernelSpec


def dgrad(spec: KernelSpec) -> object:
    """Any geometry. Group exponents belong to output channels, which the sum runs over: weights
    take the shifts that they have room for when they are packed, gradients the rest."""
    y, w = spec.tensor("g").shape, spec.tensor("w").shape
    g = Geometry.of(spec, spec.outputs[0].shape, w, y)
    with nest.function(spec) as f:
        groups, shift = shifts(spec, f)
        form = store(*spec.ranges("g", "w"), shift=groups - 1, terms=g.outputs * g.taps)
        rows, columns = backward(g.rows), backward(g.columns)
        c = Correlation(g.images, g.groups, g.inputs, g.outputs, rows, columns, form)
        outer = g.inputs * g.taps
        reading = Reading(g.taps, outer, g.outputs * outer, g.columns.kernel, g.taps)
        correlate(c, f, spec, (f["g"], f["w"], reading), shift)
    return f.result
