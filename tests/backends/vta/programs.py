"""Small programs: one that is right in every way, to be spoilt, and random ones."""

from dataclasses import replace

import numpy as np

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Finish, Gemm, Load, Store
from sqcompile.backends.vta.uops import Uop, encode_uops

PYNQ = hw.get("pynq")
SHAPES = {
    "int8": PYNQ,
    "int4": hw.get("pynq-int4"),
    "int8 by int4": hw.checked(replace(PYNQ, name="i8w4", log_wgt_width=2, log_wgt_buff_size=17)),
    "out32": hw.checked(replace(PYNQ, name="o32", log_out_width=5)),
    "4 rows of 8": hw.checked(
        replace(PYNQ, name="b4", log_batch=2, log_block=3, log_wgt_buff_size=15)
    ),
    "int2, 2 rows of 4": hw.checked(
        replace(
            PYNQ,
            name="i2",
            log_inp_width=1,
            log_wgt_width=1,
            log_out_width=4,
            log_batch=1,
            log_block=2,
            log_inp_buff_size=6,
            log_wgt_buff_size=7,
            log_acc_buff_size=11,
        )
    ),
}
TILES = 12
"""Tiles of INP, WGT and ACC that the programs load."""


class Image:
    """DRAM from address 4096 up, filled one piece after the other."""

    def __init__(self, hardware):
        self.hardware = hardware
        self.data = bytearray(4096)

    def place(self, memory, data):
        """Append bytes -> their address in tiles of `memory`."""
        unit = self.hardware.element_bytes(memory)
        self.data += bytes(-len(self.data) % unit)
        address = len(self.data) // unit
        self.data += data
        return address


def transfer(kind, memory, dram, count, **more):
    return kind(
        memory=memory,
        **{"sram_base": 0, "dram_base": dram, "y_size": 1, "x_size": count, "x_stride": count}
        | more,
    )


def nest(kind, begin, end, **more):
    steps = dict.fromkeys(("dst_out", "dst_in", "src_out", "src_in"), 0)
    return kind(**{"uop_bgn": begin, "uop_end": end, "iter_out": 1, "iter_in": 1} | steps | more)


def multiply_and_add(hardware, seed=0):
    """(program, DRAM): OUT = ACC + INP @ WGT.T + 1 over TILES tiles, one load and store each."""
    rng = np.random.default_rng(seed)
    image = Image(hardware)

    def filled(memory):
        return image.place(memory, rng.bytes(TILES * hardware.element_bytes(memory)))

    inp, wgt, acc = filled(Memory.INP), filled(Memory.WGT), filled(Memory.ACC)
    uops = image.place(Memory.UOP, encode_uops(hardware, [Uop(0, 0, 0)]))
    out = filled(Memory.OUT)
    over_all = {"iter_in": TILES, "dst_in": 1, "src_in": 1}
    program = [
        transfer(Load, Memory.UOP, uops, 1),
        transfer(Load, Memory.ACC, acc, TILES),
        transfer(Load, Memory.INP, inp, TILES),
        transfer(Load, Memory.WGT, wgt, TILES, push_next=True),
        nest(Gemm, 0, 1, **over_all, wgt_in=1, pop_prev=True),
        nest(Alu, 0, 1, **over_all, alu_opcode=AluOp.ADD, use_imm=True, imm=1, push_next=True),
        transfer(Store, Memory.OUT, out, TILES, pop_prev=True, push_prev=True),
        Finish(pop_next=True),
    ]
    return program, bytes(image.data)


def random_program(hardware, seed):
    """(program, DRAM): padded loads, GEMMs and ALU operations with any overlap, two stores."""
    rng = np.random.default_rng(seed)
    image = Image(hardware)
    uops, body = [], []
    for _ in range(rng.integers(3, 9)):
        body.append(_random_nest(hardware, rng, uops))
    uops.append(Uop(0, 0, 0))
    everything = {
        "iter_in": TILES,
        "dst_in": 1,
        "src_in": 1,
        "alu_opcode": AluOp.ADD,
        "use_imm": True,
    }
    last = nest(Alu, len(uops) - 1, len(uops), **everything, imm=-3, push_next=True)
    split = len(body) // 2

    def filled(memory, count=2 * TILES):
        return image.place(memory, rng.bytes(count * hardware.element_bytes(memory)))

    padded = {"y_size": 2, "x_size": 3, "x_stride": 5, "y_pad_0": 1, "x_pad_1": 1}
    program = [
        transfer(Load, Memory.UOP, image.place(Memory.UOP, encode_uops(hardware, uops)), len(uops)),
        transfer(Load, Memory.ACC, filled(Memory.ACC), TILES),
        transfer(Load, Memory.INP, filled(Memory.INP), TILES),
        transfer(Load, Memory.INP, filled(Memory.INP), 0, **padded),
        transfer(Load, Memory.WGT, filled(Memory.WGT), TILES, push_next=True),
        replace(body[0], pop_prev=True),
        *body[1:split],
        replace(last, push_prev=True),
        transfer(
            Store,
            Memory.OUT,
            filled(Memory.OUT, 4 * TILES),
            0,
            **{"y_size": 3, "x_size": TILES // 3, "x_stride": 7},
            pop_prev=True,
            push_prev=True,
        ),
        transfer(Load, Memory.WGT, filled(Memory.WGT), TILES, pop_next=True, push_next=True),
        replace(body[split], pop_prev=True, pop_next=True),
        *body[split + 1 :],
        last,
        transfer(Store, Memory.OUT, filled(Memory.OUT), TILES, pop_prev=True, push_prev=True),
        Finish(pop_next=True),
    ]
    return program, bytes(image.data)


def _random_nest(hardware, rng, uops):
    """A GEMM or ALU instruction over the loaded tiles; its micro-ops go to `uops`."""
    outer, inner, count = (int(n) for n in rng.integers(1, 4, 3))
    begin = len(uops)
    steps, bases = {}, []
    for name in Uop._fields:
        by_outer = int(rng.integers(0, 1 + (TILES - 1) // 2 // max(1, outer - 1)))
        by_inner = int(rng.integers(0, 1 + (TILES - 1) // 2 // max(1, inner - 1)))
        steps |= {f"{name}_out": by_outer, f"{name}_in": by_inner}
        furthest = (outer - 1) * by_outer + (inner - 1) * by_inner
        bases.append(rng.integers(0, TILES - furthest, count).tolist())
    uops += [Uop(*indices) for indices in zip(*bases, strict=True)]
    loops = {"iter_out": outer, "iter_in": inner}
    kind = rng.integers(0, 5)
    if kind < 2:
        return nest(Gemm, begin, len(uops), **loops, **steps)
    del steps["wgt_out"], steps["wgt_in"]
    opcode = AluOp(int(rng.integers(0, 5)))
    # A shift by a register is by whatever it holds: only immediates are sure to be legal.
    immediate = kind < 4 or opcode is AluOp.SHR
    limit = 16 if opcode is AluOp.SHR else 1 << 15
    imm = int(rng.integers(-limit, limit)) if immediate else 0
    return nest(
        Alu, begin, len(uops), **loops, **steps, alu_opcode=opcode, use_imm=immediate, imm=imm
    )
