"""Deadlocks, tokens that are left, and programs that end before their work."""

from dataclasses import replace

import pytest

from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import Finish, Load, Store
from sqcompile.backends.vta.simulator import machine
from sqcompile.errors import TokenError
from tests.backends.vta.programs import PYNQ, multiply_and_add, transfer

UOP, ACC, INP, WGT, GEMM, ALU, STORE, FINISH = range(8)


def refused(program, dram, message):
    for order in (None, *range(4)):
        with pytest.raises(TokenError, match=message):
            machine.run(PYNQ, program, dram, order)


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        (
            WGT,
            {"push_next": False},
            r"deadlock: COMPUTE waits at instruction 4 \(GEMM\) for a token of l2g; "
            r"STORE waits at instruction 6 \(STORE\) for a token of g2s",
        ),
        (INP, {"pop_next": True}, r"LOAD waits at instruction 2 \(LOAD\) for a token of g2l"),
        (STORE, {"push_prev": False}, r"COMPUTE waits at instruction 7 \(FINISH\).* of s2g"),
        (GEMM, {"pop_next": True}, "for a token of s2g"),
        (INP, {"push_next": True}, "tokens are left at the end: 1 in l2g"),
        (ALU, {"push_prev": True}, "tokens are left at the end: 1 in g2l"),
        (GEMM, {"push_next": True}, "tokens are left at the end: 1 in g2s"),
    ],
)
def test_a_token_too_few_or_too_many(where, changes, message):
    program, dram = multiply_and_add(PYNQ)
    program[where] = replace(program[where], **changes)
    refused(program, dram, message)


def test_tokens_are_looked_at_before_accesses():
    """A token too many lets somebody run too early: what is left tells more than what it read."""
    program, dram = multiply_and_add(PYNQ)
    program[GEMM] = replace(program[GEMM], pop_prev=False)
    refused(program, dram, "tokens are left at the end: 1 in l2g")


def test_two_modules_that_wait_for_each_other():
    program, dram = multiply_and_add(PYNQ)
    program[INP] = replace(program[INP], pop_next=True)
    program[ALU] = replace(program[ALU], push_prev=True)
    refused(program, dram, "LOAD waits at .* for a token of g2l")


def test_without_finish_the_host_would_wait():
    program, dram = multiply_and_add(PYNQ)
    program[STORE] = replace(program[STORE], push_prev=False)
    refused(program[:FINISH], dram, "there is no FINISH")


@pytest.mark.parametrize("program", [[], [transfer(Load, Memory.INP, 0, 0)]])
def test_a_program_of_nothing_has_no_finish(program):
    refused(program, b"", "there is no FINISH")


def test_finish_waits_for_every_module():
    """In each order of the modules, though in some all else happens to be over."""
    program, dram = multiply_and_add(PYNQ)
    program[STORE] = replace(program[STORE], push_prev=False)
    refused([*program[:FINISH], Finish()], dram, r"7 \(FINISH\) does not wait .* of STORE")


def test_nothing_comes_after_finish():
    program, dram = multiply_and_add(PYNQ)
    refused([*program, Finish()], dram, "does not wait for the last instruction of COMPUTE")
    late = transfer(Load, Memory.WGT, program[WGT].dram_base, 1)
    refused([*program, late], dram, "does not wait for the last instruction of LOAD")


def test_transfers_of_nothing_carry_tokens():
    program = [
        transfer(Load, Memory.ACC, 0, 0, push_prev=True),
        transfer(Load, Memory.INP, 0, 0, pop_next=True, push_next=True),
        Finish(pop_prev=True),
    ]
    outcome = machine.run(PYNQ, program, b"")
    assert set(outcome.profile.as_json().values()) == {0}


def test_an_instruction_may_take_two_tokens():
    program = [
        transfer(Load, Memory.INP, 0, 0, push_next=True),
        transfer(Load, Memory.ACC, 0, 0, push_next=True),
        transfer(Store, Memory.OUT, 0, 0, pop_prev=True, push_prev=True),
        Finish(pop_prev=True, pop_next=True),
    ]
    for order in range(4):
        machine.run(PYNQ, program, b"", order)
