"""Which integer sums the norms of a step take, and where: on the accelerator or on the host.

The kinds are those of docs/numerics.md, "L1 normalisation": S and D of forward, G, X and Z of
backward. What an op of these takes is a row of `SUMS`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.vta.graph.table import SUM


class Kind(NamedTuple):
    """A kind of sum: of which pass, by its name, `letter` in the numerics; whether only norms that
    subtract means take it; and why the host does, where it does."""

    role: str
    name: str
    letter: str
    of_centred: bool
    why_host: str


VALUES = Kind(
    "forward",
    "values",
    "S",
    True,
    "given by no product: the host quantises the values, or they are accumulators of a matrix "
    "product, of 64 bits, or of long reductions",
)
DEVIATIONS = Kind(
    "forward",
    "deviations",
    "D",
    False,
    "means come first: accumulators would be loaded again for them, other values the host has",
)
GRADIENTS = Kind("backward", "gradients", "G", True, "the host quantises the gradients")
TIMES_VALUES = Kind(
    "backward",
    "gradients_times_values",
    "X",
    False,
    "the host quantises the gradients and keeps the values",
)
SIGNS = Kind("backward", "signs", "Z", True, "the host keeps the values, whose signs these are")
KINDS = (VALUES, DEVIATIONS, GRADIENTS, TIMES_VALUES, SIGNS)

_FORWARD = (VALUES, DEVIATIONS)
_INPUT_GRADIENT = (GRADIENTS, TIMES_VALUES, SIGNS)
_AFFINE_GRADIENT = (GRADIENTS, TIMES_VALUES)

SUMS: dict[str, tuple[Kind, ...]] = {
    "sq::l1_batch_norm": _FORWARD,
    "sq::l1_batch_norm_relu_quantize": _FORWARD,
    "sq::l1_batch_norm_add_relu": _FORWARD,
    "sq::l1_layer_norm": _FORWARD,
    "sq::quantize_l1_layer_norm": _FORWARD,
    "sq::l1_group_norm": _FORWARD,
    "sq::l1_batch_norm_backward": _INPUT_GRADIENT,
    "sq::l1_batch_norm_packed_backward": _INPUT_GRADIENT,
    "sq::l1_batch_norm_backward_quantize": _INPUT_GRADIENT,
    "sq::l1_layer_norm_backward": _INPUT_GRADIENT,
    "sq::l1_layer_norm_packed_backward": _INPUT_GRADIENT,
    "sq::quantize_l1_layer_norm_backward": _INPUT_GRADIENT,
    "sq::l1_layer_norm_affine_backward": _AFFINE_GRADIENT,
    "sq::l1_layer_norm_affine_packed_backward": _AFFINE_GRADIENT,
    "sq::l1_group_norm_backward": _INPUT_GRADIENT,
    "sq::l1_group_norm_packed_backward": _INPUT_GRADIENT,
}
"""The sums that every norm of the op table takes, where it subtracts means."""


def counted(
    records: Sequence[KernelRecord], accelerator: frozenset[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{role: {kind: how many are taken where}} of a step's calls; `accelerator` has the nodes that
    run there. One a call of an op and a kind, of every channel or row at once; `why` says why the
    host takes the ones that it takes, "" where there are none."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in KINDS:
        takers = [node for record in records if _takes(record, kind) for node in record.nodes]
        there = len(accelerator.intersection(takers))
        if kind is VALUES:
            there += len(accelerator.intersection(_sums_before_norms(records)))
        host = len(takers) - there
        row = {"accelerator": there, "host": host, "why": kind.why_host if host else ""}
        found.setdefault(kind.role, {})[kind.name] = row
    return found


def _takes(record: KernelRecord, kind: Kind) -> bool:
    centred = record.spec.get("centred", True)
    return kind in SUMS.get(record.op, ()) and (centred or not kind.of_centred)


def _sums_before_norms(records: Sequence[KernelRecord]) -> list[str]:
    """The sums of accumulators that are given to the norm which reads these."""
    return [node for record in records if record.op == SUM for node in record.nodes]
