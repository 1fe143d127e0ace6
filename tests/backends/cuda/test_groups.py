"""Whole graphs on CUDA: groups of elementwise ops, and kernels that read their operands where they
lie, give the same bits as the ops one by one."""

from math import prod

import pytest
import torch
from torch import Tensor

from tests.backends import test_fusion, test_reads
from tests.backends.cuda.emulated import wrong
from tests.backends.cuda.planned import Planned, Programs, steps_of
from tests.backends.graphs import Build, written
from tests.conftest import require_tool

PROGRAMS: Programs = {
    f"{kind}-{name}": program
    for kind, programs in (("group", test_fusion.programs()), ("reads", test_reads.programs()))
    for name, program in programs.items()
}


@pytest.fixture(scope="module")
def planned() -> Planned:
    require_tool("g++")
    return Planned(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_graphs_give_the_bits_of_their_ops(name: str, planned: Planned) -> None:
    wanted = planned.graphs[name](*PROGRAMS[name][1])
    for place, (got, want) in enumerate(zip(planned.run(name), wanted, strict=True)):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert not wrong(got, want.contiguous()).any(), f"output {place}"


def _names(build: Build, *inputs: Tensor) -> list[str]:
    return [step.spec.op for step in steps_of(written(build, *inputs))[1]]


def test_a_group_packs_and_measures_beside_what_it_stores() -> None:
    x = torch.randn(4, 16)
    assert _names(test_fusion.activation, x, x) == ["fused::add+relu+gt+pack_mask+absmax"]


def test_what_a_thread_cannot_pack_or_measure_has_a_kernel_of_its_own() -> None:
    x = torch.randn(4, 6)
    ops = _names(test_fusion.activation, x, x)
    assert ops == ["fused::add+relu+gt+absmax", "sq::pack_mask"]
    packed = torch.zeros(prod(x.shape) // 8, dtype=torch.uint8)
    assert "sq::absmax" in _names(test_fusion.gradient, x, x, packed)


def test_quantisers_read_where_their_operands_lie() -> None:
    x = torch.randn(2, 5, 3 * 2 * 7)
    ops = _names(test_reads.attention(2), x)
    assert ops == ["sq::absmax", "sq::quantize"] * 2
