"""Which way the groups of a product are shifted: in its operands, or sorted and in accumulators.

Sorted groups take as many tile operations as the lengths ask for, and those come with the run. So
the two ways are compared by the cycles of whole programs, the one that shifts operands with two of
those that sort: for the lengths that take the most planes, which no other ones exceed by more than
a model of cycles is uneven, and for groups of equal length. What sorts must be as fast in the first
case, and faster in one of the two.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.program import product_program
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec
from sqcompile.backends.vta.tiling import DRAM_LATENCY
from sqcompile.backends.vta.written import Written

Way = Literal["shifted", "sorted"]

TOO_NARROW = "no lengths take fewer tile operations than operands that are shifted"
OTHER_AXES = "its exponents vary along other axes than the reduced one, or not along it"
PIXELS = "its exponents are of pixels, and rows of those are taps and not in tiles"


@dataclass(frozen=True)
class Case:
    """Cycles of the program for so many values of each exponent, in whole planes."""

    counts: tuple[int, ...]
    cycles: int


@dataclass(frozen=True)
class Choice:
    """The way, and the cycles of both: operands shifted, sorted groups that take the most planes,
    sorted groups of equal length. `reason` says why there is but one way, where there is."""

    way: Way
    shifted: int
    most: Case | None = None
    equal: Case | None = None
    reason: str = ""


def chosen(spec: KernelSpec, asked: GemmSpec | ConvSpec, hardware: Hardware) -> Choice | None:
    """The choice for a product, None for one without groups."""
    if asked.groups == 1:
        return None
    shifted = _cycles(hardware, asked)
    written = Written(hardware, asked)
    found = _SORTS[spec.op](spec, asked)
    if isinstance(found, str):
        return Choice("shifted", shifted, reason=found)
    if not written.sorts:
        return Choice("shifted", shifted, reason=TOO_NARROW)
    most, equal = (
        Case(counts, _cycles(hardware, replace(asked, counts=counts)))
        for counts in map(
            written.rounded,
            (
                most_planes(asked.reduced, asked.groups, hardware.block, found),
                equal_lengths(asked.reduced, asked.groups),
            ),
        )
    )
    sorts = (most.cycles, equal.cycles) < (shifted, shifted)
    return Choice("sorted" if sorts else "shifted", shifted, most, equal)


def most_planes(k: int, groups: int, block: int, sorts: int) -> tuple[int, ...]:
    """The lengths, of `sorts` times k values in `groups` groups each, that take the most planes of
    `block` values when a group has as many as the sort with the most members asks for.

    Each sort but the last has all its values in one group. The last one has the groups that are
    left, with one value in all but the first of them.
    """
    whole = min(sorts, groups) - 1
    rest = groups - whole
    ones = min(rest, k) - 1
    return (k,) * whole + (k - ones, *(1,) * ones, *(0,) * (rest - 1 - ones))


def equal_lengths(k: int, groups: int) -> tuple[int, ...]:
    """As equal as k values allow."""
    return tuple((k + groups - 1 - group) // groups for group in range(groups))


@lru_cache(maxsize=1024)
def _cycles(hardware: Hardware, asked: GemmSpec | ConvSpec) -> int:
    """Of the model in simulator/timing.py."""
    return product_program(hardware, asked).cycles(DRAM_LATENCY).total


def _matrix_sorts(spec: KernelSpec, asked: GemmSpec | ConvSpec) -> int | str:
    """How many sets of exponents there are, each along k; or why they are not such."""
    shape = spec.tensor("exponent").shape
    rows, k = shape[-2:][::-1] if spec["transpose_a"] else shape[-2:]
    sorted_ = rows == 1 and k == asked.reduced
    return (shape[0] if len(shape) == 3 else 1) if sorted_ else OTHER_AXES


def _channel_sorts(spec: KernelSpec, asked: GemmSpec | ConvSpec) -> int | str:
    assert isinstance(asked, ConvSpec)
    channels = (1, 1, 1, asked.channel_groups * asked.reduced)
    sorted_ = spec.tensor("exponent").shape == channels
    return asked.channel_groups if sorted_ else OTHER_AXES


_SORTS: dict[str, Callable[[KernelSpec, GemmSpec | ConvSpec], int | str]] = {
    "sq::shift_matmul": _matrix_sorts,
    "sq::conv_fprop": _channel_sorts,
    "sq::conv_dgrad": _channel_sorts,
    "sq::conv_wgrad": lambda spec, asked: PIXELS,
}
"""Whether groups of a product can be sorted, by its op."""
