"""What one VTA is: widths, tile, scratchpads, and the boards that upstream configures.

Parameters are the JSON keys of apache/tvm-vta (config/*.json), all log2. Everything else, down
to the width of an instruction's field, follows from them.
"""

import json
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path

from sqcompile.errors import UsageError


class Memory(IntEnum):
    """What a LOAD or STORE names. ACC_8BIT is int8 in DRAM, widened on its way into ACC."""

    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    ACC_8BIT = 5


@dataclass(frozen=True)
class Hardware:
    """One configuration. Widths are in bits, buffers in bytes, all as log2.

    A tile of INP is (BATCH, BLOCK), of WGT (BLOCK out, BLOCK in), of ACC and OUT (BATCH, BLOCK).
    mhz and log_bus_width (bits of the AXI port) say how fast: no program depends on them.
    """

    name: str
    log_inp_width: int = 3
    log_wgt_width: int = 3
    log_acc_width: int = 5
    log_out_width: int = 3
    log_batch: int = 0
    log_block: int = 4
    log_uop_buff_size: int = 15
    log_inp_buff_size: int = 15
    log_wgt_buff_size: int = 18
    log_acc_buff_size: int = 17
    mhz: int = 100
    log_bus_width: int = 6

    @property
    def batch(self) -> int:
        """Rows of an INP, ACC or OUT tile."""
        return 1 << self.log_batch

    @property
    def block(self) -> int:
        """Channels of a tile."""
        return 1 << self.log_block

    def width(self, memory: Memory) -> int:
        """Bits of one value of `memory` in DRAM."""
        return 1 << self._log_width(memory)

    def element_bytes(self, memory: Memory) -> int:
        """Bytes of one tile (of UOP: one micro-op) in DRAM, the unit of its addresses there."""
        return 1 << self._log_element_bytes(memory)

    def depth(self, memory: Memory) -> int:
        """Tiles that the scratchpad holds."""
        return 1 << self.log_depth(memory)

    def log_depth(self, memory: Memory) -> int:
        """Bits of an index into the scratchpad; OUT has the index space of ACC."""
        sizes = {
            Memory.UOP: self.log_uop_buff_size,
            Memory.WGT: self.log_wgt_buff_size,
            Memory.INP: self.log_inp_buff_size,
        }
        if memory in sizes:
            return sizes[memory] - self._log_element_bytes(memory)
        return self.log_acc_buff_size - self._log_element_bytes(Memory.ACC)

    def lacks(self, memory: Memory, tiles: int) -> str:
        """What to say of a buffer that should hold `tiles` tiles; nothing when it does."""
        if tiles <= self.depth(memory):
            return ""
        key = f"LOG_{memory.name}_BUFF_SIZE"
        least = (tiles - 1).bit_length() + self._log_element_bytes(memory)
        return (
            f"{memory.name} holds {self.depth(memory)} tiles of {self.element_bytes(memory)} bytes "
            f"and {tiles} are needed (a {key} of at least {least})"
        )

    @property
    def widens(self) -> bool:
        """Is there a load of int8 into ACC? Upstream's simulator has it for these widths alone."""
        return self.log_inp_width == 3 and self.log_acc_width == 5

    def parameters(self) -> dict[str, int]:
        """The upstream JSON keys of this configuration."""
        return {key: getattr(self, key.lower()) for key in KEYS}

    def _log_width(self, memory: Memory) -> int:
        return {
            Memory.UOP: 5,
            Memory.WGT: self.log_wgt_width,
            Memory.INP: self.log_inp_width,
            Memory.ACC: self.log_acc_width,
            Memory.OUT: self.log_out_width,
            Memory.ACC_8BIT: 3,
        }[memory]

    def _log_element_bytes(self, memory: Memory) -> int:
        values = {Memory.UOP: 0, Memory.WGT: 2 * self.log_block}
        log_values = values.get(memory, self.log_batch + self.log_block)
        return log_values + self._log_width(memory) - 3


_NOT_PARAMETERS = {"name", "mhz", "log_bus_width"}
KEYS = tuple(field.name.upper() for field in fields(Hardware) if field.name not in _NOT_PARAMETERS)
"""The JSON keys that describe an accelerator."""

_LIMITS = {
    "LOG_INP_WIDTH": (1, 3),
    "LOG_WGT_WIDTH": (1, 3),
    "LOG_ACC_WIDTH": (5, 5),
    "LOG_OUT_WIDTH": (1, 5),
    "LOG_BATCH": (0, 8),
    "LOG_BLOCK": (1, 8),
    "LOG_UOP_BUFF_SIZE": (3, 30),
    "LOG_INP_BUFF_SIZE": (1, 30),
    "LOG_WGT_BUFF_SIZE": (1, 30),
    "LOG_ACC_BUFF_SIZE": (1, 30),
}
"""Smallest and largest. Accumulators have 32 bits, the only width that upstream's ALU computes."""

_DESCRIBES_NO_LAYOUT = {"TARGET", "HW_VER"}
"""Keys of upstream's files that name a board and a version."""


def checked(hardware: Hardware) -> Hardware:
    """`hardware`, whose every field fits its instruction; raises UsageError else."""
    for key, (low, high) in _LIMITS.items():
        value = getattr(hardware, key.lower())
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(
                f"{hardware.name}: {key} is {value!r}; it is a log2, an integer from {low} to "
                f"{high} (every width and size is a power of two)"
            )
    for memory in (Memory.UOP, Memory.WGT, Memory.INP, Memory.ACC, Memory.OUT):
        if hardware._log_element_bytes(memory) < 0:
            raise UsageError(f"{hardware.name}: a tile of {memory.name} is less than a byte")
        if not 1 <= hardware.log_depth(memory) <= 16:
            raise UsageError(
                f"{hardware.name}: the {memory.name} buffer would hold 2^"
                f"{hardware.log_depth(memory)} tiles; an address has 1 to 16 bits"
            )
    acc, inp, wgt, uop = (
        hardware.log_depth(memory) for memory in (Memory.ACC, Memory.INP, Memory.WGT, Memory.UOP)
    )
    needs = {
        "word 0 of GEMM and ALU": (8 + 2 * uop + 1 + 28, 64, "LOG_UOP_BUFF_SIZE"),
        "word 1 of GEMM": (2 * (acc + inp + wgt), 64, "a buffer"),
        "word 1 of ALU": (4 * acc + 20, 64, "LOG_ACC_BUFF_SIZE"),
        "a micro-op": (acc + max(acc, inp) + wgt, 32, "a buffer"),
    }
    for what, (bits, room, key) in needs.items():
        if bits > room:
            raise UsageError(
                f"{hardware.name}: the indices of {what} take {bits} bits and there are {room}; "
                f"make {key} smaller"
            )
    return hardware


def from_json(text: str, name: str) -> Hardware:
    """The configuration in an upstream JSON text; `name` is what messages call it.

    LOG_OUT_WIDTH is LOG_INP_WIDTH where it is not given, as upstream derives it; of the others,
    those that are missing are an error. Raises UsageError.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{name} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{name} is no JSON object of LOG_* keys")
    given = {key: value for key, value in data.items() if key not in _DESCRIBES_NO_LAYOUT}
    given.setdefault("LOG_OUT_WIDTH", given.get("LOG_INP_WIDTH"))
    for key in given:
        if key not in KEYS:
            close = get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KEYS)}"
            raise UsageError(f"{name}: there is no key {key!r}; {hint}")
    missing = [key for key in KEYS if given.get(key) is None]
    if missing:
        raise UsageError(f"{name}: missing {', '.join(missing)}")
    described = {key.lower(): value for key, value in given.items()}
    board = BOARDS.get(str(data.get("TARGET")), BOARDS["pynq"])
    return checked(
        replace(board, name=name, **described)  # its clock and its bus
    )


BOARDS = {
    board.name: board
    for board in (
        Hardware("pynq", mhz=100, log_bus_width=6),
        Hardware("ultra96", mhz=333, log_bus_width=7),
        Hardware("zcu104", mhz=333, log_bus_width=7),
    )
}
"""The sizes of upstream's *_sample.json; clocks and buses of its pkg_config.py."""

_NARROW = {
    # INP and WGT buffers of half the bytes hold as many tiles, so that no field changes.
    f"{board.name}-int4": replace(
        board,
        name=f"{board.name}-int4",
        log_inp_width=2,
        log_wgt_width=2,
        log_out_width=2,
        log_inp_buff_size=14,
        log_wgt_buff_size=17,
    )
    for board in BOARDS.values()
}
_WIDE_RESULTS = {
    f"{one.name}-out32": replace(one, name=f"{one.name}-out32", log_out_width=5)
    for one in (BOARDS | _NARROW).values()
}
"""A result leaves in one store, not in slices that are shifted into place one by one."""

PRESETS = BOARDS | _NARROW | _WIDE_RESULTS
"""What --hw takes by name."""


def get(name: str) -> Hardware:
    """The preset called `name`, or the configuration in the file `name` ("*.json" or a path that
    exists). Raises UsageError."""
    if name in PRESETS:
        return checked(PRESETS[name])
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        try:
            return from_json(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read {name}: {reason}") from None
    close = get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(PRESETS)}"
    raise UsageError(f"there is no VTA called '{name}' and no such file; {hint}")
