"""Programs of matrix products on the simulator: numpy's integers, in any order of the modules."""

from dataclasses import replace

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


def grouped(counts, seed=0, **more):
    """A spec with so many k in each group, its operands, and the product."""
    spec = GemmSpec(20, 18, sum(counts), S4, S4, groups=len(counts), counts=counts, **more)
    rng = np.random.default_rng(seed)
    exponent = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    a, b = rng.integers(-7, 8, (20, spec.k)), rng.integers(-7, 8, (spec.k, 18))
    return spec, [a, b, exponent[None]], (a << (len(counts) - 1 - exponent)) @ b


@pytest.mark.parametrize("counts", [(100, 40, 60, 17), (0, 90, 0, 0), (33, 0, 100)])
def test_sorted_groups_multiply_once_where_shifted_operands_need_two_digits(counts):
    spec, operands, product = grouped(counts)
    hardware = SHAPES["int4"]
    by_group = product_program(hardware, spec)
    by_digit = product_program(hardware, replace(spec, counts=None))
    for program in (by_group, by_digit):
        program.check()
        np.testing.assert_array_equal(run(program, operands), product)
    once = by_group.form.correlation.tile_operations
    assert once < by_digit.form.correlation.tile_operations
    assert once == 18 * 2 * sum(-(-count // 16) for count in counts)


def test_operands_that_fit_are_shifted_even_where_groups_are_known():
    spec, operands, product = grouped((9, 9, 9, 9))
    program = product_program(SHAPES["int8"], spec)
    assert len(program.form.correlation.segments) == 1
    np.testing.assert_array_equal(run(program, operands), product)


def test_a_program_of_sorted_groups_refuses_other_exponents():
    spec, (a, b, exponent), _ = grouped((100, 100))
    program = product_program(SHAPES["int4"], spec)
    refusal = r"room for \(112, 112\) values of each exponent, and there are \(200, 0\)"
    with pytest.raises(ValueError, match=refusal):
        run(program, [a, b, np.zeros_like(exponent)])
