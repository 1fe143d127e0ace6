"""What a block leaves in its accumulators: bounded, and taken off the results behind it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.carry import Carry, slices_of, totals
from sqcompile.backends.vta.isa import Gemm
from sqcompile.backends.vta.program import product_program, run
from sqcompile.backends.vta.spec import GemmSpec, Values
from tests.backends.vta.programs import PYNQ
from tests.backends.vta.test_conv_program import conv_operands, conv_spec
from tests.backends.vta.test_gemm_program import gemm_operands

WINDOW = ((1, 1), (1, 1), (1, 1), 1)


@given(
    st.integers(0, 1 << 31), st.integers(0, 8), st.sampled_from([2, 4, 8, 16, 32]), st.booleans()
)
def test_totals_of_the_largest_sums_stay_in_their_bits(bound, left, width, negative):
    bits, carry, signed = totals(bound, left, width)
    assert signed
    alone = min(32, bound.bit_length() + 1)
    assert slices_of(bits, width) == slices_of(alone, width)
    if carry is None or bits == 32:
        return
    total = 0
    for _ in range(40):
        total = (-bound if negative else bound) + (total >> carry.right << carry.left)
        assert -(1 << bits - 1) <= total < 1 << bits - 1


def test_nothing_is_carried_where_it_would_grow():
    assert totals(6, 0, 4).carry is None  # one slice: the whole total is left
    assert totals(6, 0, 32).carry == Carry(0, 0)  # that holds all 32 bits
    assert totals(127, 0, 8).carry is None
    assert totals(1000, 9, 8).carry is None  # shifted right by 8, left by 9
    assert totals(32767, 0, 8).carry is None  # a third slice
    assert totals(32000, 0, 8) == (16, Carry(8, 0), True)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("log_out_width", [2, 3, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_blocks_that_share_accumulators_give_the_largest_sums(sign, log_out_width, groups):
    """int4 elements and three groups: the accumulators also shift to the left between digits."""
    small = replace(
        hw.get("pynq-int4"), log_inp_buff_size=7, log_acc_buff_size=10, log_out_width=log_out_width
    )
    spec = GemmSpec(70, 20, 40, Values(-7, 7), Values(-7, 7), groups=groups)
    operands, _ = gemm_operands(spec)
    operands[0][...] = 7
    operands[1][...] = 7 * sign
    expected = (operands[0].astype(np.int64) << groups - 1 - (operands[2] if groups > 1 else 0)) @ (
        operands[1].astype(np.int64)
    )
    program = product_program(hw.checked(small), spec)
    program.check()
    assert program.form.carry is not None
    resets = [one for one in program.decoded if isinstance(one, Gemm) and one.reset]
    assert len(resets) == 1
    assert resets[0].count < np.prod(program.form.result_shape)
    np.testing.assert_array_equal(run(program, operands), expected)


def test_sums_of_one_slice_are_cleared():
    """15 bits are one slice of 16: nothing but the whole sum could be carried."""
    spec = GemmSpec(70, 20, 40, Values(-7, 7), Values(-7, 7))
    operands, expected = gemm_operands(spec)
    wide = hw.checked(replace(PYNQ, log_out_width=4, log_acc_buff_size=10))
    program = product_program(wide, spec)
    program.check()
    assert program.form.carry is None
    resets = [one.count for one in program.decoded if isinstance(one, Gemm) and one.reset]
    assert sum(resets) == np.prod(program.form.result_shape)
    np.testing.assert_array_equal(run(program, operands), expected)


@pytest.mark.parametrize(
    "spec",
    [
        GemmSpec(700, 32, 64, Values(-7, 7), Values(-7, 7), groups=4),
        conv_spec("dgrad", (3, 16, 16, 16), 16, (3, 3), WINDOW, *2 * [Values(-7, 7)], 4),
    ],
    ids=["columns", "rows"],
)
def test_a_program_whose_ends_are_cut_finer_gives_the_product(spec):
    small = hw.checked(replace(PYNQ, log_acc_buff_size=15))
    program = product_program(small, spec)
    program.check()
    assert program.form.tiling().halvings > 0
    operands, expected = (gemm_operands if isinstance(spec, GemmSpec) else conv_operands)(spec)
    np.testing.assert_array_equal(run(program, operands, seed=3), expected)
