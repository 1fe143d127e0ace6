"""Sorting the steps of k of lines in which they are neighbours, by permutations in registers.

Sixty-four sorted bytes of a line come from few windows of sixty-four, each by one permutation
that keeps what was there before: (G + 1) / 64 permutations a byte for G groups at random. Byte by
byte it would be a transposition and a second one back.
"""

from dataclasses import dataclass

from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.gemm_order import Windows
from sqcompile.backends.cpu.gemm_shape import BYTES, ceil_div
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.nest import Array, Expr

TOGETHER = 16
"""Lines at once: each waits for what it stored one permutation ago."""


@dataclass(frozen=True)
class Lines:
    """Some lines of bytes: line i begins at `start` + i * `step`."""

    array: Array
    start: Expr
    step: int

    def at(self, line: Expr, place: Expr = 0) -> Expr:
        """Where a byte of a line is."""
        return self.start + line * self.step + place


@dataclass(frozen=True)
class Sorting:
    """Lines, where they go, and by which windows: those of a batch and a segment."""

    source: Lines
    out: Lines
    windows: Windows
    table: Expr

    def window(self, line: Expr, count: int, number: Expr) -> None:
        """Take the bytes of one window into `count` lines from `line` on. Bytes that were found
        before, and padding, stay as they are."""
        pattern = self.windows.pattern(self.table, number)
        step, place = self.windows.places(self.table, number)
        for i in range(count):
            read = self.source.array[nest.ramp(self.source.at(line + i, step), BYTES)]
            at = nest.ramp(self.out.at(line + i, place), BYTES)
            before = tirx.reinterpret(f"int8x{BYTES}", self.out.array[at])
            after = machine().permuted(before, pattern, tirx.reinterpret(f"int8x{BYTES}", read))
            self.out.array.store(at, tirx.reinterpret(f"{self.out.array.dtype}x{BYTES}", after))

    def all(self, first: Expr, count: int) -> None:
        """Sort `count` lines from `first` on."""
        together = min(count, TOGETHER)
        with (
            nest.serial(ceil_div(count, together), "lines") as block,
            nest.serial(self.windows.count(self.table), "window") as number,
        ):
            self.window(first + tirx.min(block * together, count - together), together, number)
