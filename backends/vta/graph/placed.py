"""Where the calls of a step run: on the accelerator, in which programs, or on the host."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqcompile.backends.lower import KernelRecord

READERS = ("sums", "relu")
"""What may be in a product's program: the node that reads it, called PRODUCT_sums or PRODUCT_relu
(`passes.plain_products`)."""


class Run(NamedTuple):
    """A product, or the sums of one, and its programs; `reader`: what else is in them."""

    node: str
    product: str
    programs: list[str]
    reader: str | None

    def as_json(self) -> dict[str, Any]:
        """A row of a report."""
        row = {"node": self.node, "product": self.product, "programs": self.programs}
        return row | {"with": self.reader}


@dataclass(frozen=True)
class Placed:
    """What runs on the accelerator, in order, and the nodes that it computes."""

    runs: tuple[Run, ...]
    nodes: frozenset[str]

    @classmethod
    def of(
        cls,
        kernels: Mapping[str, list[str]],
        records: Sequence[KernelRecord],
        products: Sequence[str] | Mapping[str, int],
    ) -> "Placed":
        """`kernels`: the programs of every kernel, and of two in one; `products`: nodes."""
        names = {node: record.name for record in records for node in record.nodes}
        runs: list[Run] = []
        nodes: set[str] = set()
        for product in products:
            found = _runs(kernels, names, product)
            runs += found
            nodes |= {run.node for run in found}
            nodes |= {f"{run.node}_{run.reader}" for run in found if run.reader}
        return cls(tuple(runs), frozenset(nodes))

    def host(self, records: Sequence[KernelRecord]) -> dict[str, int]:
        """How often the CPU's kernels are called, by op; products that it computes included."""
        calls: Counter[str] = Counter()
        for record in records:
            calls[record.op] += len(set(record.nodes) - self.nodes)
        return dict(sorted((+calls).items()))


def _runs(kernels: Mapping[str, list[str]], names: Mapping[str, str], product: str) -> list[Run]:
    for reader in READERS:
        both = f"{names.get(product)}+{names.get(f'{product}_{reader}')}"
        if both in kernels:
            return [Run(product, product, kernels[both], reader)]
    found = []
    for node in (product, f"{product}_sums"):
        programs = kernels.get(names.get(node, ""))
        if programs:
            found.append(Run(node, product, programs, None))
    return found
