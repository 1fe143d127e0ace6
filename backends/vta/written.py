"""Products whose programs are written as they run, for the lengths that their groups have then.

Which values of the reduced axis are in which group of exponents is known only in the run, and
sorted groups (reduction.py) need to know how many planes each one has. So an artifact holds what
the program has to compute, and a run writes it: the same instructions for the same lengths. Where
operands that are shifted are faster for these, it takes that program. A program is proven
(`Program.check`) before it runs, and kept for the next step with these lengths.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any, cast, get_args

from sqcompile.backends.vta import hardware as hardware_
from sqcompile.backends.vta.forms import Array, ProductForm
from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.program import (
    SUMS,
    Program,
    form_of,
    product_program,
    regions_of,
    tuples,
)
from sqcompile.backends.vta.reduction import lengths
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec, Kind, Values
from sqcompile.backends.vta.tiling import DRAM_LATENCY
from sqcompile.errors import SqError, UsageError

KEPT = 256
"""Programs that a process keeps, of all products; the one used longest ago goes first."""


@lru_cache(maxsize=KEPT)
def proven(hardware: Hardware, spec: GemmSpec | ConvSpec) -> Program:
    """The program of a product, once it is proven; raises what `Program.check` does."""
    program = product_program(hardware, spec)
    program.check()
    return program


def product_form(hardware: Hardware, spec: GemmSpec | ConvSpec) -> ProductForm:
    """The form of a product."""
    return cast(ProductForm, form_of(hardware, spec))


@lru_cache(maxsize=1 << 12)
def cycles_of(hardware: Hardware, spec: GemmSpec | ConvSpec) -> int:
    """About how long the program of a product takes."""
    return proven(hardware, spec).cycles(DRAM_LATENCY).total


@lru_cache(maxsize=1 << 12)
def _fastest(
    hardware: Hardware, spec: GemmSpec | ConvSpec, room: tuple[int, ...]
) -> GemmSpec | ConvSpec:
    """What to ask a program for: sorted groups that have so much room, or shifted operands."""
    sorted_ = replace(spec, counts=room)
    if not _multiplies_less(product_form(hardware, sorted_), product_form(hardware, spec)):
        return spec
    return min((spec, sorted_), key=lambda one: cycles_of(hardware, one))


def _multiplies_less(sorted_: ProductForm, shifted: ProductForm) -> bool:
    """Does it sort groups, with fewer operations on accumulators than operands that are shifted
    take?"""
    return sorted_.groups is not None and sorted_.operations < shifted.operations


@dataclass(frozen=True)
class Written:
    """A product with groups on an accelerator; `spec.counts` is None: they come with the run."""

    hardware: Hardware
    spec: GemmSpec | ConvSpec

    def room(self, exponent: Array) -> tuple[int, ...]:
        """For how many values of each exponent the program of a run needs room: as many as there
        are, in whole planes, so that few programs serve many steps."""
        rows = exponent.reshape(-1, self.spec.reduced)
        return self.rounded(lengths(rows, self.spec.groups))

    def rounded(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        """Whole planes."""
        block = self.hardware.block
        return tuple(-(-count // block) * block for count in counts)

    def program(self, room: tuple[int, ...]) -> Program:
        """The faster one of that for shifted operands and that for sorted groups with so much
        room; raises TokenError, PortabilityError, UsageError."""
        return proven(self.hardware, _fastest(self.hardware, self.spec, room))

    @property
    def has_sums(self) -> bool:
        """Do its programs have a second result?"""
        return isinstance(self.spec, ConvSpec) and self.spec.sums

    @cached_property
    def sorts(self) -> bool:
        """Whether sorted groups take fewer tile operations for any lengths."""
        return _multiplies_less(self._alone(-1), self._form(None))

    @cached_property
    def dram(self) -> int:
        """Bytes of DRAM in which operands and results of every program find room; micro-ops lie
        behind them.

        A program that sorts takes fewer operations than the one that shifts does, which bounds its
        planes. Its results have the most bits, and its sums the most chunks, when all values have
        the largest shift.
        """
        shifted = self._form(None)
        forms = [shifted]
        tiles = {grid.name: prod(grid.shape) for grid in shifted.grids}
        for alone in (self._alone(0), self._alone(-1)):
            groups = alone.groups
            if groups is not None and _multiplies_less(alone, shifted):
                forms.append(alone)
                of_plane = alone.inp.count * alone.wgt.count * alone.reduction.taps
                most = shifted.operations / prod(alone.result_shape)
                planes = int((most - 1) / of_plane)
                for grid in alone.grids:
                    all_planes = prod(grid.shape) // sum(groups.planes) * planes
                    tiles[grid.name] = max(tiles[grid.name], all_planes)
        layout = [(grid.name, grid.memory, tiles[grid.name]) for grid in shifted.grids]
        layout.append(("out", Memory.OUT, max(map(_stored, forms))))
        layout.append((SUMS, Memory.OUT, max(form.most_sum_tiles for form in forms)))
        return regions_of(self.hardware, layout)[SUMS].end

    def _alone(self, group: int) -> ProductForm:
        """The form for exponents of one group only."""
        counts = [0] * self.spec.groups
        counts[group] = self.spec.reduced
        return self._form(tuple(counts))

    def _form(self, counts: tuple[int, ...] | None) -> ProductForm:
        return product_form(self.hardware, replace(self.spec, counts=counts))

    def to_bytes(self) -> bytes:
        """For an artifact: JSON."""
        kind = type(self.spec).__name__
        found = {"hardware": asdict(self.hardware), "kind": kind, "spec": asdict(self.spec)}
        return json.dumps(found, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Written":
        """The inverse of `to_bytes`. Raises UsageError, with the artifact's name, for what is no
        description of such a product."""
        try:
            found = json.loads(data)
            if set(found) != {"hardware", "kind", "spec"}:
                raise UsageError("it has other keys than hardware, kind and spec")
            hardware = hardware_.checked(Hardware(**found["hardware"]))
            made = cls(hardware, _spec(found["kind"], found["spec"]))
            made._form(None)
            return made
        except (SqError, ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{name} describes no product: {error}") from None


def _stored(form: ProductForm) -> int:
    """Tiles that results have in DRAM."""
    return prod(form.result_shape) * form.correlation.slices(form.hardware.width(Memory.OUT))


def _spec(kind: str, given: Mapping[str, Any]) -> GemmSpec | ConvSpec:
    """The spec that JSON holds; raises UsageError for a field that is not as it must be."""
    if kind not in _KINDS:
        raise UsageError(f"there is no kind {kind!r}, only {', '.join(_KINDS)}")
    made, wanted = _KINDS[kind]
    names = {field.name for field in fields(made)}
    if set(given) != names:
        odd = ", ".join(sorted(names ^ set(given)))
        raise UsageError(f"fields of its spec that are missing or unknown: {odd}")
    for name, value in given.items():
        if not wanted[name](value):
            raise UsageError(f"{name} of its spec is {value!r}")
    spec: GemmSpec | ConvSpec = made(**{name: tuples(value) for name, value in given.items()})
    if isinstance(spec, ConvSpec):
        _check_shapes(spec)
    return spec


def _check_shapes(spec: ConvSpec) -> None:
    out = tuple(
        (axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) // axis.stride + 1
        for axis in spec.axes
    )
    fits = spec.y == (spec.x[0], *out, spec.w[0]) and spec.x[3] == spec.w[1] * spec.channel_groups
    if not fits or spec.w[0] % spec.channel_groups:
        raise UsageError(f"shapes that are of no convolution: {spec.x}, {spec.w}, {spec.y}")


Check = Callable[[Any], bool]


def _integer(least: int, most: int = 1 << 31) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _several(count: int, each: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(each, value))


def _is_values(value: Any) -> bool:
    named = isinstance(value, dict) and set(value) == {"low", "high"}
    return named and all(map(_integer(-255, 255), value.values())) and Values(**value).spans_zero


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_none(value: Any) -> bool:
    return value is None


_SIZE, _PAIR = _integer(1), _several(2, _integer(1))
_SHARED: dict[str, Check] = {"groups": _integer(2, 8), "counts": _is_none, "relu": _is_flag}
_KINDS: dict[str, tuple[Any, dict[str, Check]]] = {
    "GemmSpec": (
        GemmSpec,
        dict.fromkeys(("m", "n", "k"), _SIZE)
        | dict.fromkeys(("a", "b"), _is_values)
        | dict.fromkeys(("transpose_a", "transpose_b"), _is_flag)
        | {"batch": lambda value: value is None or _SIZE(value)}
        | _SHARED,
    ),
    "ConvSpec": (
        ConvSpec,
        dict.fromkeys(("x", "w", "y"), _several(4, _SIZE))
        | dict.fromkeys(("stride", "dilation"), _PAIR)
        | dict.fromkeys(("first", "second"), _is_values)
        | {"kind": lambda value: value in get_args(Kind)}
        | {"padding": _several(2, _integer(0)), "channel_groups": _SIZE, "sums": _is_flag}
        | _SHARED,
    ),
}
"""What each field of a spec may be."""
