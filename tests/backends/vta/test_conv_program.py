"""Programs of convolutions on the simulator: what the ops' references compute."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from sqcompile.backends.vta.program import Program, product_program, run
from sqcompile.backends.vta.spec import ConvSpec, Values
from sqcompile.ops import conv
from tests.backends.vta.programs import SHAPES

S4, U4, S8, U8 = (Values.of(bits, signed) for bits in (4, 8) for signed in (True, False))


def conv_spec(kind, x, outputs, kernel, window, first, second, groups=1):
    """window: stride, padding, dilation, channel groups."""
    stride, padding, dilation, channel_groups = window
    w = (outputs, x[3] // channel_groups, *kernel)
    y = tuple(conv.output_shape(x, w, stride, padding, dilation))
    return ConvSpec(kind, x, w, y, *window, first, second, groups)


def some_window(random, most_stride, most_more):
    """(kernel, stride, padding, dilation, size) of both axes; an image is at least as large as the
    dilated kernel, and less than `most_more` pixels larger."""
    kernel, stride, padding, dilation = (
        (random.randint(low, high), random.randint(low, high))
        for low, high in ((1, 3), (1, most_stride), (0, 2), (1, 2))
    )
    size = tuple(
        d * (k - 1) + random.randint(1, most_more) for d, k in zip(dilation, kernel, strict=True)
    )
    return kernel, stride, padding, dilation, size


@lru_cache
def conv_operands(spec, seed=0):
    """Random operands, and what the reference of the op makes of them; every hardware is given
    the same ones."""
    rng = np.random.default_rng(seed)
    shapes = {
        "fprop": (spec.x, spec.w, (1, 1, 1, spec.x[3])),
        "dgrad": (spec.y, spec.w, (1, 1, 1, spec.y[3])),
        "wgrad": (spec.y, spec.x, (*spec.y[:3], 1)),
    }[spec.kind]
    first = rng.integers(spec.first.low, spec.first.high + 1, shapes[0])
    second = rng.integers(spec.second.low, spec.second.high + 1, shapes[1])
    exponent = rng.integers(0, spec.groups, shapes[2])
    a, b, e = map(torch.from_numpy, (first, second, exponent))
    e = e if spec.groups > 1 else None
    window = (spec.stride, spec.padding, spec.dilation, spec.channel_groups, 0)
    result = {
        "fprop": lambda: conv.conv_fprop.reference(a, b, *window, e, spec.groups),
        "dgrad": lambda: conv.conv_dgrad.reference(a, b, e, spec.groups, spec.x, *window),
        "wgrad": lambda: conv.conv_wgrad.reference(a, b, e, spec.groups, spec.w, *window),
    }[spec.kind]()
    return [first, second, exponent][: 3 if spec.groups > 1 else 2], result.numpy()


GEOMETRIES = {
    "tails": ((2, 5, 6, 20), 18, (3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "strides": ((1, 7, 8, 3), 5, (3, 2), ((2, 2), (1, 0), (1, 1), 1)),
    "channel groups": ((3, 6, 6, 8), 12, (3, 3), ((2, 1), (2, 1), (2, 1), 4)),
    "pixels that no tap reads": ((2, 7, 7, 4), 6, (1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    "a kernel less wide than its padding": ((1, 6, 5, 4), 4, (1, 1), ((1, 1), (1, 2), (1, 1), 1)),
    "depthwise": ((1, 9, 9, 2), 2, (2, 2), ((4, 4), (0, 0), (1, 1), 2)),
    "more padding than a load makes": ((1, 6, 6, 2), 3, (3, 2), ((1, 1), (17, 16), (17, 16), 1)),
}


@pytest.mark.parametrize("shape", ["int8", "int4", "out32", "4 rows of 8"])
@pytest.mark.parametrize("kind", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_program_gives_the_convolution(shape, kind, geometry):
    first, second, groups = {"fprop": (U4, S4, 1), "dgrad": (S4, S4, 3), "wgrad": (S4, U8, 2)}[kind]
    spec = conv_spec(kind, *GEOMETRIES[geometry], first, second, groups)
    operands, expected = conv_operands(spec)
    program = Program.from_bytes(product_program(SHAPES[shape], spec).to_bytes())
    program.check()
    np.testing.assert_array_equal(run(program, operands, seed=2), expected)
