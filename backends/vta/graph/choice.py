"""Which way the groups of a product are shifted: in its operands, or sorted and in accumulators.

How many planes sorted groups take depends on their lengths, which come with the run; the run writes
the faster of the two programs for its own. So sorted groups are never slower, and cost the host the
time to write them. They are chosen where they gain enough in the case that they are about best in,
one group, which is the usual one too: channels whose largest values are within a factor of two of
each other share it. Pixels of a wgrad are in several groups, but a group of theirs is many planes,
and cycles hardly differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec
from sqcompile.backends.vta.tiling import DRAM_LATENCY
from sqcompile.backends.vta.written import Written, cycles_of

Way = Literal["shifted", "sorted"]

LEAST_GAIN = 0.02
"""The share of a product's cycles that sorted groups must save in their best case: the host takes
tens of milliseconds to write a program."""

TOO_NARROW = "no lengths take fewer tile operations than operands that are shifted"
OTHER_AXES = "its exponents vary along other axes than the reduced one, or not along it"


@dataclass(frozen=True)
class Case:
    """Cycles of the program for so many values of each exponent, in whole planes."""

    counts: tuple[int, ...]
    cycles: int


@dataclass(frozen=True)
class Choice:
    """The way, and the cycles that it was chosen by: of shifted operands, and of the program for
    all values in `one` group. Beside them the programs for `equal` lengths, and for those that ask
    for the `most` planes, which may shift operands, too. `reason` says why there is but one way,
    where there is."""

    way: Way
    shifted: int
    one: Case | None = None
    equal: Case | None = None
    most: Case | None = None
    reason: str = ""


def chosen(spec: KernelSpec, asked: GemmSpec | ConvSpec, hardware: Hardware) -> Choice | None:
    """The choice for a product and what `asked` has in its program besides, None for one without
    groups."""
    if asked.groups == 1:
        return None
    written = Written(hardware, asked)
    shifted = cycles_of(hardware, asked)
    sets = _SETS[spec.op](spec, asked)
    if isinstance(sets, str):
        return Choice("shifted", shifted, reason=sets)
    if not written.sorts:
        return Choice("shifted", shifted, reason=TOO_NARROW)
    one, equal, most = (
        Case(room, written.program(room).cycles(DRAM_LATENCY).total)
        for room in map(written.rounded, lengths_of_cases(asked.reduced, asked.groups, sets))
    )
    way: Way = "sorted" if one.cycles <= shifted * (1 - LEAST_GAIN) else "shifted"
    return Choice(way, shifted, one, equal, most)


def lengths_of_cases(k: int, groups: int, sets: int) -> tuple[tuple[int, ...], ...]:
    """Of k values in one group, in equal groups, and in those that ask for the most planes."""
    one = (k, *(0,) * (groups - 1))
    equal = tuple((k + groups - 1 - group) // groups for group in range(groups))
    return one, equal, most_planes(k, groups, sets)


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


def _pixel_sets(spec: KernelSpec, asked: GemmSpec | ConvSpec) -> int | str:
    assert isinstance(asked, ConvSpec)
    return 1 if spec.tensor("exponent").shape == (*asked.y[:3], 1) else OTHER_AXES


_SETS: dict[str, Callable[[KernelSpec, GemmSpec | ConvSpec], int | str]] = {
    "sq::shift_matmul": _matrix_sets,
    "sq::conv_fprop": _channel_sets,
    "sq::conv_dgrad": _channel_sets,
    "sq::conv_wgrad": _pixel_sets,
}
"""Whether groups of a product can be sorted, by its op."""
