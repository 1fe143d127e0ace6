"""Writes instructions one after the other and places the tokens that their accesses need.

Every instruction says which tiles of which scratchpad it reads and writes. Where another module
touched them last, that module's instruction leaves a token and this one waits for it, unless a
later token from there was taken already. So in each queue tokens are left and taken in the same
order, one for one, always from an earlier instruction to a later one: program order is an order
in which all can run, and tokens being counters without choice, every other order ends too.
`tokens.check` proves it again on the finished program.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.isa import Module

USERS = {
    Memory.INP: (Module.LOAD, Module.COMPUTE),
    Memory.WGT: (Module.LOAD, Module.COMPUTE),
    Memory.OUT: (Module.COMPUTE, Module.STORE),
}
"""Who writes and who reads what two modules share; ACC and UOP are COMPUTE's alone."""

_FLAGS = {
    (Module.LOAD, Module.COMPUTE): ("push_next", "pop_prev"),
    (Module.COMPUTE, Module.LOAD): ("push_prev", "pop_next"),
    (Module.COMPUTE, Module.STORE): ("push_next", "pop_prev"),
    (Module.STORE, Module.COMPUTE): ("push_prev", "pop_next"),
}
"""The flags of the one who leaves a token and of the one who takes it."""


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of a scratchpad from `first` on."""

    memory: Memory
    first: int
    count: int

    @property
    def place(self) -> slice:
        """As an index."""
        return slice(self.first, self.first + self.count)


@dataclass
class _Entry:
    kind: type[isa.Instruction]
    fields: dict[str, Any]
    flags: set[str] = field(default_factory=set)


class Stream:
    """Instructions in program order."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.entries: list[_Entry] = []
        self.modules: dict[Module, list[_Entry]] = {module: [] for module in Module}
        # By tile, the number (from 1) of the last instruction of its module that touched it.
        self.written, self.read = (
            {memory: np.zeros(hardware.depth(memory), np.int64) for memory in USERS}
            for _ in range(2)
        )
        self.known = dict.fromkeys(_FLAGS, 0)

    def add(
        self,
        kind: type[isa.Instruction],
        fields: dict[str, Any],
        reads: tuple[Tiles, ...] = (),
        writes: tuple[Tiles, ...] = (),
    ) -> None:
        """Append an instruction that reads and writes these tiles of shared scratchpads."""
        module = kind(**fields).module
        entry = _Entry(kind, fields)
        own = self.modules[module]
        own.append(entry)
        self.entries.append(entry)
        last = dict.fromkeys(Module, 0)
        for tiles in reads:
            writer, _ = USERS[tiles.memory]
            found = self.written[tiles.memory][tiles.place].max(initial=0)
            last[writer] = max(last[writer], int(found))
            self.read[tiles.memory][tiles.place] = len(own)
        for tiles in writes:
            _, reader = USERS[tiles.memory]
            found = self.read[tiles.memory][tiles.place].max(initial=0)
            last[reader] = max(last[reader], int(found))
            self.written[tiles.memory][tiles.place] = len(own)
        for earlier, number in last.items():
            if earlier is not module:
                self._wait(entry, earlier, module, number)

    def finished(self) -> tuple[isa.Instruction, ...]:
        """All instructions, and a FINISH that waits for the other modules."""
        self.add(isa.Finish, {})
        for module in (Module.LOAD, Module.STORE):
            self._wait(self.entries[-1], module, Module.COMPUTE, len(self.modules[module]))
        return tuple(
            entry.kind(**entry.fields, **dict.fromkeys(entry.flags, True)) for entry in self.entries
        )

    def _wait(self, entry: _Entry, earlier: Module, module: Module, number: int) -> None:
        """Let `entry` wait for an instruction of another module; 0: for none."""
        queue = (earlier, module)
        if number > self.known.get(queue, number):
            push, pop = _FLAGS[queue]
            self.modules[earlier][number - 1].flags.add(push)
            entry.flags.add(pop)
            self.known[queue] = number
