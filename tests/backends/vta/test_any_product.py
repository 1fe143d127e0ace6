"""Products of any kind on accelerators of any size: exact, proven, in any order."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.program import elementwise_program, product_program, run
from sqcompile.backends.vta.spec import ElementwiseSpec, GemmSpec, Values, relu
from sqcompile.errors import UsageError
from tests.backends.vta.programs import PYNQ
from tests.backends.vta.test_conv_program import conv_operands, conv_spec, some_window
from tests.backends.vta.test_gemm_program import gemm_operands


def some_hardware(random):
    """Any widths and tile, and scratchpads so small that programs have many blocks and chunks."""
    while True:
        batch, block = random.choice([0, 0, 1, 2]), random.choice([2, 3, 4])
        inp, wgt, out = (
            random.choice(widths) for widths in ([2, 3, 3], [2, 3, 3], [1, 2, 3, 4, 5])
        )
        described = replace(
            PYNQ,
            name="some",
            log_inp_width=inp,
            log_wgt_width=wgt,
            log_out_width=out,
            log_batch=batch,
            log_block=block,
            log_uop_buff_size=2 + random.choice([4, 6, 9]),
            log_inp_buff_size=batch + block + inp - 3 + random.choice([4, 6, 8]),
            log_wgt_buff_size=2 * block + wgt - 3 + random.choice([3, 5, 8]),
            log_acc_buff_size=batch + block + 2 + random.choice([5, 6, 8]),
        )
        try:
            return hw.checked(described)
        except UsageError:  # an index that does not fit its field
            continue


def some_product(random):
    """(spec, operands, result) of a matrix product or a convolution."""
    first, second = (
        Values.of(random.choice([2, 3, 4, 6]), random.random() < 0.6) for _ in range(2)
    )
    kind, groups = random.choice(["gemm", "fprop", "dgrad", "wgrad"]), random.choice([1, 1, 2, 4])
    if kind == "gemm":
        m, n, k = (random.randint(1, limit) for limit in (40, 40, 80))
        flags = [random.random() < 0.5 for _ in range(2)]
        spec = GemmSpec(m, n, k, first, second, random.choice([None, 1, 3]), *flags, groups)
        return spec, *gemm_operands(spec)
    channel_groups = random.choice([1, 1, 2])
    inputs, outputs = (channel_groups * random.randint(1, 12) for _ in range(2))
    kernel, stride, padding, dilation, size = some_window(random, 3, 6)
    window = (stride, padding, dilation, channel_groups)
    image = (random.randint(1, 4), *size, inputs)
    first = Values.of(4, signed=True) if kind == "dgrad" else first
    spec = conv_spec(kind, image, outputs, kernel, window, first, second, groups)
    return spec, *conv_operands(spec)


def check_on_some_hardware(draw, seed):
    """What `draw` gives, on an accelerator of any size, with and without double buffering."""
    random = Random(seed)
    spec, operands, expected = draw(random)
    hardware = some_hardware(random)
    for overlap in (True, False):
        program = product_program(hardware, spec, overlap)
        program.check()
        np.testing.assert_array_equal(run(program, operands, seed=seed), expected)


@pytest.mark.parametrize("seed", range(24))
def test_a_program_of_any_product_on_any_accelerator(seed):
    check_on_some_hardware(some_product, seed)


def test_every_interleaving_gives_the_same_bits():
    spec = conv_spec(
        "fprop",
        (3, 9, 9, 20),
        18,
        (3, 3),
        ((2, 1), (1, 1), (1, 1), 1),
        Values.of(4, signed=False),
        Values.of(4, signed=True),
    )
    operands, expected = conv_operands(spec)
    small = replace(PYNQ, log_inp_buff_size=10, log_acc_buff_size=12)
    program = product_program(small, spec)
    for seed in (None, *range(16)):
        np.testing.assert_array_equal(run(program, operands, seed), expected)


def test_micro_ops_that_do_not_all_fit_are_loaded_in_turns():
    spec = GemmSpec(50, 60, 70, Values.of(4, True), Values.of(4, True))
    small = hw.checked(replace(PYNQ, log_uop_buff_size=5))  # 8 micro-ops
    operands, expected = gemm_operands(spec)
    program = product_program(small, spec)
    program.check()
    assert len(program.uops) // 4 > 8
    np.testing.assert_array_equal(run(program, operands), expected)


def test_sixteen_slices_leave_few_tokens():
    narrow = hw.checked(replace(PYNQ, log_out_width=1))
    spec = ElementwiseSpec(2000, 16, (Values(-(1 << 31), (1 << 31) - 1),), (), relu())
    program = elementwise_program(narrow, spec)
    assert program.form.result_bits == 32
    assert program.check().held["g2s"] == 3  # seven blocks of one size are shifted at once


TINY = hw.checked(replace(PYNQ, log_inp_buff_size=5, log_wgt_buff_size=9, log_acc_buff_size=7))
"""Two tiles in every scratchpad."""


def test_scratchpads_that_hold_no_two_chunks_have_one_buffer():
    spec = GemmSpec(3, 20, 40, Values.of(4, True), Values.of(4, True))
    operands, expected = gemm_operands(spec)
    program = product_program(TINY, spec)
    program.check()
    np.testing.assert_array_equal(run(program, operands), expected)


def test_scratchpads_without_room_for_a_chunk_are_refused():
    window = ((2, 2), (1, 1), (1, 1), 1)
    spec = conv_spec("dgrad", (1, 6, 6, 3), 4, (3, 3), window, *2 * [Values.of(4, True)])
    with pytest.raises(UsageError) as refused:
        product_program(TINY, spec)
    assert str(refused.value) == (
        "pynq is too small for it: INP holds 2 tiles of 16 bytes and 4 are needed "
        "(a LOG_INP_BUFF_SIZE of at least 6); WGT holds 2 tiles of 256 bytes and 9 are needed "
        "(a LOG_WGT_BUFF_SIZE of at least 12); ACC holds 2 tiles of 64 bytes and 4 are needed "
        "(a LOG_ACC_BUFF_SIZE of at least 8)"
    )
    enough = replace(TINY, log_inp_buff_size=6, log_wgt_buff_size=12, log_acc_buff_size=8)
    operands, expected = conv_operands(spec)
    np.testing.assert_array_equal(run(product_program(enough, spec), operands), expected)


def test_blocks_are_shifted_together_as_far_as_micro_ops_go():
    """Four slices leave three blocks to shift at once, with two micro-ops in the buffer."""
    small = hw.checked(replace(PYNQ, log_uop_buff_size=3, log_acc_buff_size=11))
    spec = GemmSpec(60, 20, 600, Values.of(8, True), Values.of(8, True), groups=2)
    operands, expected = gemm_operands(spec)
    program = product_program(small, spec)
    program.check()
    np.testing.assert_array_equal(run(program, operands), expected)
