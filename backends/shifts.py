"""What every target's products say of group exponents."""

from sqcompile.backends.kernels import KernelSpec


def along_reduction(spec: KernelSpec) -> str:
    """Why the exponents of a matrix product cannot be taken, or nothing: they belong to steps of
    the reduction."""
    exponent = spec.tensor("exponent")
    if exponent is not None and exponent.shape[-1 if spec["transpose_a"] else -2] != 1:
        return "group exponents vary along the reduced axis alone"
    return ""
