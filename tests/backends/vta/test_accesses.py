"""What a program may not touch: past the ends, before it is written, before its token."""

from dataclasses import replace

import pytest

from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Gemm, Load
from sqcompile.backends.vta.simulator import machine
from sqcompile.backends.vta.uops import Uop, encode_uops
from sqcompile.errors import IllegalAccessError
from tests.backends.vta.programs import PYNQ, TILES, multiply_and_add, nest, transfer

UOP, ACC, INP, WGT, GEMM, ALU, STORE, FINISH = range(8)
ORDERS = (None, *range(6))


def spoilt(where, **changes):
    """The right program with an instruction changed -> program, DRAM."""
    program, dram = multiply_and_add(PYNQ)
    program[where] = replace(program[where], **changes)
    return program, dram


def refused(program, dram, message):
    for order in ORDERS:
        with pytest.raises(IllegalAccessError, match=message):
            machine.run(PYNQ, program, dram, order)


def test_the_program_itself_is_right():
    program, dram = multiply_and_add(PYNQ)
    assert len({machine.run(PYNQ, program, dram, order).dram for order in ORDERS}) == 1


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (INP, {"sram_base": 2037}, r"instruction 2 \(LOAD\): INP tile 2048 is past the end"),
        (WGT, {"sram_base": 1013}, "WGT tile 1024 is past the end: there are 1024"),
        (ACC, {"y_pad_1": 15, "y_size": 170}, "ACC tile 2219 is past the end"),
        (UOP, {"sram_base": 8192}, "UOP tile 8192 is past the end"),
        (STORE, {"sram_base": 2040}, "OUT tile 2051 is past the end"),
        (GEMM, {"dst_in": 200}, "ACC tile 2200 is past the end"),
        (GEMM, {"src_in": 200}, "INP tile 2200 is past the end"),
        (GEMM, {"wgt_in": 100}, "WGT tile 1100 is past the end"),
        (ALU, {"use_imm": False, "src_in": 200}, "ACC tile 2200 is past the end"),
    ],
)
def test_past_the_end_of_a_scratchpad(where, changes, message):
    refused(*spoilt(where, **changes), message)


@pytest.mark.parametrize("where", [INP, WGT, ACC, UOP, STORE])
def test_outside_dram(where):
    _, dram = multiply_and_add(PYNQ)
    refused(*spoilt(where, dram_base=len(dram)), "DRAM .* is outside 0x1000")
    refused(*spoilt(where, dram_base=1), "DRAM .* is outside 0x1000")


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (INP, {"sram_base": 1}, r"instruction 4 \(GEMM\): reads INP tile 0, which nothing"),
        (WGT, {"x_size": TILES - 2}, "reads WGT tiles 10, 11, which nothing has written"),
        (ACC, {"x_size": 0}, "reads ACC tiles 0, 1, 2, 3 and 8 more, which nothing"),
        (UOP, {"sram_base": 1}, "reads UOP tile 0, which nothing has written"),
        (ALU, {"use_imm": False, "src_out": 0, "src_in": 2}, "reads ACC tiles 12, 14, 16, 18 and"),
        (STORE, {"sram_base": 4}, "reads OUT tiles 12, 13, 14, 15, which nothing"),
    ],
)
def test_what_nothing_has_written(where, changes, message):
    refused(*spoilt(where, **changes), message)


def test_loaded_accumulators_are_not_outputs():
    """On hardware OUT is another buffer, which only GEMM and ALU write."""
    program, dram = multiply_and_add(PYNQ)
    program[ALU] = replace(program[ALU], iter_in=TILES - 1)
    program[GEMM] = replace(program[GEMM], iter_in=TILES - 1)
    refused(program, dram, r"\(STORE\): reads OUT tile 11, which nothing has written")


def test_outputs_of_a_reset_are_undefined():
    program, dram = multiply_and_add(PYNQ)
    reset = nest(Gemm, 0, 1, iter_in=TILES, dst_in=1, reset=True, push_next=True)
    program[ALU : ALU + 1] = [replace(program[ALU], push_next=False), reset]
    refused(program, dram, r"\(STORE\): reads OUT tiles 0, 1, 2, 3 and 8 more, which nothing")


def test_a_reset_defines_accumulators():
    program, dram = multiply_and_add(PYNQ)
    program[ACC] = nest(Gemm, 0, 1, iter_in=TILES, dst_in=1, reset=True)
    machine.run(PYNQ, program, dram)


@pytest.mark.parametrize("imm", [-32, 32, -(1 << 15)])
def test_a_shift_that_no_machine_agrees_on(imm):
    refused(*spoilt(ALU, alu_opcode=AluOp.SHR, imm=imm), "shifts by more than 31")


def test_an_operand_without_its_token():
    """Whether the LOAD module happened to be fast or slow."""
    program, dram = multiply_and_add(PYNQ)
    program[GEMM] = replace(program[GEMM], pop_prev=False)
    program[ALU] = replace(program[ALU], pop_prev=True)
    message = "reads (INP|WGT) .* (without waiting for LOAD to have written|which nothing)"
    refused(program, dram, message)


def test_an_operand_that_is_loaded_again_too_early():
    program, dram = multiply_and_add(PYNQ)
    again = transfer(Load, Memory.INP, program[INP].dram_base, TILES, push_next=True)
    program.insert(GEMM, again)
    program[ALU + 1] = replace(program[ALU + 1], pop_prev=True)
    refused(
        program,
        dram,
        "writes INP .* without waiting for COMPUTE to have read|"
        "reads INP .* without waiting for LOAD to have written",
    )


def test_an_output_that_is_computed_again_too_early():
    program, dram = multiply_and_add(PYNQ)
    program.insert(FINISH, nest(Alu, 0, 1, alu_opcode=AluOp.ADD, use_imm=True))
    refused(
        program,
        dram,
        "writes OUT tile 0 without waiting for STORE to have read|"
        "reads OUT tile 0 without waiting for COMPUTE to have written",
    )


def test_bits_above_a_micro_ops_fields_are_not_looked_at():
    small = replace(PYNQ, log_inp_buff_size=14, log_acc_buff_size=16)
    word = int.from_bytes(encode_uops(small, [Uop(0, 0, 0)]), "little") | 1 << 31
    program, dram = multiply_and_add(small)
    address = program[UOP].dram_base * 4
    changed = dram[:address] + word.to_bytes(4, "little") + dram[address + 4 :]
    wanted = machine.run(small, program, dram).dram
    assert machine.run(small, program, changed).dram[address + 4 :] == wanted[address + 4 :]
