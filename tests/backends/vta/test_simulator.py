"""The simulator against the slow semantics, in several orders of the modules."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Finish, Gemm, Load, Store
from sqcompile.backends.vta.simulator import core, elements, machine, products
from sqcompile.backends.vta.simulator.hazards import rounds
from sqcompile.backends.vta.uops import Uop, encode_uops
from tests.backends.vta import slow
from tests.backends.vta.programs import (
    PYNQ,
    SHAPES,
    TILES,
    Image,
    multiply_and_add,
    nest,
    random_program,
    transfer,
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_any_program_does_what_its_instructions_say(shape, seed):
    hardware = SHAPES[shape]
    program, dram = random_program(hardware, seed)
    expected = slow.run(hardware, program, dram)
    assert expected != dram
    for order in (None, 1, 2):
        assert machine.run(hardware, program, dram, order).dram == expected


def test_products_that_share_a_weight_tile_or_an_accumulator():
    program, dram = multiply_and_add(PYNQ)
    gemm = program[4]
    for steps in ({"wgt_in": 0}, {"dst_in": 0}, {"wgt_in": 0, "dst_in": 0}):
        changed = [*program[:4], replace(gemm, **steps), *program[5:]]
        assert machine.run(PYNQ, changed, dram).dram == slow.run(PYNQ, changed, dram)


def test_a_long_nest_is_computed_in_pieces(monkeypatch):
    monkeypatch.setattr(core, "_CHUNK", 7)
    program, dram = random_program(PYNQ, 5)
    assert machine.run(PYNQ, program, dram).dram == slow.run(PYNQ, program, dram)


def test_sums_that_float32_does_not_hold_are_exact():
    """It holds no odd number beyond 2^24."""
    memory = core.Core(PYNQ, b"")
    acc = np.zeros((16, 1, 16), np.int32)
    inp, weights = np.full((1, 1, 16), -127, np.float32), np.full((1, 16, 16), 127, np.float32)
    weights[0, :, 0] = 126
    dst, none = np.repeat(np.arange(16), 75), np.zeros(16 * 75, np.int64)
    products.accumulate(acc, inp, weights, (dst, none, none), memory.exact)
    assert (acc == -75 * 127 * (15 * 127 + 126)).all()


def test_accumulators_wrap():
    image = Image(PYNQ)
    values = np.array([2**31 - 1, -(2**31), 2**30, -1] * 4, "<i4")
    acc = image.place(Memory.ACC, values.tobytes())
    uops = image.place(Memory.UOP, encode_uops(PYNQ, [Uop(0, 0)]))
    hardware = SHAPES["out32"]
    out = image.place(Memory.ACC, bytes(64))

    def result(opcode, imm):
        program = [
            transfer(Load, Memory.UOP, uops, 1),
            transfer(Load, Memory.ACC, acc, 1),
            nest(Alu, 0, 1, alu_opcode=opcode, use_imm=True, imm=imm, push_next=True),
            transfer(Store, Memory.OUT, out, 1, pop_prev=True, push_prev=True),
            Finish(pop_next=True),
        ]
        dram = machine.run(hardware, program, bytes(image.data)).dram
        return np.frombuffer(dram[-64:], "<i4")[:4].tolist()

    assert result(AluOp.ADD, 1) == [-(2**31), -(2**31) + 1, 2**30 + 1, 0]
    assert result(AluOp.MUL, 2) == [-2, 0, -(2**31), -2]
    assert result(AluOp.SHR, -1) == [-2, 0, -(2**31), -2]
    assert result(AluOp.SHR, 15) == [65535, -65536, 32768, -1]


def test_int8_is_widened_into_accumulators():
    image = Image(PYNQ)
    values = np.arange(-8, 8, dtype=np.int8)
    acc = image.place(Memory.ACC_8BIT, values.tobytes())
    uops = image.place(Memory.UOP, encode_uops(PYNQ, [Uop(0, 0)]))
    out = image.place(Memory.OUT, bytes(16))
    program = [
        transfer(Load, Memory.UOP, uops, 1),
        transfer(Load, Memory.ACC_8BIT, acc, 1),
        nest(Alu, 0, 1, alu_opcode=AluOp.MUL, use_imm=True, imm=3, push_next=True),
        transfer(Store, Memory.OUT, out, 1, pop_prev=True, push_prev=True),
        Finish(pop_next=True),
    ]
    outcome = machine.run(PYNQ, program, bytes(image.data))
    assert np.frombuffer(outcome.dram[-16:], np.int8).tolist() == (3 * values).tolist()
    assert outcome.profile.acc_load_nbytes == 64  # as upstream counts it


def test_counters_leave_out_padding_and_resets():
    program, dram = multiply_and_add(PYNQ)
    padded = replace(program[2], y_pad_0=1, x_pad_0=1)
    reset = nest(Gemm, 0, 1, iter_in=TILES, dst_in=1, reset=True)
    changed = [*program[:2], padded, program[3], replace(reset, pop_prev=True)]
    changed += [replace(program[4], pop_prev=False), *program[5:]]
    assert machine.run(PYNQ, changed, dram).profile.as_json() == {
        "inp_load_nbytes": TILES * 16,
        "wgt_load_nbytes": TILES * 256,
        "acc_load_nbytes": TILES * 64,
        "uop_load_nbytes": 4,
        "out_store_nbytes": TILES * 16,
        "gemm_counter": TILES,
        "alu_counter": TILES,
    }


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
def test_packing_is_the_inverse_of_unpacking(width):
    data = np.random.default_rng(width).integers(0, 256, (3, 16), np.uint8)
    values = elements.unpacked(data, width)
    assert values.min() < 0 <= values.max() < 1 << (width - 1)
    assert (elements.packed(values, width) == data).all()


def test_the_first_int4_is_the_low_nibble():
    assert elements.unpacked(np.array([0x8F], np.uint8), 4).tolist() == [-1, -8]


def test_rounds_keep_what_depends_apart():
    dst, src = np.array([0, 1, 2, 1, 0]), np.array([5, 0, 6, 7, 1])
    found = [some.tolist() for some in rounds(dst, src, 8)]
    assert found == [[0, 2], [1], [3], [4]]
    assert [some.tolist() for some in rounds(src, src, 8)] == [[0, 1, 2, 3, 4]]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=14))
def test_rounds_compute_what_the_order_does(operations):
    dst, src = np.array(operations).T
    one_by_one = np.arange(1, 7)
    for to, by in operations:
        one_by_one[to] = (3 * one_by_one[to] + one_by_one[by]) % 1009
    together = np.arange(1, 7)
    for some in rounds(dst, src, 6):
        together[dst[some]] = (3 * together[dst[some]] + together[src[some]]) % 1009
    assert together.tolist() == one_by_one.tolist()
