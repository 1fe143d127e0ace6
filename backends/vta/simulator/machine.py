"""Runs a program: its order from the tokens, its values from the core."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.simulator.core import Core, Profile
from sqcompile.backends.vta.simulator.schedule import schedule
from sqcompile.errors import IllegalAccessError


@dataclass(frozen=True)
class Outcome:
    """What is left of a run: DRAM, and upstream's counters."""

    dram: bytes
    profile: Profile


def run(
    hardware: Hardware, program: Sequence[isa.Instruction], dram: bytes, seed: int | None = None
) -> Outcome:
    """Run a program over a DRAM image, address 0 its first byte; `seed` as for `schedule`.

    Raises TokenError before anything is computed, IllegalAccessError. Between modules a missing
    token is found in every order, but where STORE and LOAD meet in DRAM: there only the orders
    in which it matters give another result.
    """
    core = Core(hardware, dram)
    for number, clock in schedule(program, seed):
        instruction = program[number]
        try:
            core.execute(instruction, clock)
        except IllegalAccessError as error:
            name = instruction.opcode.name
            raise IllegalAccessError(f"instruction {number} ({name}): {error}") from None
    return Outcome(core.dram.tobytes(), core.profile)
