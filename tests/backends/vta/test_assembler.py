"""Listings: how they read, and that they assemble to what they were made of."""

import re
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqcompile.backends.vta import assembler
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Finish, Gemm, Load, Store
from sqcompile.errors import EncodingError
from tests.backends.vta.programs import PYNQ, nest, transfer
from tests.backends.vta.strategies import instructions

PROGRAM = [
    transfer(Load, Memory.ACC, 100, 6, sram_base=10, push_prev=True),
    transfer(Load, Memory.INP, 328, 2, y_size=3, x_stride=8, y_pad_0=1, x_pad_1=2, pop_next=True),
    nest(Gemm, 0, 1, reset=True),
    nest(Gemm, 0, 2, iter_out=2, dst_out=2, src_in=1, wgt_out=3, pop_prev=True, push_prev=True),
    nest(Alu, 2, 3, alu_opcode=AluOp.SHR, use_imm=True, imm=-5, push_next=True),
    nest(Alu, 2, 3, alu_opcode=AluOp.MAX),
    transfer(Store, Memory.OUT, 432, 6, pop_prev=True, push_prev=True),
    Finish(pop_next=True),
]
TEXT = """\
    0: load.acc    sram 10 <- dram 100  size 1x6 stride 6  push g2l  ; 0x1900, 384 bytes
    1: load.inp    sram 0 <- dram 328  size 3x2 stride 8 pad 1,0,0,2  pop g2l  ; 0x1480, 96 bytes
    2: gemm.reset  uop 0..1 loop 1x1 dst 0,0 src 0,0 wgt 0,0
    3: gemm        uop 0..2 loop 2x1 dst 2,0 src 0,1 wgt 3,0  pop l2g push g2l
    4: alu.shr     uop 2..3 loop 1x1 dst 0,0 src 0,0 imm -5  push g2s
    5: alu.max     uop 2..3 loop 1x1 dst 0,0 src 0,0
    6: store.out   dram 432 <- sram 0  size 1x6 stride 6  pop g2s push s2g  ; 0x1b00, 96 bytes
    7: finish      pop s2g
"""


def test_a_listing_reads_like_this():
    lines = assembler.listing(PYNQ, PROGRAM).splitlines(keepends=True)
    assert lines[0] == "; VTA: 8 instructions, addresses in tiles\n"
    assert ";   LOG_WGT_BUFF_SIZE = 18\n" in lines
    assert "".join(line for line in lines if line[0] != ";") == dedent(TEXT)


def test_a_listing_assembles():
    assert assembler.parse(TEXT) == PROGRAM
    unnumbered = re.sub(r"\d+: (.*?)(;.*)?\n", r"\1\n\n", TEXT)
    assert assembler.parse(unnumbered) == PROGRAM


@settings(max_examples=200)
@given(st.lists(instructions(PYNQ), max_size=3))
def test_every_instruction_survives_its_text(program):
    assert assembler.parse(assembler.listing(PYNQ, program)) == program


def test_remarks_stand_below_their_instruction():
    text = assembler.listing(PYNQ, PROGRAM[-1:], lambda one: [one.opcode.name])
    assert text.endswith("0: finish      pop s2g\n ;   FINISH\n")
    assert assembler.parse(text) == PROGRAM[-1:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("finsh", "line 2: 'finsh' is no instruction"),
        ("gemm uop 0..1 loop 1x1 dst 0,0 src 0,0", "is no instruction"),
        ("finish pop g2l", "COMPUTE cannot pop g2l"),
        ("finish pop", "is no instruction"),
        ("load.acd sram 0 <- dram 1 size 1x1 stride 1", "no memory 'acd'; there are uop, wgt"),
        ("alu.div uop 0..1 loop 1x1 dst 0,0 src 0,0", "there is no alu_opcode 'div'"),
    ],
)
def test_what_is_no_instruction_is_refused(line, message):
    with pytest.raises(EncodingError, match=message):
        assembler.parse(f"; a remark\n{line}\n")
