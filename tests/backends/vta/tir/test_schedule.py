"""Schedules of products: tiles, intrinsics, versions, the order of things."""

from dataclasses import replace
from itertools import product
from math import prod

import pytest
from tvm import s_tir
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.cuts import sizes_of
from sqcompile.backends.vta.program import form_of
from sqcompile.backends.vta.spec import GemmSpec
from sqcompile.backends.vta.tir import compute, intrinsics, walk
from sqcompile.backends.vta.tir.names import CLEARED, FETCHED, MULTIPLIED, PAD, PRODUCT, STORE, WGT
from sqcompile.backends.vta.tir.schedule import scheduled
from tests.backends.vta.programs import PYNQ
from tests.backends.vta.test_conv_program import S4, U4, conv_spec

FPROP = conv_spec("fprop", (4, 8, 8, 40), 40, (3, 3), ((1, 1), (1, 1), (1, 1), 1), U4, S4)
ONE_CHUNK = conv_spec("fprop", (9, 9, 9, 16), 16, (3, 3), ((1, 1), (1, 1), (1, 1), 1), U4, S4)
SMALL = hw.checked(replace(PYNQ, log_inp_buff_size=10, log_wgt_buff_size=14, log_acc_buff_size=13))


def made_of(hardware, spec, overlap=True):
    """(correlation, tiling, schedule)."""
    form = form_of(hardware, spec)
    tiling = form.tiling(overlap)
    return form.correlation, tiling, scheduled(hardware, form.correlation, tiling)


def chunks_of(made):
    return len({one.chunk for one in walk.steps(made)})


@pytest.mark.parametrize("hardware", [PYNQ, SMALL])
def test_buffers_are_as_large_as_the_tilings_chunks_and_blocks(hardware):
    of, tiling, made = made_of(hardware, FPROP)
    shapes = {
        buffer.name: list(map(int, buffer.shape[:-2]))
        for block in walk.blocks(made.flat.body)
        for buffer in block.alloc_buffers
    }
    found = [prod(shapes[name]) for name in ("padded", FETCHED, "acc")]
    assert found == list(sizes_of(of, tiling))


@pytest.mark.parametrize(("spec", "several"), [(ONE_CHUNK, False), (FPROP, True)])
def test_two_versions_where_copies_run_ahead_of_products(spec, several):
    _, _, made = made_of(PYNQ, spec)
    assert (chunks_of(made) > 1) == several and made.total > 1
    assert walk.versions(made) == (2, 2)
    ahead, most = 0, 0
    for step in walk.steps(made):
        ahead += {PAD: 1, MULTIPLIED: -1}.get(step.leaf, 0)
        most = max(most, ahead)
        assert 0 <= ahead <= 2
    assert (ahead, most) == (0, 2)


def test_one_version_without_overlap():
    _, _, made = made_of(SMALL, FPROP, overlap=False)
    assert walk.versions(made) == (1, 1)
    order = [step.leaf for step in walk.steps(made)]
    assert order[:4] == [CLEARED, FETCHED, PAD, MULTIPLIED]


def test_every_leaf_comes_once_a_chunk_in_the_order_of_chunks():
    _, _, made = made_of(SMALL, FPROP)
    every = list(product(range(made.total), range(chunks_of(made))))
    for leaf in (FETCHED, PAD, MULTIPLIED):
        assert [(s.turn, s.chunk) for s in walk.steps(made) if s.leaf == leaf] == every
    for leaf in (CLEARED, STORE):
        turns = [step.turn for step in walk.steps(made) if step.leaf == leaf]
        assert turns == list(range(made.total))


def test_products_and_clears_are_intrinsics():
    text = made_of(PYNQ, FPROP)[2].script()
    schedule, pipelined = text.split("def schedule(")[1], text.split("def pipelined(")[1]
    for function in (schedule, pipelined):
        assert '"vta.gemm"' in function and '"vta.clear"' in function
    assert "software_pipeline_stage" in schedule
    assert "sblock_alloc_buffer((2, " in pipelined


def test_an_intrinsic_replaces_nothing_but_what_it_describes():
    of = form_of(PYNQ, GemmSpec(20, 40, 40, S4, S4)).correlation
    function, _ = compute.function(PYNQ, of)
    gemm, clear = intrinsics.registered(PYNQ)
    schedule = Schedule(function, error_render_level="none")
    schedule.cache_read(schedule.get_sblock(PRODUCT), "wgt", WGT)
    loops = schedule.get_loops(schedule.get_sblock("product_tile"))
    with pytest.raises(ScheduleError):
        schedule.tensorize(intrinsics.replaced(PYNQ, loops), clear)
    schedule.tensorize(intrinsics.replaced(PYNQ, loops), gemm)
    assert '"vta.gemm"' in s_tir.transform.StmtSimplify()(schedule.mod).script()
