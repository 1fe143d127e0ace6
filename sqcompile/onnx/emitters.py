"""Every family of emitters: importing this fills the table."""

from sqcompile.onnx import (
    convolutions,
    draws,
    elementwise,
    products,
    reductions,
    rows,
    shapes,
    stochastic,
)

FAMILIES = (
    convolutions,
    draws,
    elementwise,
    products,
    reductions,
    rows,
    shapes,
    stochastic,
)
