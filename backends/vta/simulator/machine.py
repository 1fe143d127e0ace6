"""The three modules, their queues of tokens, and the order in which they get to run."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.isa import Module
from sqcompile.backends.vta.simulator.core import Core, Profile
from sqcompile.backends.vta.simulator.scratchpad import Clock
from sqcompile.errors import IllegalAccessError, TokenError


@dataclass(frozen=True)
class Outcome:
    """What is left of a run: DRAM, and upstream's counters."""

    dram: bytes
    profile: Profile


def run(
    hardware: Hardware, program: Sequence[isa.Instruction], dram: bytes, seed: int | None = None
) -> Outcome:
    """Run a program over a DRAM image, address 0 its first byte.

    Without `seed` the earliest instruction that can run goes first; with one, any module that
    can run, at random. A program whose result depends on that lacks a token.

    Raises IllegalAccessError; TokenError for a deadlock, for tokens that nothing takes, and for
    a FINISH that does not come last.
    """
    return _Machine(hardware, program, dram).run(Random(seed) if seed is not None else None)


class _Machine:
    def __init__(self, hardware: Hardware, program: Sequence[isa.Instruction], dram: bytes) -> None:
        self.core = Core(hardware, dram)
        self.program = program
        self.waiting: dict[Module, deque[int]] = {module: deque() for module in Module}
        for number, instruction in enumerate(program):
            self.waiting[instruction.module].append(number)
        self.totals = [len(self.waiting[module]) for module in Module]
        self.tokens: dict[str, deque[Clock]] = {
            name: deque() for name in isa.QUEUES[Module.COMPUTE].values()
        }
        self.clocks: dict[Module, Clock] = {module: [0] * len(Module) for module in Module}
        self.finished: int | None = None

    def run(self, random: Random | None) -> Outcome:
        while ready := [queue[0] for queue in self.waiting.values() if self._can_run(queue)]:
            self._step(random.choice(ready) if random else min(ready))
        self._check_end()
        return Outcome(self.core.dram.tobytes(), self.core.profile)

    def _can_run(self, queue: deque[int]) -> bool:
        return bool(queue) and all(
            self.tokens[name] for name in self.program[queue[0]].queues("pop")
        )

    def _step(self, number: int) -> None:
        instruction = self.program[number]
        module = instruction.module
        self.waiting[module].popleft()
        clock = self.clocks[module]
        for name in instruction.queues("pop"):
            clock[:] = map(max, clock, self.tokens[name].popleft())
        clock[module] += 1
        if isinstance(instruction, isa.Finish):
            self._finish(number, clock)
        try:
            self.core.execute(instruction, clock)
        except IllegalAccessError as error:
            name = instruction.opcode.name
            raise IllegalAccessError(f"instruction {number} ({name}): {error}") from None
        for name in instruction.queues("push"):
            self.tokens[name].append(list(clock))

    def _finish(self, number: int, clock: Clock) -> None:
        """Whatever the modules' speeds, tokens must prove that all else is over."""
        early = [module.name for module in Module if clock[module] < self.totals[module]]
        if early:
            raise TokenError(
                f"instruction {number} (FINISH) does not wait for the last instruction of "
                f"{' and '.join(early)}"
            )
        self.finished = number

    def _check_end(self) -> None:
        stuck = [queue[0] for queue in self.waiting.values() if queue]
        if stuck:
            raise TokenError("deadlock: " + "; ".join(map(self._lacks, sorted(stuck))))
        left = {name: len(tokens) for name, tokens in self.tokens.items() if tokens}
        if left:
            counts = ", ".join(f"{count} in {name}" for name, count in left.items())
            raise TokenError(f"tokens are left at the end: {counts}")
        if self.finished is None:
            raise TokenError("there is no FINISH: the host would wait for ever")

    def _lacks(self, number: int) -> str:
        instruction = self.program[number]
        empty = [name for name in instruction.queues("pop") if not self.tokens[name]]
        return (
            f"{instruction.module.name} waits at instruction {number} "
            f"({instruction.opcode.name}) for a token of {' and '.join(empty)}"
        )
