"""Encoding and decoding: every field, the bits upstream's C structs have, what is refused."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Finish, Gemm, Load, Opcode, Store
from sqcompile.backends.vta.uops import Uop, decode_uops, encode_uops, uop_layout
from sqcompile.errors import EncodingError
from tests.backends.vta.programs import PYNQ, SHAPES, nest, transfer
from tests.backends.vta.strategies import instructions


def struct(*fields):
    """A C struct of 64-bit bit-fields, as include/vta/hw_spec.h declares instructions."""
    common = [("opcode", 3), *((flag, 1) for flag in isa.TOKENS)]
    declared = [(name, ctypes.c_uint64, width) for name, width in (*common, *fields)]
    return type("Struct", (ctypes.Structure,), {"_fields_": declared})


_LOOPS = [("uop_bgn", 13), ("uop_end", 14), ("iter_out", 14), ("iter_in", 14)]
_ACC = [(name, 11) for name in ("dst_out", "dst_in", "src_out", "src_in")]
_MEM = struct(
    *[("memory", 3), ("sram_base", 16), ("dram_base", 32), ("unused", 6)],
    *[("y_size", 16), ("x_size", 16), ("x_stride", 16)],
    *[(name, 4) for name in ("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1")],
)
UPSTREAM = {
    Opcode.LOAD: _MEM,
    Opcode.STORE: _MEM,
    Opcode.GEMM: struct(
        ("reset", 1), *_LOOPS, ("unused", 1), *_ACC, ("wgt_out", 10), ("wgt_in", 10)
    ),
    Opcode.ALU: struct(
        *[("reset", 1), *_LOOPS, ("unused", 1), *_ACC],
        *[("alu_opcode", 3), ("use_imm", 1), ("imm", 16)],
    ),
    Opcode.FINISH: struct(("unused", 57), ("unused_too", 64)),
}


@settings(max_examples=300)
@given(instructions(PYNQ))
def test_bits_are_those_of_the_c_structs(instruction):
    values = {"opcode": int(instruction.opcode)}
    values |= {name: int(value) for name, value in vars(instruction).items()}
    if "imm" in values:
        values["imm"] &= 0xFFFF
    assert bytes(UPSTREAM[instruction.opcode](**values)) == isa.encode(PYNQ, instruction)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60)
@given(data=st.data())
def test_an_instruction_survives_its_bits(shape, data):
    hardware = SHAPES[shape]
    instruction = data.draw(instructions(hardware))
    assert isa.decode(hardware, isa.encode(hardware, instruction)) == instruction


@settings(max_examples=300)
@given(st.binary(min_size=16, max_size=16))
def test_bits_are_an_instruction_with_these_bits_or_refused(bits):
    try:
        instruction = isa.decode(PYNQ, bits)
    except EncodingError:
        return
    assert isa.encode(PYNQ, instruction) == bits


def one_of_each():
    return [
        transfer(Load, Memory.INP, 100, 4),
        transfer(Store, Memory.OUT, 100, 4),
        nest(Gemm, 0, 1),
        nest(Alu, 0, 1, alu_opcode=AluOp.ADD),
    ]


@pytest.mark.parametrize("instruction", one_of_each(), ids=lambda one: one.opcode.name)
def test_every_field_is_bounded(instruction):
    checked = 0
    for field in isa.layout(PYNQ, instruction.opcode):
        if isinstance(getattr(instruction, field.name), bool):
            continue
        low, high = field.range
        for value in (low - 1, high + 1):
            with pytest.raises(EncodingError, match=f"{field.name} = {value} is not in {low}"):
                isa.encode(PYNQ, replace(instruction, **{field.name: value}))
            checked += 1
    assert checked > 15


def test_fields_never_overlap_or_cross_a_word():
    for hardware in SHAPES.values():
        for opcode in Opcode:
            taken = set(range(3))
            for field in isa.layout(hardware, opcode):
                bits = set(range(field.low, field.low + field.width))
                assert not taken & bits and max(bits) < 128, (hardware.name, opcode, field)
                assert field.low // 64 == max(bits) // 64
                taken |= bits


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (nest(Gemm, 2, 2), "GEMM has no micro-op"),
        (nest(Gemm, 0, 1, iter_in=0), "a loop of no iteration"),
        (nest(Alu, 0, 1, alu_opcode=AluOp.ADD, iter_out=0), "a loop of no iteration"),
        (nest(Gemm, 0, 8193), "past the buffer"),
        (transfer(Load, Memory.OUT, 100, 1), "LOAD cannot name OUT"),
        (transfer(Store, Memory.ACC, 100, 1), "STORE cannot name ACC"),
        (transfer(Store, Memory.OUT, 100, 1, x_pad_0=1), "STORE has no padding"),
        (transfer(Load, Memory.INP, 100, 1, pop_prev=True), "LOAD, which has no pop_prev"),
        (transfer(Load, Memory.WGT, 100, 1, push_prev=True), "LOAD, which has no push_prev"),
        (transfer(Store, Memory.OUT, 100, 1, pop_next=True), "STORE, which has no pop_next"),
        (transfer(Store, Memory.OUT, 100, 1, push_next=True), "STORE, which has no push_next"),
    ],
)
def test_what_is_no_instruction_is_refused_both_ways(instruction, message, monkeypatch):
    with pytest.raises(EncodingError, match=message):
        isa.encode(PYNQ, instruction)
    with monkeypatch.context() as unchecked:
        unchecked.setattr(isa, "check", lambda *arguments: None)
        bits = isa.encode(PYNQ, instruction)
    with pytest.raises(EncodingError, match=f"instruction 1: .*{message}"):
        isa.decode_program(PYNQ, isa.encode(PYNQ, Finish()) + bits)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (5, "there is no opcode 5"),
        (4 | 1 << 7, r"ALU has unused bits that are set: \[7\]"),
        (2 | 1 << 63, r"GEMM has unused bits that are set: \[63\]"),
        (3 | 1 << 127, r"FINISH has unused bits that are set: \[127\]"),
        (0 | 1 << 58, r"LOAD has unused bits that are set: \[58\]"),
        (0 | 6 << 7, "there is no memory 6"),
        (4 | 5 << 64 + 44, "there is no alu_opcode 5"),
    ],
)
def test_bits_without_a_meaning_are_refused(bits, message):
    with pytest.raises(EncodingError, match=message):
        isa.decode(PYNQ, bits.to_bytes(16, "little"))


def test_a_program_is_whole_instructions():
    with pytest.raises(EncodingError, match="17 bytes are no whole number"):
        isa.decode_program(PYNQ, bytes(17))


def test_int8_is_widened_only_where_upstream_does():
    with pytest.raises(EncodingError, match="ACC_8BIT needs"):
        isa.encode(SHAPES["int4"], transfer(Load, Memory.ACC_8BIT, 100, 1))


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_a_micro_op_survives_its_bits(shape, data):
    hardware = SHAPES[shape]
    fields = uop_layout(hardware)
    uop = Uop(*(data.draw(st.integers(*field.range)) for field in fields))
    words = np.frombuffer(encode_uops(hardware, [uop]), "<u4")
    assert decode_uops(hardware, words).tolist() == [list(uop)]
    assert sum(field.width for field in fields) <= 32


@pytest.mark.parametrize("index", range(3))
def test_an_index_of_a_micro_op_is_bounded(index):
    limit = (2048, 2048, 1024)[index]
    uop = [0, 0, 0]
    uop[index] = limit
    with pytest.raises(EncodingError, match=f"micro-op 1: .* = {limit} is not in 0"):
        encode_uops(PYNQ, [Uop(0, 0), Uop(*uop)])
