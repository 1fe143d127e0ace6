"""fprop: the correlation of the input with the weights."""

from sqcompile.backends.conv_geometry import Geometry, forward
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.conv_correlate import Correlation, correlate
from sqcompile.backends.cpu.conv_operands import store
from sqcompile.backends.cpu.conv_weights import Reading
from sqcompile.backends.kernels import KernelSpec


def fprop(spec: KernelSpec) -> object:
    """Any geometry."""
    x, w = spec.tensor("x").shape, spec.tensor("w").shape
    g = Geometry.of(spec, x, w, spec.outputs[0].shape)
    form = store(*spec.ranges("x", "w"), shift=0, terms=g.inputs * g.taps)
    with nest.function(spec) as f:
        rows, columns = forward(g.rows, skip=True), forward(g.columns, skip=False)
        c = Correlation(g.images, g.groups, g.outputs, g.inputs, rows, columns, form)
        outer = g.inputs * g.taps
        reading = Reading(outer, g.taps, g.outputs * outer, g.columns.kernel, g.taps)
        correlate(c, f, spec, (f["x"], f["w"], reading))
    return f.result
