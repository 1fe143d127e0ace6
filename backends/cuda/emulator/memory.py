"""Global memory of the emulated device."""

import ctypes
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sqcompile.backends.cuda.emulator import layout
from sqcompile.backends.cuda.emulator.faults import LaunchError

_QUARANTINE = 1024
"""Allocations that are freed before the first one's address is used again."""
_MASK = (1 << layout.SLOT_BITS) - 1


@dataclass
class _Slot:
    """An allocation; `written` has a byte per byte (empty: all hold values)."""

    name: str
    data: NDArray[np.uint8]
    written: NDArray[np.uint8]
    constant: bool = False
    touched: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


class Memory:
    """Allocations with 64-bit addresses that kernels may use.

    No address is one of the host: every access is looked up. Allocations lie 64 GiB apart, so an
    index that is wrong by less than that meets no other allocation. Memory from `alloc` holds no
    values until the host or a kernel writes them.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot | None] = []
        self._rows = (layout.Allocation * 64)()
        self._freed: deque[int] = deque()
        self._watched = False

    def alloc(self, size: int, name: str = "") -> int:
        """The address of `size` new bytes, a multiple of 256."""
        if not 0 <= size <= _MASK:
            raise LaunchError(f"{size} bytes cannot be allocated")
        written = np.zeros(size, np.uint8)
        return self._add(_Slot(name or f"{size} bytes", np.zeros(size, np.uint8), written))

    def register(
        self, data: NDArray[np.generic], name: str = "array", constant: bool = False
    ) -> int:
        """An address for the bytes of a contiguous array, which stay where they are."""
        if not data.flags.c_contiguous:
            raise LaunchError(f"{name} is not contiguous")
        flat = data.reshape(-1).view(np.uint8)
        return self._add(_Slot(name, flat, np.empty(0, np.uint8), constant))

    def _add(self, slot: _Slot) -> int:
        """Addresses of freed memory stay wrong for long before they are used again."""
        index = len(self._slots)
        if len(self._freed) > _QUARANTINE:
            index = self._freed.popleft()
            self._slots[index] = slot
        else:
            self._slots.append(slot)
        if index >= len(self._rows):
            rows = (layout.Allocation * (2 * len(self._rows)))()
            ctypes.memmove(rows, self._rows, ctypes.sizeof(self._rows))
            self._rows = rows
        row = self._rows[index]
        row.host, row.size = slot.data.ctypes.data, slot.data.size
        row.written = slot.written.ctypes.data if slot.written.size else None
        row.touched, row.constant = None, slot.constant
        return (layout.FIRST_SLOT + index) << layout.SLOT_BITS

    def free(self, address: int) -> None:
        """Give an allocation back; LaunchError when `address` is not the start of one."""
        index = self._index(address)
        if index is None or self._slots[index] is None or address & _MASK:
            raise LaunchError(f"{address:#x} is not the address of an allocation")
        self._slots[index] = None
        self._rows[index] = layout.Allocation()
        self._freed.append(index)

    def write(self, address: int, data: bytes | NDArray[np.generic]) -> None:
        """Copy from the host."""
        given = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        given = np.ascontiguousarray(given).reshape(-1).view(np.uint8)
        slot, start = self._range(address, given.size)
        slot.data[start : start + given.size] = given
        if slot.written.size:
            slot.written[start : start + given.size] = 1

    def fill(self, address: int, value: int, size: int) -> None:
        """Set `size` bytes to a value."""
        self.write(address, np.full(size, value, np.uint8))

    def read(self, address: int, size: int) -> bytes:
        """Copy to the host, also what nobody has written."""
        slot, start = self._range(address, size)
        return slot.data[start : start + size].tobytes()

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy within the device; what was not written stays unwritten."""
        target, at = self._range(to, size)
        origin, start = self._range(source, size)
        written = origin.written[start : start + size].copy() if origin.written.size else 1
        target.data[at : at + size] = origin.data[start : start + size].copy()
        if target.written.size:
            target.written[at : at + size] = written

    def _index(self, address: int) -> int | None:
        index = (address >> layout.SLOT_BITS) - layout.FIRST_SLOT
        return index if 0 <= index < len(self._slots) else None

    def _range(self, address: int, size: int) -> tuple[_Slot, int]:
        index = self._index(address)
        slot = None if index is None else self._slots[index]
        start = address & _MASK
        if slot is None or start + size > slot.data.size:
            raise LaunchError(f"{size} bytes from {self.describe(address, size)}")
        return slot, start

    def describe(self, address: int, size: int) -> str:
        """In words, where `size` bytes from an address lie."""
        index = (address >> layout.SLOT_BITS) - layout.FIRST_SLOT
        offset = address & _MASK
        before = offset > _MASK // 2
        index += before
        if not 0 <= index < len(self._slots):
            return f"{address:#x}, which is in no allocation"
        slot = self._slots[index]
        if slot is None:
            return f"{address:#x}, which is in memory that was freed"
        if before:
            return f"{_MASK + 1 - offset} bytes before {slot.name}"
        place = f"byte {offset} of {slot.name}, which has {slot.data.size} bytes"
        return place + (" and is constant" if slot.constant else "")

    def table(self, watched: bool) -> tuple[ctypes.Array[layout.Allocation], int]:
        """What the runtime reads, and how many rows; `watched`: with room to note which block
        touched what."""
        if watched or self._watched:
            for row, slot in zip(self._rows, self._slots, strict=False):
                if slot is not None:
                    seen = watched and not slot.constant
                    slot.touched = np.zeros(slot.data.size if seen else 0, np.uint64)
                    row.touched = slot.touched.ctypes.data if seen else None
        self._watched = watched
        return self._rows, len(self._slots)
