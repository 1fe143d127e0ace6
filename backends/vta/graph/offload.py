"""From a kernel's spec to programs of the accelerator, or the reason why there are none."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from sqcompile.backends.kernels import RANGE, KernelSpec
from sqcompile.backends.vta.graph import split
from sqcompile.backends.vta.graph.choice import Choice, chosen
from sqcompile.backends.vta.graph.table import RELU, SUM
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.program import Program, elementwise_program
from sqcompile.backends.vta.spec import ConvSpec, ElementwiseSpec, GemmSpec, Values
from sqcompile.backends.vta.written import Written, proven
from sqcompile.errors import SqError, UsageError


@dataclass(frozen=True)
class Offload:
    """A program for a kernel, or for a part of one: its identity (different programs have
    different ones), its bytes, how many bytes of DRAM it works in, the part's `cut`, the shape
    in which it takes its one operand, where that is not the kernel's, how the groups of a
    product are shifted, where it has some, and for the lengths of how many groups its program is
    written in the run: then the bytes say what it computes (`sqcompile.backends.vta.written`)."""

    identity: str
    data: bytes
    dram: int
    cut: str = ""
    rows: tuple[int, int] | None = None
    choice: Choice | None = None
    written_for: int = 0


def offload(spec: KernelSpec, hardware: Hardware) -> list[Offload] | str:
    """The programs whose results add up to what a kernel computes, or why there are none."""
    if spec.op == RELU:
        return "a ReLU has no program of its own: it would take as long as the product before it"
    parts = [split.Part("", spec)] if spec.op == SUM else split.parts(spec)
    if isinstance(parts, str):
        return parts
    made: dict[KernelSpec, Offload] = {}
    try:
        for part in parts:
            if part.spec not in made:
                made[part.spec] = _offload(part.spec, hardware)
    except SqError as error:
        return str(error)
    return [replace(made[part.spec], cut=part.cut) for part in parts]


def _offload(spec: KernelSpec, hardware: Hardware) -> Offload:
    if spec.op == SUM:
        sums = _sums(spec)
        program = elementwise_program(hardware, sums)
        program.check()
        return _fixed(spec.short_name, program, rows=(sums.rows, sums.channels))
    return computed(spec, product_spec(spec), spec.short_name, hardware)


def computed(
    spec: KernelSpec, asked: GemmSpec | ConvSpec, name: str, hardware: Hardware
) -> Offload:
    """What computes `asked`, the product of `spec` and what is in its program besides; `name` is
    where its identity begins. Raises SqError where there is none."""
    choice = chosen(spec, asked, hardware)
    if choice is None or choice.way == "shifted":
        return _fixed(name, proven(hardware, asked), choice=choice)
    written = Written(hardware, asked)
    data, dram = written.to_bytes(), written.dram
    return Offload(_identity(name, data), data, dram, choice=choice, written_for=asked.groups)


def _fixed(name: str, program: Program, **more: Any) -> Offload:
    """The same program in every run; it is proven."""
    data, dram = program.to_bytes(), max(region.end for region in program.regions.values())
    return Offload(_identity(name, data), data, dram, **more)


def _identity(name: str, data: bytes) -> str:
    return f"{name}-{sha256(data).hexdigest()[:12]}"


def product_spec(spec: KernelSpec) -> GemmSpec | ConvSpec:
    """What a product's spec asks for, as a program is asked for."""
    found: GemmSpec | ConvSpec = _SPECS[spec.op](spec)
    return found


def _sums(spec: KernelSpec) -> ElementwiseSpec:
    """Sums over all axes but the last: chunks of rows whose sums 32 bits hold are added by the
    host in 64."""
    x, (out,) = spec.tensor("self"), spec.outputs
    reduced = sorted(axis % len(x.shape) for axis in spec["dim"] or ())
    known = spec.get(RANGE)
    if known is None or x.dtype != "int32" or reduced != list(range(len(x.shape) - 1)):
        raise UsageError("not a sum of accumulators over all axes but the last")
    return ElementwiseSpec(x.size // out.size, out.size, (Values(*known),), (), (), sums=True)


def _matrices(spec: KernelSpec) -> GemmSpec:
    a = spec.tensor("a")
    (m, k), n = a.shape[-2:], spec.outputs[0].shape[-1]
    if spec["transpose_a"]:
        m, k = k, m
    first, second = _values(spec, "a", "b")
    return GemmSpec(
        m,
        n,
        k,
        first,
        second,
        batch=a.shape[0] if len(a.shape) == 3 else None,
        transpose_a=spec["transpose_a"],
        transpose_b=spec["transpose_b"],
        groups=_groups(spec, "groups"),
    )


def _fprop(spec: KernelSpec) -> ConvSpec:
    x, w, y = spec.tensor("x"), spec.tensor("w"), spec.outputs[0]
    return _convolution(spec, "fprop", x.shape, w.shape, y.shape, "x", "w")


def _dgrad(spec: KernelSpec) -> ConvSpec:
    g, w, x = spec.tensor("g"), spec.tensor("w"), spec.outputs[0]
    return _convolution(spec, "dgrad", x.shape, w.shape, g.shape, "g", "w")


def _wgrad(spec: KernelSpec) -> ConvSpec:
    g, x, w = spec.tensor("g"), spec.tensor("x"), spec.outputs[0]
    return _convolution(spec, "wgrad", x.shape, w.shape, g.shape, "g", "x")


def _convolution(
    spec: KernelSpec, kind: Any, x: Any, w: Any, y: Any, first: str, second: str
) -> ConvSpec:
    one, other = _values(spec, first, second)
    return ConvSpec(
        kind,
        x,
        w,
        y,
        stride=spec["stride"],
        padding=spec["padding"],
        dilation=spec["dilation"],
        channel_groups=spec["groups"],
        first=one,
        second=other,
        groups=_groups(spec, "shift_groups"),
    )


def _values(spec: KernelSpec, first: str, second: str) -> tuple[Values, Values]:
    one, other = spec.ranges(first, second)
    return Values(*one), Values(*other)


def _groups(spec: KernelSpec, name: str) -> int:
    """Groups of shifts; without exponents there is one."""
    return 1 if spec.tensor("exponent") is None else int(spec[name])


_SPECS: dict[str, Callable[[KernelSpec], Any]] = {
    "sq::shift_matmul": _matrices,
    "sq::conv_fprop": _fprop,
    "sq::conv_dgrad": _dgrad,
    "sq::conv_wgrad": _wgrad,
}
