"""The convolutions' kernels: which algorithm computes a spec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqcompile.backends.cpu import conv_depthwise, winograd, winograd_wgrad
from sqcompile.backends.cpu.conv_dgrad import dgrad
from sqcompile.backends.cpu.conv_fprop import fprop
from sqcompile.backends.cpu.conv_wgrad import wgrad
from sqcompile.backends.cpu.table import KERNELS
from sqcompile.backends.kernels import KernelSpec


@dataclass(frozen=True)
class Algorithm:
    """A way to compute a convolution: whether it fits a spec, and its generator."""

    name: str
    fits: Callable[[KernelSpec], bool]
    generate: Callable[[KernelSpec], object]


def _any(spec: KernelSpec) -> bool:
    return True


FPROP = (
    Algorithm("depthwise", conv_depthwise.fits, conv_depthwise.fprop),
    Algorithm("winograd", winograd.fits, winograd.generate),
    Algorithm("direct", _any, fprop),
)
DGRAD = (
    Algorithm("depthwise", conv_depthwise.fits, conv_depthwise.dgrad),
    Algorithm("winograd", winograd.fits, winograd.generate),
    Algorithm("direct", _any, dgrad),
)
WGRAD = (
    Algorithm("depthwise", conv_depthwise.fits, conv_depthwise.wgrad),
    Algorithm("winograd", winograd_wgrad.fits, winograd_wgrad.generate),
    Algorithm("direct", _any, wgrad),
)
"""Algorithms of each product, the fastest first; the first that fits is taken."""


def chosen(algorithms: Sequence[Algorithm], spec: KernelSpec) -> Algorithm:
    """The first algorithm that fits."""
    return next(one for one in algorithms if one.fits(spec))


@KERNELS.kernel("sq::conv_fprop", "sq::conv_fprop_dequantize", "sq::conv_fprop_sums")
def conv_fprop(spec: KernelSpec) -> object:
    """The first of FPROP that fits."""
    return chosen(FPROP, spec).generate(spec)


@KERNELS.kernel("sq::conv_dgrad", "sq::conv_dgrad_dequantize")
def conv_dgrad(spec: KernelSpec) -> object:
    """The first of DGRAD that fits."""
    return chosen(DGRAD, spec).generate(spec)


@KERNELS.kernel("sq::conv_wgrad", "sq::conv_wgrad_dequantize")
def conv_wgrad(spec: KernelSpec) -> object:
    """The first of WGRAD that fits."""
    return chosen(WGRAD, spec).generate(spec)
