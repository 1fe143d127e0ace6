"""A wgrad whose pixels are sorted by group: a matrix product over gathered pixels.

    dW[o, (c, r, s)] = sum over p of g[p, o] << shift(p) * patches[p, (c, r, s)]

where p counts the pixels of all images' results and patches[p] is what the kernel sees of x at
pixel p, padding's zeros included. Each pixel has an exponent, so pixels of one group must lie in
planes of their own. That no grid of whole rows can give (conv.py), and a matrix product does
(gemm.py): the host gathers x, which holds it KH * KW times, once for every tap. Stride, padding
and dilation are the gather's; channel groups are the product's batch.
"""

from collections.abc import Sequence

import numpy as np

from sqcompile.backends.conv_geometry import Axis
from sqcompile.backends.vta.conv import ConvForm
from sqcompile.backends.vta.forms import Array, ProductForm, check_epilogue
from sqcompile.backends.vta.gemm import GemmForm
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec


class GatheredForm(ProductForm):
    """A wgrad with `counts`: its groups are sorted, whatever operands that are shifted would take.
    For those it has another form."""

    def __init__(self, hardware: Hardware, spec: ConvSpec) -> None:
        self.spec = spec
        self.product = GemmForm(hardware, _matrices(spec), sort=True)
        super().__init__(hardware, self.product.correlation, self.product.reduction)
        check_epilogue(spec, self.inp, self.wgt)

    def pack(self, operands: Sequence[Array]) -> list[Array]:
        """g, x and the exponent -> tiles."""
        return self.product.pack(self._gathered(operands))

    def unpack(self, tiles: Array, operands: Sequence[Array]) -> Array:
        """Tiles -> the weights' gradient."""
        found = self.product.unpack(tiles, self._gathered(operands))
        return found.reshape(self.spec.w)

    def _gathered(self, operands: Sequence[Array]) -> list[Array]:
        """g (channel group, pixel, output), x (channel group, pixel, (c, r, s)), the exponent."""
        gradient, image, exponent = operands
        groups = self.spec.channel_groups
        patches = _patches(image, *self.spec.axes)
        both = (one.reshape(self.spec.reduced, groups, -1) for one in (gradient, patches))
        return [*(one.swapaxes(0, 1) for one in both), exponent.reshape(1, -1, 1)]


def convolution_form(hardware: Hardware, spec: ConvSpec) -> ProductForm:
    """The form of a convolution's product."""
    gathers = spec.kind == "wgrad" and spec.counts is not None
    return (GatheredForm if gathers else ConvForm)(hardware, spec)


def _matrices(spec: ConvSpec) -> GemmSpec:
    """g and patches have pixels first."""
    outputs, *patch = spec.w
    return GemmSpec(
        outputs // spec.channel_groups,
        int(np.prod(patch)),
        spec.reduced,
        spec.first,
        spec.second,
        batch=spec.channel_groups,
        transpose_a=True,
        groups=spec.groups,
        counts=spec.counts,
        relu=spec.relu,
    )


def _patches(image: Array, rows: Axis, columns: Axis) -> Array:
    """(N, H, W, C) -> (N, OH, OW, C, KH, KW)."""
    for number, axis in enumerate((rows, columns), 1):
        sides = [(0, 0)] * image.ndim
        sides[number] = (axis.padding, axis.padding)
        image = np.pad(image, sides)
    down, across = map(_lines, (rows, columns))
    # N, OH, KH, OW, KW, C
    return image[:, down][:, :, :, across].transpose(0, 1, 3, 5, 2, 4)


def _lines(axis: Axis) -> Array:
    """(OUT, KERNEL): the line of a padded axis that a result reads at a tap."""
    first = np.arange(axis.out) * axis.stride
    return first[:, None] + np.arange(axis.kernel) * axis.dilation
