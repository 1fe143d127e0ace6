"""About how many cycles a program takes on upstream's Chisel core. Nothing here was measured.

The program's values do not matter to it: a module's instruction begins when it is fetched, the
one before it is over and its tokens are there, and lasts what CONSTANTS say. All reads of DRAM
share one channel in the order in which they begin; writes have a channel of their own. Left out
are full instruction queues (512 deep) and the fixed priority between readers that wait.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.isa import Module


class Constant(NamedTuple):
    """A number of the model and where it was read; paths are in apache/tvm-vta (d4a15f6)."""

    value: int
    unit: str
    source: str


_CORE = "hardware/chisel/src/main/scala"

CONSTANTS = {
    "dram_latency": Constant(
        3,
        "cycles from a command to its first beat",
        "src/dpi/module.cc (MemDevice); a board has tens to about 100",
    ),
    "page": Constant(
        2048, "bytes that no command crosses", f"{_CORE}/core/TensorLoadNarrowVME.scala"
    ),
    "command": Constant(1, "cycles a read command", f"{_CORE}/core/TensorLoadNarrowVME.scala"),
    "load_stages": Constant(2, "cycles from beat to tile", f"{_CORE}/shell/VME.scala"),
    "pad_tile": Constant(1, "cycles a tile of zeros", f"{_CORE}/core/TensorLoadNarrowVME.scala"),
    "issue": Constant(2, "cycles to begin a transfer", f"{_CORE}/core/Load.scala"),
    "sync": Constant(2, "cycles of a transfer of nothing", f"{_CORE}/core/Load.scala"),
    "gemm_tile": Constant(1, "cycles a tile operation", f"{_CORE}/core/TensorGemm.scala"),
    "gemm_fill": Constant(6, "cycles to fill and drain", f"{_CORE}/core/TensorGemm.scala"),
    "alu_imm_tile": Constant(1, "cycles a tile, immediate", f"{_CORE}/core/TensorAlu.scala"),
    "alu_tile": Constant(2, "cycles a tile, two reads of ACC", f"{_CORE}/core/TensorAlu.scala"),
    "alu_fill": Constant(6, "cycles to fill and drain", f"{_CORE}/core/TensorAlu.scala"),
    "store_tile": Constant(
        1, "cycles a tile besides its beats", f"{_CORE}/core/TensorStoreNarrowVME.scala"
    ),
    "store_burst": Constant(
        4, "cycles a burst besides its tiles", f"{_CORE}/core/TensorStoreNarrowVME.scala"
    ),
    "fetch_batch": Constant(128, "instructions fetched at once", f"{_CORE}/core/FetchVME64.scala"),
    "drain": Constant(1, "cycles to queue an instruction", f"{_CORE}/core/FetchVME64.scala"),
    "finish": Constant(2, "cycles of FINISH", f"{_CORE}/core/Compute.scala"),
}
"""Every number of the model."""

DRAM_LATENCY = CONSTANTS["dram_latency"].value


@dataclass(frozen=True)
class Cycles:
    """The whole time, and for how much of it every module was at work (waiting for the channel
    included) and the read channel took beats."""

    total: int
    busy: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"total": self.total, "busy": dict(self.busy)}


class Span(NamedTuple):
    """When an instruction, by number, was at work; end is exclusive."""

    number: int
    module: Module
    start: int
    end: int


def timeline(
    hardware: Hardware, program: Sequence[isa.Instruction], dram_latency: int = DRAM_LATENCY
) -> list[Span]:
    """When every instruction of a program is at work, in the order in which they begin."""
    clockwork = _Clockwork(hardware, program, dram_latency)
    clockwork.run()
    return clockwork.spans


def cycles(
    hardware: Hardware, program: Sequence[isa.Instruction], dram_latency: int = DRAM_LATENCY
) -> Cycles:
    """The cycles of a program that runs to its end (see machine.run)."""
    return _Clockwork(hardware, program, dram_latency).run()


class _Cost(NamedTuple):
    """What an instruction takes: cycles of the read channel (0: it reads nothing), and others
    of its module before or after that."""

    channel: int
    own: int


class _Clockwork:
    def __init__(
        self, hardware: Hardware, program: Sequence[isa.Instruction], dram_latency: int
    ) -> None:
        self.hardware = hardware
        self.program = program
        self.latency = dram_latency
        self.waiting: dict[Module, deque[int]] = {module: deque() for module in Module}
        for number, instruction in enumerate(program):
            self.waiting[instruction.module].append(number)
        self.tokens: dict[str, deque[int]] = {
            name: deque() for name in isa.QUEUES[Module.COMPUTE].values()
        }
        self.free = dict.fromkeys(Module, 0)
        self.busy = dict.fromkeys((module.name for module in Module), 0) | {"READ": 0}
        self.spans: list[Span] = []
        self.channel_free = 0
        self.fetched: list[int] = []
        self.next_fetch = 0

    def run(self) -> Cycles:
        while True:
            starts = {
                module: self._start(queue[0])
                for module, queue in self.waiting.items()
                if queue and self._known(queue[0])
            }
            first = min(starts, key=lambda module: starts[module], default=None)
            # Fetch has the highest priority on the channel.
            more = len(self.fetched) < len(self.program)
            if more and (first is None or self.next_fetch <= starts[first]):
                self._fetch()
            elif first is None:
                break
            else:
                self._step(first, starts[first])
        return Cycles(max(self.free.values()), self.busy)

    def _known(self, number: int) -> bool:
        """Is it fetched, and is the time of every token that it takes known?"""
        queues = self.program[number].queues("pop")
        return number < len(self.fetched) and all(self.tokens[name] for name in queues)

    def _start(self, number: int) -> int:
        instruction = self.program[number]
        tokens = [self.tokens[name][0] for name in instruction.queues("pop")]
        return max(self.free[instruction.module], self.fetched[number], *tokens, 0)

    def _step(self, module: Module, start: int) -> None:
        number = self.waiting[module].popleft()
        instruction = self.program[number]
        for name in instruction.queues("pop"):
            self.tokens[name].popleft()
        cost = _COSTS[instruction.opcode](self.hardware, instruction, self.latency)
        end = start + cost.own
        if cost.channel:
            end = self._read(start, cost.channel) + cost.own
        self.free[module] = end
        self.busy[module.name] += end - start
        self.spans.append(Span(number, module, start, end))
        for name in instruction.queues("push"):
            self.tokens[name].append(end)

    def _read(self, start: int, channel: int) -> int:
        """The time when the last beat of a read is there. Reads overlap but for their beats."""
        begin = max(start, self.channel_free)
        self.channel_free = begin + channel
        self.busy["READ"] += channel
        return begin + channel + self.latency

    def _fetch(self) -> None:
        """Read a batch of instructions; the next one begins when all are in their queues."""
        count = min(_of("fetch_batch"), len(self.program) - len(self.fetched))
        beats = -(-count * isa.INSTRUCTION_BYTES // _bus_bytes(self.hardware))
        there = self._read(self.next_fetch, _of("command") + beats)
        self.fetched += [there + _of("drain") * (number + 1) for number in range(count)]
        self.next_fetch = self.fetched[-1]


def _of(name: str) -> int:
    return CONSTANTS[name].value


def _bus_bytes(hardware: Hardware) -> int:
    return 1 << hardware.log_bus_width - 3


def _bursts(hardware: Hardware, one: isa.Transfer) -> int:
    """Commands: one a row, and one more for every page that a row crosses into."""
    unit = hardware.element_bytes(one.memory)
    starts = (one.dram_base + np.arange(one.y_size, dtype=np.int64) * one.x_stride) * unit
    pages = (starts + one.x_size * unit - 1) // _of("page") - starts // _of("page")
    return int((pages + 1).sum())


def _load(hardware: Hardware, one: Any, latency: int) -> _Cost:
    if one.x_size == 0:
        return _Cost(0, _of("sync"))
    above, below, left, right = one.pads
    tiles = (above + one.y_size + below) * (left + one.x_size + right)
    padding = tiles - one.y_size * one.x_size
    row = -(-one.x_size * hardware.element_bytes(one.memory) // _bus_bytes(hardware))
    channel = _of("command") * _bursts(hardware, one) + row * one.y_size
    own = _of("issue") + _of("load_stages") + _of("pad_tile") * padding
    return _Cost(channel, own)


def _store(hardware: Hardware, one: Any, latency: int) -> _Cost:
    if one.x_size == 0:
        return _Cost(0, _of("sync"))
    beats = -(-hardware.element_bytes(one.memory) // _bus_bytes(hardware))
    tiles = one.y_size * one.x_size * (beats + _of("store_tile"))
    bursts = _bursts(hardware, one) * (_of("store_burst") + latency)
    return _Cost(0, _of("issue") + tiles + bursts)


def _gemm(hardware: Hardware, one: Any, latency: int) -> _Cost:
    return _Cost(0, _of("gemm_tile") * one.count + _of("gemm_fill"))


def _alu(hardware: Hardware, one: Any, latency: int) -> _Cost:
    tile = _of("alu_imm_tile") if one.use_imm else _of("alu_tile")
    return _Cost(0, tile * one.count + _of("alu_fill"))


def _finish(hardware: Hardware, one: Any, latency: int) -> _Cost:
    return _Cost(0, _of("finish"))


_COSTS: dict[isa.Opcode, Callable[[Hardware, Any, int], _Cost]] = {
    isa.Opcode.LOAD: _load,
    isa.Opcode.STORE: _store,
    isa.Opcode.GEMM: _gemm,
    isa.Opcode.ALU: _alu,
    isa.Opcode.FINISH: _finish,
}
