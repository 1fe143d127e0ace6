"""fprop: the correlation of the input with the weights."""

from sqcompile.backends.conv_geometry import Geometry, forward
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_correlate import Correlation, correlate
from sqcompile.backends.cpu.conv_operands import store
from sqcompile.backends.cpu.conv_vectors import shifts
from sqcompile.backends.cpu.conv_weights import Reading
from sqcompile.backends.kernels import KernelSpec


def fprop(spec: KernelSpec) -> object:
    """Any geometry. Group exponents belong to input channels, which the sum runs over: as in
    dgrad, weights take the shifts that they have room for, inputs the rest."""
    x, w = spec.tensor("x").shape, spec.tensor("w").shape
    g = Geometry.of(spec, x, w, spec.outputs[0].shape)
    with nest.function(spec) as f:
        groups, shift = shifts(spec, f)
        form = store(*spec.ranges("x", "w"), shift=groups - 1, terms=g.inputs * g.taps)
        rows, columns = forward(g.rows, skip=True), forward(g.columns, skip=False)
        c = Correlation(g.images, g.groups, g.outputs, g.inputs, rows, columns, form)
        outer = g.inputs * g.taps
        reading = Reading(outer, g.taps, g.outputs * outer, g.columns.kernel, g.taps)
        correlate(c, f, spec, (f["x"], f["w"], reading), shift)
    return f.result
