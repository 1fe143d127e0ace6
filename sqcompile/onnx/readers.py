"""Every family of readers: importing this fills the table."""

from sqcompile.onnx import import_layers, import_math, import_shapes

FAMILIES = (import_layers, import_math, import_shapes)
