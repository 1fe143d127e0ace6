"""The checkers of finished programs: what they prove, and that each fault is found."""

from dataclasses import replace

import pytest

from sqcompile.backends.vta import portable, tokens
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import TOKENS, AluOp, Finish, Load
from sqcompile.backends.vta.program import product_program
from sqcompile.backends.vta.simulator import schedule
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.errors import PortabilityError, TokenError
from tests.backends.vta.programs import PYNQ, multiply_and_add, transfer

S4 = Values.of(4, True)


def small():
    """A program with several blocks and chunks."""
    return product_program(PYNQ, GemmSpec(300, 70, 600, S4, S4, groups=2))


def test_a_program_is_proven():
    program = small()
    graph = program.check()
    assert graph.held == {"l2g": 2, "g2l": 2, "g2s": 3, "s2g": 1}
    known = {turn.number: turn.clock for turn in schedule.schedule(program.decoded, seed=4)}
    for number, one in enumerate(program.decoded):
        before = list(known[number])
        before[one.module] -= 1  # the simulator counts the instruction itself
        assert graph.before[number].tolist() == before


def test_without_any_one_token_it_is_not():
    program = small().decoded
    for number, one in enumerate(program):
        for flag in TOKENS:
            if getattr(one, flag):
                spoilt = [*program[:number], replace(one, **{flag: False}), *program[number + 1 :]]
                with pytest.raises(TokenError, match="tokens, and"):
                    tokens.check(spoilt)


def test_a_cycle_is_found():
    program, _ = multiply_and_add(PYNQ)
    load, gemm = program[3], program[4]
    crossed = [
        *program[:3],
        replace(load, pop_next=True),
        replace(gemm, push_prev=True),
        *program[5:],
    ]
    with pytest.raises(TokenError, match="cycle of tokens goes through instructions 3, 4, 6"):
        tokens.check(crossed)


def test_a_queue_that_may_overflow_is_found():
    program, _ = multiply_and_add(PYNQ)
    one = transfer(Load, Memory.INP, 4096, 0, push_next=True)
    taker = transfer(Load, Memory.UOP, 4096, 0, pop_prev=True)
    crowded = [*[one] * 3, *[taker] * 3, *program]
    assert tokens.check(crowded).held["l2g"] == 4
    with pytest.raises(TokenError, match="queue l2g may hold 4 tokens, more than 3"):
        tokens.check(crowded, capacity=3)


def test_an_end_before_the_work_is_done_is_found():
    program, _ = multiply_and_add(PYNQ)
    early = [*program[:6], replace(program[6], push_prev=False), Finish()]
    with pytest.raises(TokenError, match="FINISH does not wait for the last instruction of STORE"):
        tokens.check(early)
    with pytest.raises(TokenError, match="no FINISH"):
        tokens.check(early[:-1])


FAULTS = {
    "padded weights": (3, {"y_pad_0": 1}, "pads WGT"),
    "micro-ops in rows": (0, {"y_size": 2}, "two dimensions"),
    "8-bit accumulators": (1, {"memory": Memory.ACC_8BIT}, "ACC_8BIT"),
    "MUL": (5, {"alu_opcode": AluOp.MUL}, "multiplies"),
    "a shift of 16": (5, {"alu_opcode": AluOp.SHR, "imm": 16}, "all agree on -16..15"),
    "a shift by a register": (5, {"alu_opcode": AluOp.SHR, "use_imm": False, "imm": 0}, "register"),
    "an immediate and a register": (5, {"use_imm": False}, "immediate 1 beside a register"),
    "src other than dst": (5, {"src_in": 0}, "src other than dst"),
    "a far micro-op": (5, {"uop_bgn": 2048, "uop_end": 2049}, "the Chisel core has 2048"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_portable_is_found(name):
    number, change, message = FAULTS[name]
    program, dram = multiply_and_add(PYNQ)
    portable.check(PYNQ, program, dram)
    program[number] = replace(program[number], **change)
    with pytest.raises(PortabilityError, match=f"instruction {number} .*{message}"):
        portable.check(PYNQ, program, dram)


def test_a_store_needs_an_operation_before_it():
    program, dram = multiply_and_add(PYNQ)
    without = [*program[:4], *program[6:]]
    with pytest.raises(PortabilityError, match="STORE.*a reset or a LOAD wrote last"):
        portable.check(PYNQ, without, dram)
    reset = replace(program[4], reset=True)
    with pytest.raises(PortabilityError, match="STORE.*a reset or a LOAD wrote last"):
        portable.check(PYNQ, [*program[:5], reset, *program[6:]], dram)


def test_queues_hold_no_more_than_the_graph_says():
    """Tokens counted over random interleavings never exceed the proven most."""
    program = small()
    most = program.check().held
    for seed in range(3):
        count = dict.fromkeys(most, 0)
        for turn in schedule.schedule(program.decoded, seed):
            one = program.decoded[turn.number]
            for name in one.queues("pop"):
                count[name] -= 1
            for name in one.queues("push"):
                count[name] += 1
                assert count[name] <= most[name]
        assert not any(count.values())


def test_accumulators_are_not_loaded_under_a_store():
    """The functional simulator stores from ACC: such a program has other results there."""
    program, _ = multiply_and_add(PYNQ)
    again = replace(program[1], dram_base=program[1].dram_base + 1)
    waits = [*program[:7], replace(again, pop_next=True, push_next=True)]
    waits += [replace(program[6]), program[7]]
    portable.check_stores(PYNQ, waits, tokens.check(waits))
    early = [*program[:6], again, *program[6:]]
    portable.check_stores(PYNQ, early, tokens.check(early))  # nothing was stored before it
    late = [*program[:7], again, program[7]]
    with pytest.raises(PortabilityError, match="loads ACC without waiting for a STORE"):
        portable.check_stores(PYNQ, late, tokens.check(late))
