"""Programs of products with ReLU or with sums of channels: numpy's integers, in any order."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta import portable
from sqcompile.backends.vta.carry import Carry
from sqcompile.backends.vta.epilogues import LANES
from sqcompile.backends.vta.isa import Alu, AluOp, Gemm, Store
from sqcompile.backends.vta.program import Program, execute, product_program, run
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.errors import PortabilityError, UsageError
from tests.backends.vta.programs import PYNQ, SHAPES
from tests.backends.vta.test_conv_program import GEOMETRIES, conv_operands, conv_spec
from tests.backends.vta.test_gemm_program import gemm_operands
from tests.backends.vta.test_sorted_groups import some_conv, some_gemm

S4, U4, S8, U8 = (Values.of(bits, signed) for bits in (4, 8) for signed in (True, False))
SAME = ((1, 1), (1, 1), (1, 1), 1)
CHIPS = SHAPES | {
    "2 rows of 32": hw.checked(
        replace(
            hw.get("pynq-out32"), name="b2", log_batch=1, log_block=5, log_wgt_buff_size=20,
            log_inp_buff_size=17, log_acc_buff_size=19,
        )
    )
}  # fmt: skip
"""A tile of 1x16, 4x8, 2x4 or 2x32; results in one slice or several."""


def summed(spec, hardware, overlap=True, seed=1, operands=None):
    """The program with sums, proven, and what it gives beside what numpy does."""
    drawn, expected = conv_operands(spec)
    if operands is not None:
        drawn, expected = operands
    program = product_program(hardware, replace(spec, sums=True), overlap)
    program = Program.from_bytes(program.to_bytes())
    program.check()
    found = execute(program, drawn, seed)
    np.testing.assert_array_equal(found.result, expected)
    assert found.sums.dtype == np.int64
    np.testing.assert_array_equal(found.sums, expected.astype(np.int64).sum((0, 1, 2)))
    return program


def instructions(program, kind, **fields):
    return [
        one
        for one in program.decoded
        if isinstance(one, kind) and all(getattr(one, name) == v for name, v in fields.items())
    ]


@pytest.mark.parametrize("overlap", [True, False], ids=["double buffered", "one buffer"])
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("geometry", ["tails", "strides", "channel groups"])
def test_a_convolution_gives_the_sums_of_its_channels(geometry, chip, overlap):
    spec = conv_spec("fprop", *GEOMETRIES[geometry], U4, S4)
    summed(spec, CHIPS[chip], overlap)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_any_geometry_and_an_offset(geometry):
    """0..255 is -128..127 and an offset: the host adds that to the sums, too."""
    summed(conv_spec("fprop", *GEOMETRIES[geometry], U8, S4, groups=1), PYNQ)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("chip", ["int8", "out32", "4 rows of 8"])
def test_sums_that_need_64_bits_are_added_in_chunks(chip, sign):
    """127 * 127 * 2304 = 2^25.1: int32 holds 57 such accumulators."""
    x, w = np.full((6, 8, 8, 256), 127), np.full((18, 256, 3, 3), 127 * sign)
    spec = conv_spec("fprop", x.shape, 18, (3, 3), ((1, 1), (0, 0), (1, 1), 1), S8, S8)
    operands = [x, w], np.full((6, 6, 6, 18), 127 * 127 * 2304 * sign)
    assert abs(operands[1].sum((0, 1, 2))).max() > 1 << 31
    program = summed(spec, CHIPS[chip], operands=operands)
    chunks = (
        program.regions["sums"].size
        // product_program(CHIPS[chip], replace(spec, first=S4, second=S4, sums=True))
        .regions["sums"]
        .size
    )
    assert chunks > 1


SMALL = replace(PYNQ, log_acc_buff_size=12)
"""64 tiles of ACC."""


@pytest.mark.parametrize("log_out_width", [3, 4, 5])
def test_blocks_in_small_scratchpads(log_out_width):
    chip = hw.checked(replace(SMALL, log_out_width=log_out_width))
    spec = conv_spec("fprop", (3, 11, 9, 20), 50, (3, 3), SAME, U4, S4)
    program = summed(spec, chip)
    carried = program.form.carry
    assert carried == (Carry(0, 0) if log_out_width == 5 else None)


def test_blocks_whose_layout_changes_in_one_place_do_not_mix_channels():
    """Two output tiles a block, of 4 and then of 3 rows."""
    chip = hw.checked(replace(SMALL, log_out_width=5, log_acc_buff_size=14))
    for rows in (7, 11, 13):
        summed(conv_spec("fprop", (5, rows, 6, 16), 32, (3, 3), SAME, U4, S4), chip)


def test_whole_totals_are_added_up_in_their_places():
    """Where a result is one slice, blocks of a channel are summed by not clearing: the ALU adds
    every tile of ACC once, not every result."""
    spec = conv_spec("fprop", (16, 32, 32, 16), 16, (3, 3), SAME, U4, S4)
    results, counts, slower = 16 * 32 * 32, {}, {}
    for chip in ("pynq-out32", "pynq"):
        program = product_program(hw.get(chip), replace(spec, sums=True))
        adds = instructions(program, Alu, alu_opcode=AluOp.ADD, use_imm=False)
        resets = instructions(program, Gemm, reset=True)
        counts[chip] = [sum(one.count for one in some) for some in (adds, resets)]
        alone = product_program(hw.get(chip), spec)
        slower[chip] = program.cycles(32).total / alone.cycles(32).total
    assert counts["pynq"] == [results, results + LANES]
    assert max(counts["pynq-out32"]) < results / 4
    assert slower["pynq-out32"] < 1.01 and slower["pynq"] < 1.35


def test_a_tile_is_not_added_to_twice_in_a_row():
    """The Chisel core reads a tile before the last write to it is there."""
    spec = conv_spec("fprop", (1, 6, 6, 4), 16, (3, 3), SAME, U4, S4)
    program = product_program(PYNQ, replace(spec, sums=True))
    (add, *_) = instructions(program, Alu, alu_opcode=AluOp.ADD, use_imm=False)
    assert add.uop_end - add.uop_bgn == LANES
    once = replace(add, uop_end=add.uop_bgn + 1, iter_out=add.iter_out * LANES)
    changed = [once if one is add else one for one in program.decoded]
    with pytest.raises(PortabilityError, match="that it has just written"):
        portable.check(PYNQ, changed, bytes(program.regions["uops"].start) + program.uops)


@pytest.mark.parametrize("overlap", [True, False], ids=["double buffered", "one buffer"])
@pytest.mark.parametrize("chip", CHIPS)
def test_a_matrix_product_with_relu(chip, overlap):
    """Elements of 2 bits hold -10..5 in two digits, those of 8 bits shifts as well."""
    few = chip.startswith("int2")
    spec = GemmSpec(37, 20, 40, *2 * [Values(-8, 5) if few else S4], groups=1 if few else 3)
    operands, product = gemm_operands(spec)
    program = product_program(CHIPS[chip], replace(spec, relu=True), overlap)
    program = Program.from_bytes(program.to_bytes())
    program.check()
    assert not program.has_sums and program.form.carry is None
    np.testing.assert_array_equal(run(program, operands, seed=1), np.maximum(product, 0))


@pytest.mark.parametrize("chip", ["int8", "int4", "out32", "4 rows of 8"])
@pytest.mark.parametrize("kind", ["fprop", "dgrad", "wgrad"])
def test_a_convolution_with_relu(kind, chip):
    spec = conv_spec(kind, *GEOMETRIES["strides"], S4, S4)
    operands, expected = conv_operands(spec)
    program = product_program(CHIPS[chip], replace(spec, relu=True))
    program.check()
    np.testing.assert_array_equal(run(program, operands, seed=1), np.maximum(expected, 0))


def test_the_sign_that_a_relu_takes_saves_a_slice():
    """7 * 7 * 1000 = 49,000 has 16 bits, and 17 with a sign."""
    spec = GemmSpec(20, 16, 1000, S4, S4)
    a, b = np.full((20, 1000), 7), np.full((1000, 16), 7)
    b[:, 3] = -7
    counts = []
    for relu in (False, True):
        program = product_program(PYNQ, replace(spec, relu=relu))
        counts.append(program.regions["out"].size)
        expected = np.maximum(a @ b, 0) if relu else a @ b
        np.testing.assert_array_equal(run(program, [a, b]), expected)
    assert counts[0] * 2 == counts[1] * 3
    assert len(instructions(program, Store)) > 0


@pytest.mark.parametrize("chip", ["pynq-int4", "pynq-int4-out32"])
def test_groups_that_are_sorted_have_sums_and_relus_too(chip):
    """With an offset, the host adds it as often as each channel counts."""
    chip, ordered = hw.get(chip), {"sums": 0, "offset": 0, "relu": 0}
    for seed in range(24):
        spec, operands, expected = some_conv(Random(seed))
        if spec.kind == "fprop":
            program = summed(spec, chip, operands=(operands, expected))
            ordered["sums"] += program.form.groups is not None
            ordered["offset"] += program.form.groups is not None and program.form.inp.offset != 0
        spec, operands, expected = some_gemm(Random(seed))
        if spec.a == spec.b == S4:
            program = product_program(chip, replace(spec, relu=True))
            program.check()
            found = run(program, operands, seed=seed)
            np.testing.assert_array_equal(found, np.maximum(expected, 0))
            ordered["relu"] += program.form.groups is not None
    assert min(ordered.values()) > 1


def test_what_an_epilogue_cannot_be_is_refused():
    offset = GemmSpec(4, 4, 4, U8, S4, relu=True)
    with pytest.raises(UsageError, match="its operands have offsets"):
        product_program(PYNQ, offset)
    spec = conv_spec("wgrad", *GEOMETRIES["strides"], S4, S4)
    with pytest.raises(UsageError, match="an fprop without ReLU"):
        product_program(PYNQ, replace(spec, sums=True))
    tiny = hw.checked(replace(PYNQ, log_acc_buff_size=8))
    fprop = conv_spec("fprop", *GEOMETRIES["strides"], S4, S4)
    product_program(tiny, fprop)
    with pytest.raises(UsageError, match="ACC holds 4 tiles of 64 bytes and 5 are needed"):
        product_program(tiny, replace(fprop, sums=True))
