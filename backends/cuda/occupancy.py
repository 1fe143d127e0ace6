"""How many blocks of a kernel an SM holds at once: NVIDIA's calculation, cuda_occupancy.h.

Registers are handed out to warps in units, in each quarter of an SM on its own; shared memory to
blocks in units, with what the system reserves; and an SM holds so many warps and blocks. Shared
memory is taken at its largest share of the SM's memory.
"""

from dataclasses import dataclass

from sqcompile.backends.cuda.architectures import Limits


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that an SM holds at once, the share of the warps it could hold, and what
    keeps it from more: "registers", "shared memory", "warps" or "blocks"."""

    blocks: int
    warps: int
    share: float
    limited_by: str


def occupancy(limits: Limits, *, threads: int, registers: int, shared: int) -> Occupancy:
    """Of blocks of `threads` threads with so many registers a thread and bytes of shared memory.

    0 blocks when a block does not fit at all.
    """
    warps = -(-threads // limits.warp)
    bounds = {
        "registers": _by_registers(limits, warps, registers),
        "shared memory": _by_shared(limits, shared),
        "warps": limits.warps_sm // warps if threads <= limits.threads_block else 0,
        "blocks": limits.blocks_sm,
    }
    limited_by, blocks = min(bounds.items(), key=lambda bound: bound[1])
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps_sm, limited_by)


def _by_registers(limits: Limits, warps: int, registers: int) -> int:
    of_warp = _rounded(registers * limits.warp, limits.register_unit)
    if not of_warp:
        return limits.blocks_sm
    whole = _rounded(warps, limits.partitions) * of_warp  # a launch is refused above this
    if registers > limits.registers_thread or whole > limits.registers_sm:
        return 0
    return limits.registers_sm // limits.partitions // of_warp * limits.partitions // warps


def _by_shared(limits: Limits, shared: int) -> int:
    of_block = _rounded(shared + limits.shared_reserved, limits.shared_unit)
    if shared > limits.shared_block:
        return 0
    return limits.shared_sm // of_block if of_block else limits.blocks_sm


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
