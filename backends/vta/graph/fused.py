"""A product's program with what reads its accumulators in it: sums of channels, or a ReLU."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.vta.graph.offload import Offload, computed, product_spec
from sqcompile.backends.vta.graph.table import PRODUCTS, RELU, SUM
from sqcompile.backends.vta.hardware import Hardware
from sqcompile.backends.vta.spec import ConvSpec, GemmSpec
from sqcompile.errors import SqError, UsageError


def fused(product: KernelSpec, reader: KernelSpec, hardware: Hardware) -> Offload | str:
    """The program of a product and of the op that reads its result, or why there is none. With sums
    it has two results, with a ReLU one."""
    if product.op not in PRODUCTS or reader.op not in _WITH:
        return "it is no product with a ReLU or with sums"
    (accumulators,) = product.outputs
    if accumulators.dtype != "int32":
        return "the product's sums need 64 bits, which the host adds"
    try:
        asked = _WITH[reader.op](product_spec(product), reader)
        return computed(product, asked, f"{product.short_name}_{reader.short_name}", hardware)
    except SqError as error:
        return str(error)


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
