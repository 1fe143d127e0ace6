"""In which order instructions run: what dependency tokens allow, and what is wrong with them.

Tokens do not depend on data, and every queue has one module that fills it and one that empties
it. So whether a program comes to its end, and which tokens are left then, is the same in every
order of the modules; only the order is chosen here, before anything is computed.
"""

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.isa import Module
from sqcompile.errors import TokenError

Clock = list[int]
"""How many instructions of every module are known to be over, by the tokens that came from them;
of the own module, how many have begun."""


class Turn(NamedTuple):
    """The instruction that runs next, and what it knows of the other modules."""

    number: int
    clock: Clock


def schedule(program: Sequence[isa.Instruction], seed: int | None = None) -> list[Turn]:
    """All instructions in an order that their tokens allow.

    Without `seed` the earliest instruction that can run goes first; with one, any module that
    can run, at random.

    Raises TokenError for a deadlock, for tokens that nothing takes, for a FINISH that does not
    wait for all else, and where there is none.
    """
    random = Random(seed) if seed is not None else None
    queues = _Queues(program)
    turns = []
    while ready := queues.ready():
        turns.append(queues.take(random.choice(ready) if random else min(ready)))
    queues.check_end()
    return turns


class _Queues:
    """Instructions that wait in their module, and tokens: each the clock of who left it."""

    def __init__(self, program: Sequence[isa.Instruction]) -> None:
        self.program = program
        self.waiting: dict[Module, deque[int]] = {module: deque() for module in Module}
        for number, instruction in enumerate(program):
            self.waiting[instruction.module].append(number)
        self.totals = [len(self.waiting[module]) for module in Module]
        self.tokens: dict[str, deque[Clock]] = {
            name: deque() for name in isa.QUEUES[Module.COMPUTE].values()
        }
        self.clocks: dict[Module, Clock] = {module: [0] * len(Module) for module in Module}
        self.early: list[str] = []
        self.finished = False

    def ready(self) -> list[int]:
        """The first instruction of every module that has its tokens."""
        firsts = [queue[0] for queue in self.waiting.values() if queue]
        return [number for number in firsts if not self._lacking(number)]

    def take(self, number: int) -> Turn:
        """Let an instruction run: take its tokens, leave others."""
        instruction = self.program[number]
        module = instruction.module
        self.waiting[module].popleft()
        clock = self.clocks[module]
        for name in instruction.queues("pop"):
            clock[:] = map(max, clock, self.tokens[name].popleft())
        clock[module] += 1
        if isinstance(instruction, isa.Finish):
            self._finish(number, clock)
        for name in instruction.queues("push"):
            self.tokens[name].append(list(clock))
        return Turn(number, list(clock))

    def check_end(self) -> None:
        """Raise TokenError unless nothing waits, no token is left and FINISH came last."""
        stuck = [queue[0] for queue in self.waiting.values() if queue]
        if stuck:
            raise TokenError("deadlock: " + "; ".join(map(self._waits, sorted(stuck))))
        left = {name: len(tokens) for name, tokens in self.tokens.items() if tokens}
        if left:
            counts = ", ".join(f"{count} in {name}" for name, count in left.items())
            raise TokenError(f"tokens are left at the end: {counts}")
        if self.early:
            raise TokenError("; ".join(self.early))
        if not self.finished:
            raise TokenError("there is no FINISH: the host would wait for ever")

    def _finish(self, number: int, clock: Clock) -> None:
        """Whatever the modules' speeds, tokens must prove that all else is over."""
        self.finished = True
        early = [module.name for module in Module if clock[module] < self.totals[module]]
        if early:
            self.early.append(
                f"instruction {number} (FINISH) does not wait for the last instruction of "
                f"{' and '.join(early)}"
            )

    def _lacking(self, number: int) -> list[str]:
        return [name for name in self.program[number].queues("pop") if not self.tokens[name]]

    def _waits(self, number: int) -> str:
        instruction = self.program[number]
        return (
            f"{instruction.module.name} waits at instruction {number} "
            f"({instruction.opcode.name}) for a token of {' and '.join(self._lacking(number))}"
        )
