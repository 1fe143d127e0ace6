"""Programs of matrix products on the simulator: numpy's integers, in any order of the modules."""

import numpy as np
import pytest

from sqcompile.backends.vta.program import Program, product_program, run
from sqcompile.backends.vta.spec import GemmSpec, Values
from tests.backends.vta.programs import SHAPES

S4, U4, S8, U8 = (Values.of(bits, signed) for bits in (4, 8) for signed in (True, False))


def gemm_operands(spec, seed=0):
    """Random operands as they are stored, and the product."""
    rng = np.random.default_rng(seed)
    lead = () if spec.batch is None else (spec.batch,)
    a = rng.integers(spec.a.low, spec.a.high + 1, (*lead, spec.m, spec.k))
    b = rng.integers(spec.b.low, spec.b.high + 1, (*lead, spec.k, spec.n))
    exponent = rng.integers(0, spec.groups, (*(1 for _ in lead), 1, spec.k))
    product = (a << (spec.groups - 1 - exponent)) @ b
    if spec.transpose_a:
        a, exponent = a.swapaxes(-1, -2), exponent.swapaxes(-1, -2)
    b = b.swapaxes(-1, -2) if spec.transpose_b else b
    return [a, b, exponent][: 3 if spec.groups > 1 else 2], product


SPECS = {
    "one tile and tails": GemmSpec(5, 7, 9, S4, S4),
    "a vector": GemmSpec(1, 1, 1, U4, S4),
    "groups, a transposed": GemmSpec(40, 10, 70, S4, S4, transpose_a=True, groups=4),
    "unsigned groups": GemmSpec(10, 40, 33, U4, S4, groups=3),
    "a batch, b transposed": GemmSpec(9, 20, 17, S4, U4, batch=3, transpose_b=True, groups=2),
    "8 bits": GemmSpec(17, 5, 30, U8, S8),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_a_program_gives_the_product(shape, name):
    spec = SPECS[name]
    operands, product = gemm_operands(spec)
    program = Program.from_bytes(product_program(SHAPES[shape], spec).to_bytes())
    program.check()
    found = run(program, operands, seed=1)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, product)
