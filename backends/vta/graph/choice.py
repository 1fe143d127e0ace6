"""Which way the groups of a product are shifted: in its operands, or sorted and in accumulators.

How many planes sorted groups take depends on their lengths, which come with the run. Where they
take more operations than digits would, the program that is written shifts operands as the other
way does (`Reduction.cost`). So the two ways are compared by the cycles of two programs: that of
shifted operands, and of all that sort the one with the most planes. No lengths are slower sorted,
but for what a model of cycles is uneven between two programs.
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
    """The way, and the cycles that it was chosen by: of shifted operands, and of the program that
    `sorts` the most planes. Beside them what is written for two cases, which may shift operands,
    too: lengths that ask for the `most` planes, and `equal` ones. `reason` says why there is but
    one way, where there is."""

    way: Way
    shifted: int
    sorts: Case | None = None
    most: Case | None = None
    equal: Case | None = None
    reason: str = ""


def chosen(spec: KernelSpec, asked: GemmSpec | ConvSpec, hardware: Hardware) -> Choice | None:
    """The choice for a product, None for one without groups."""
    if asked.groups == 1:
        return None
    shifted = _cycles(hardware, asked)
    written = Written(hardware, asked)
    found = _SETS[spec.op](spec, asked)
    if isinstance(found, str):
        return Choice("shifted", shifted, reason=found)
    if not written.sorts:
        return Choice("shifted", shifted, reason=TOO_NARROW)
    sorts, most, equal = (
        Case(counts, _cycles(hardware, replace(asked, counts=counts)))
        for counts in (
            most_sorted(written, found),
            written.rounded(most_planes(asked.reduced, asked.groups, found)),
            written.rounded(equal_lengths(asked.reduced, asked.groups)),
        )
    )
    way: Way = "sorted" if sorts.cycles < shifted else "shifted"
    return Choice(way, shifted, sorts, most, equal)


def most_sorted(written: Written, sets: int) -> tuple[int, ...]:
    """Of the room that `sets` of exponents may need, the one in which a program sorts the most
    planes; of equal ones that of the most groups. Raises ValueError where none sorts."""
    spec, block = written.spec, written.hardware.block
    found = []
    for groups in range(1, spec.groups + 1):
        most = sum(written.rounded(most_planes(spec.reduced, groups, sets))) // block
        for planes in range(most, groups - 1, -1):
            room = ((planes - groups + 1), *(1,) * (groups - 1), *(0,) * (spec.groups - groups))
            counts = tuple(block * one for one in room)
            if written.sorts_for(counts):
                found.append((planes, groups, counts))
                break
    return max(found)[-1]


def most_planes(k: int, groups: int, sets: int) -> tuple[int, ...]:
    """The lengths of groups that ask for the most planes, each as long as the longest in one of
    `sets` of k values.

    Each set but the last has all its values in one group. The last one has the groups that are
    left, with one value in all but the first of them.
    """
    whole = min(sets, groups) - 1
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


def _matrix_sets(spec: KernelSpec, asked: GemmSpec | ConvSpec) -> int | str:
    """How many sets of exponents there are, each along k; or why they are not such."""
    shape = spec.tensor("exponent").shape
    rows, k = shape[-2:][::-1] if spec["transpose_a"] else shape[-2:]
    sorted_ = rows == 1 and k == asked.reduced
    return (shape[0] if len(shape) == 3 else 1) if sorted_ else OTHER_AXES


def _channel_sets(spec: KernelSpec, asked: GemmSpec | ConvSpec) -> int | str:
    assert isinstance(asked, ConvSpec)
    channels = (1, 1, 1, asked.channel_groups * asked.reduced)
    sorted_ = spec.tensor("exponent").shape == channels
    return asked.channel_groups if sorted_ else OTHER_AXES


_SETS: dict[str, Callable[[KernelSpec, GemmSpec | ConvSpec], int | str]] = {
    "sq::shift_matmul": _matrix_sets,
    "sq::conv_fprop": _channel_sets,
    "sq::conv_dgrad": _channel_sets,
    "sq::conv_wgrad": lambda spec, asked: PIXELS,
}
"""Whether groups of a product can be sorted, by its op."""
