"""Proves of a finished program that its tokens are right, from the program alone.

A queue has one module that fills it and one that empties it, both in their order: the n-th token
left is the n-th one taken, whatever the speeds. So instructions and tokens are one fixed graph:
an instruction comes after the one before it in its module and after those that leave what it
takes. Without a cycle, and with as many tokens taken as left, every interleaving runs to the same
end; with one, none does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.isa import Module
from sqcompile.errors import TokenError

PORTABLE_TOKENS = 8
"""Tokens that a queue of the smallest implementation holds, upstream's C simulation of HLS."""


@dataclass(frozen=True)
class Graph:
    """By instruction, how many instructions of each module are over when it begins, and the
    most tokens that each queue can ever hold."""

    before: NDArray[np.int64]
    held: dict[str, int]


def check(program: Sequence[isa.Instruction], capacity: int = PORTABLE_TOKENS) -> Graph:
    """The token graph; raises TokenError for a cycle, tokens left or missing, an end before the
    others' work is done, and a queue that may hold more than `capacity`."""
    links = _matched(program)
    graph = Graph(_clocks(program, links), {})
    _check_end(program, graph)
    for name, pairs in links.items():
        graph.held[name] = _most_held(program, graph, pairs)
        if graph.held[name] > capacity:
            raise TokenError(
                f"queue {name} may hold {graph.held[name]} tokens, more than {capacity}"
            )
    return graph


def _matched(program: Sequence[isa.Instruction]) -> dict[str, list[tuple[int, int]]]:
    """By queue, (who leaves it, who takes it) of every token."""
    left: dict[str, list[int]] = {name: [] for name in isa.QUEUES[Module.COMPUTE].values()}
    taken: dict[str, list[int]] = {name: [] for name in left}
    for number, instruction in enumerate(program):
        for name in instruction.queues("push"):
            left[name].append(number)
        for name in instruction.queues("pop"):
            taken[name].append(number)
    for name, tokens in left.items():
        if len(tokens) != len(taken[name]):
            raise TokenError(
                f"queue {name} is left {len(tokens)} tokens, and {len(taken[name])} are taken"
            )
    return {name: list(zip(left[name], taken[name], strict=True)) for name in left}


def _clocks(
    program: Sequence[isa.Instruction], links: dict[str, list[tuple[int, int]]]
) -> NDArray[np.int64]:
    """(n, 3) of what is over before each instruction; raises TokenError for a cycle."""
    sources: dict[int, list[int]] = {}
    for pairs in links.values():
        for leaver, taker in pairs:
            sources.setdefault(taker, []).append(leaver)
    places: dict[Module, list[int]] = {module: [] for module in Module}
    for number, instruction in enumerate(program):
        places[instruction.module].append(number)
    before = np.full((len(program), len(Module)), -1, np.int64)
    next_of = dict.fromkeys(Module, 0)
    last = {module: np.zeros(len(Module), np.int64) for module in Module}
    moved = True
    while moved:
        moved = False
        for module, numbers in places.items():
            while next_of[module] < len(numbers):
                number = numbers[next_of[module]]
                leavers = sources.get(number, [])
                if any(before[leaver, 0] < 0 for leaver in leavers):
                    break
                clock = last[module]
                for leaver in leavers:
                    clock = np.maximum(clock, _after(program, before, leaver))
                before[number] = clock
                last[module] = _after(program, before, number)
                next_of[module] += 1
                moved = True
    stuck = [numbers[next_of[m]] for m, numbers in places.items() if next_of[m] < len(numbers)]
    if stuck:
        raise TokenError(
            "deadlock: a cycle of tokens goes through instructions "
            + ", ".join(str(number) for number in sorted(stuck))
        )
    return before


def _after(
    program: Sequence[isa.Instruction], before: NDArray[np.int64], number: int
) -> NDArray[np.int64]:
    """What is over when an instruction is: itself, and all that was before it."""
    clock = before[number].copy()
    clock[program[number].module] += 1
    return clock


def _check_end(program: Sequence[isa.Instruction], graph: Graph) -> None:
    if not program or not isinstance(program[-1], isa.Finish):
        raise TokenError("the last instruction is no FINISH")
    totals = np.bincount([one.module for one in program], minlength=len(Module))
    totals[Module.COMPUTE] -= 1
    for module in Module:
        if graph.before[-1, module] < totals[module]:
            raise TokenError(f"FINISH does not wait for the last instruction of {module.name}")


def _most_held(
    program: Sequence[isa.Instruction], graph: Graph, pairs: list[tuple[int, int]]
) -> int:
    """A token that is left finds those before it in the queue, less those surely taken by then."""
    if not pairs:
        return 0
    leavers, takers = np.array(pairs).T
    taker = program[int(takers[0])].module
    rank = graph.before[takers, taker] + 1
    taken = np.searchsorted(rank, graph.before[leavers, taker], side="right")
    return int((np.arange(1, len(pairs) + 1) - taken).max())
