"""Every case, by unique name."""

from functools import cache

import torch

from sqcompile.ops import OPS
from tests.backends import (
    cases_functions,
    cases_norm,
    cases_product,
    cases_quantize,
    cases_shapes,
)
from tests.backends.cases import Case
from tests.backends.cases_aten import TO_COPY, aten_cases, to_float

FAMILIES = (
    cases_quantize.quantizers,
    cases_quantize.gradients,
    cases_quantize.pairs,
    cases_quantize.weights,
    cases_quantize.absmaxes,
    cases_quantize.packs,
    cases_product.products,
    cases_product.convolutions,
    cases_norm.norms,
    cases_norm.reductions,
    cases_norm.pools,
    cases_shapes.lookups,
    cases_shapes.ranges,
    cases_shapes.resamples,
    cases_shapes.dropouts,
    cases_functions.functions,
    cases_functions.activations,
    cases_functions.softmaxes,
    cases_functions.losses,
)


@cache
def all_cases() -> list[Case]:
    """All of them; names are unique. Made once: a case keeps its spec, which takes longer than
    many kernels."""
    cases: list[Case] = []
    for family in FAMILIES:
        for op, label, make in family():
            entry = OPS[f"sq::{op}"]
            cases.append(Case(f"{op}-{label}", entry.target, entry.reference, make))
    for target, label, make in aten_cases():
        name = f"{target._schema.name[6:]}.{target._overloadname}-{label}"
        cases.append(Case(name, target, target, make))
    for label, x in to_float().items():
        keywords = {"dtype": torch.float32}
        cases.append(Case(f"_to_copy.default-{label}", TO_COPY, TO_COPY, x, keywords))
    assert len({case.name for case in cases}) == len(cases)
    return cases
