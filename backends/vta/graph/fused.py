"""A product's program with what reads its accumulators in it: sums of channels, or a ReLU."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.vta.graph.choice import chosen, with_reader
from sqcompile.backends.vta.graph.offload import Offload, fixed, product_spec, sums_spec
from sqcompile.backends.vta.graph.table import PRODUCTS, RELU, SUM
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.program import elementwise_program, product_program
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec
from sqcompile.backends.vta.tiling import DRAM_LATENCY
from sqcompile.errors import SqError, UsageError


def fused(product: KernelSpec, reader: KernelSpec, hardware: Hardware) -> Offload | str:
    """The program of a product and of the op that reads its result, or why there is none. With sums
    it has two results, with a ReLU one; groups are shifted in operands."""
    if product.op not in PRODUCTS or reader.op not in _WITH:
        return "it is no product with a ReLU or with sums"
    (accumulators,) = product.outputs
    if accumulators.dtype != "int32":
        return "the product's sums need 64 bits, which the host adds"
    try:
        asked = product_spec(product)
        program = product_program(hardware, _WITH[reader.op](asked, reader))
        choice = chosen(product, asked, hardware)
        if choice is not None:
            together = program.cycles(DRAM_LATENCY).total
            choice = with_reader(choice, together, _alone(reader, hardware))
    except SqError as error:
        return str(error)
    if choice is not None and choice.way == "sorted":
        return "sorted groups, and what reads the result apart, are faster"
    return fixed(f"{product.short_name}_{reader.short_name}", program, choice=choice)


def _alone(reader: KernelSpec, hardware: Hardware) -> int:
    """Cycles of a reader's own program; a ReLU has none."""
    if reader.op != SUM:
        return 0
    return elementwise_program(hardware, sums_spec(reader)).cycles(DRAM_LATENCY).total


def _with_sums(spec: GemmSpec | ConvSpec, reader: KernelSpec) -> ConvSpec:
    axes = sorted(axis % 4 for axis in reader["dim"] or ())
    if not isinstance(spec, ConvSpec) or axes != [0, 1, 2]:
        raise UsageError("not the sums of a convolution's channels")
    return replace(spec, sums=True)


_WITH: dict[str, Callable[[Any, KernelSpec], GemmSpec | ConvSpec]] = {
    SUM: _with_sums,
    RELU: lambda spec, reader: replace(spec, relu=True),
}


@dataclass
class Fusions:
    """The programs of pairs of kernels, by name, made when they are asked for."""

    specs: dict[str, KernelSpec]
    hardware: Hardware

    def __post_init__(self) -> None:
        self._made: dict[tuple[str, str], Offload | str] = {}

    def of(self, product: str, reader: str) -> Offload | None:
        """None where there is none."""
        key = product, reader
        if key not in self._made:
            found = [self.specs.get(name) for name in key]
            first, second = found
            self._made[key] = (
                fused(first, second, self.hardware) if first and second else "no such kernels"
            )
        made = self._made[key]
        return made if isinstance(made, Offload) else None
