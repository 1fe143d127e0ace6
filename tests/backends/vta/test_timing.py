"""The cycle model: what one instruction takes, and what overlaps."""

from dataclasses import replace

from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Alu, AluOp, Finish, Gemm, Load, Store
from sqcompile.backends.vta.simulator.timing import CONSTANTS, cycles
from tests.backends.vta.programs import PYNQ, multiply_and_add, nest, transfer


def module_cycles(instruction, module, hardware=PYNQ, latency=0):
    return cycles(hardware, [instruction], latency).busy[module]


def test_a_gemm_takes_a_cycle_a_tile():
    for count in (1, 100):
        loops = {"iter_out": count, "iter_in": 2}
        assert module_cycles(nest(Gemm, 0, 3, **loops), "COMPUTE") == 6 * count + 6
        assert module_cycles(nest(Gemm, 0, 3, **loops, reset=True), "COMPUTE") == 6 * count + 6


def test_an_operation_on_two_registers_takes_two_reads():
    one = nest(Alu, 0, 1, alu_opcode=AluOp.MAX, iter_in=50)
    assert module_cycles(replace(one, use_imm=True), "COMPUTE") == 56
    assert module_cycles(one, "COMPUTE") == 106


def test_a_load_takes_its_beats_a_command_a_page_and_its_latency():
    one = transfer(Load, Memory.INP, 256, 128)  # 2 KiB from a page on: 256 beats, one command
    busy = module_cycles(one, "LOAD")
    assert busy == 2 + 1 + 256 + 2
    assert module_cycles(one, "LOAD", latency=40) == busy + 40
    assert module_cycles(replace(one, dram_base=257), "LOAD") == busy + 1
    assert module_cycles(replace(one, x_pad_1=5), "LOAD") == busy + 5
    wide = replace(PYNQ, log_bus_width=7)
    assert module_cycles(one, "LOAD", wide) == busy - 128
    assert module_cycles(replace(one, y_size=2, x_stride=128), "LOAD") == busy + 257


def test_a_store_takes_its_tiles_and_an_answer_a_burst():
    one = transfer(Store, Memory.OUT, 256, 10)
    assert module_cycles(one, "STORE") == 2 + 10 * 3 + 4
    assert module_cycles(one, "STORE", latency=40) == 2 + 10 * 3 + 44


def test_a_transfer_of_nothing_only_synchronises():
    assert module_cycles(transfer(Load, Memory.WGT, 0, 0), "LOAD") == CONSTANTS["sync"].value


def test_modules_overlap_unless_tokens_order_them():
    load = transfer(Load, Memory.WGT, 256, 16)
    work = nest(Gemm, 0, 1, iter_in=500)
    apart = cycles(PYNQ, [load, work]).total
    ordered = cycles(PYNQ, [replace(load, push_next=True), replace(work, pop_prev=True)]).total
    assert apart < 540 < 1000 < ordered


def test_loads_share_one_channel():
    weights, sums = transfer(Load, Memory.WGT, 256, 16), transfer(Load, Memory.ACC, 1024, 64)
    both = cycles(PYNQ, [weights, sums])
    assert both.busy["READ"] >= 512 + 512
    assert both.total >= both.busy["READ"]


def test_instructions_are_fetched_before_they_run():
    nothing = transfer(Load, Memory.WGT, 0, 0)
    one, many = cycles(PYNQ, [nothing]).total, cycles(PYNQ, [nothing] * 256).total
    assert one == 1 + 2 + 3 + 1 + 2  # command, beats, latency, drain, sync
    assert many > 2 * (256 + 128)  # the second batch is asked for when the first is queued


def test_a_program_takes_at_least_its_busiest_module():
    program, _ = multiply_and_add(PYNQ)
    found = cycles(PYNQ, program)
    assert found.total >= max(found.busy.values())
    assert cycles(PYNQ, program, 100).total > found.total
    assert cycles(PYNQ, [Finish()]).busy["COMPUTE"] == CONSTANTS["finish"].value


def test_every_constant_has_its_source():
    assert all(one.unit and one.source for one in CONSTANTS.values())
