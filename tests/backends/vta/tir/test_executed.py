"""TIR of products, compiled for the CPU and executed: what the ops' references compute.

The schedule's intrinsics are replaced by the loops that describe them: nothing else differs from
what programs are written from.
"""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm import s_tir, tirx
from tvm.s_tir import TensorIntrin
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import compilation_pipeline

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.program import form_of
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.backends.vta.tir import compute, intrinsics
from sqcompile.backends.vta.tir.schedule import scheduled
from tests.backends.vta.programs import SHAPES
from tests.backends.vta.test_conv_program import conv_operands, conv_spec
from tests.backends.vta.test_gemm_program import gemm_operands

S4, U4, S8 = Values.of(4, True), Values.of(4, False), Values.of(8, True)
SMALL = hw.checked(
    replace(SHAPES["int8"], log_inp_buff_size=10, log_wgt_buff_size=13, log_acc_buff_size=12)
)
"""64 tiles of INP, 32 of WGT, 64 of ACC."""

CASES = {
    "padding, blocks in pieces": (
        SHAPES["int8"],
        conv_spec("fprop", (6, 9, 9, 20), 18, (3, 3), ((1, 1), (1, 1), (1, 1), 1), U4, S4),
    ),
    "phases of different taps": (
        SMALL,
        conv_spec("dgrad", (2, 8, 7, 20), 18, (3, 3), ((2, 3), (1, 1), (1, 1), 1), S4, S4, 3),
    ),
    "a ReLU in two slices without a sign": (
        SHAPES["int8"],
        replace(
            conv_spec("fprop", (3, 7, 9, 150), 18, (3, 3), ((1, 1), (1, 1), (1, 1), 1), S4, S4),
            relu=True,
        ),
    ),
    "digits of 4 rows": (SHAPES["4 rows of 8"], GemmSpec(21, 30, 50, S8, S8, groups=4)),
}


def _passes():
    """TVM's, from flat loops on: those before have been through the schedule already."""

    @tvm.transform.module_pass(opt_level=0)
    def run(module, _):
        for one in (
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            tirx.transform.StmtSimplify(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.MakePackedAPI(),
        ):
            module = one(module)
        return module

    return run, finalize_host_passes, finalize_device_passes


@pytest.fixture
def described(monkeypatch):
    """Intrinsics that are replaced by their own descriptions."""

    def registered(hardware):
        for name, made in (("gemm", intrinsics._gemm), ("clear", intrinsics._clear)):
            described = made(hardware, True)
            TensorIntrin.register(f"described.{name}", described, described, override=True)
        return "described.gemm", "described.clear"

    monkeypatch.setattr(intrinsics, "registered", registered)
    monkeypatch.setitem(compilation_pipeline.PIPELINE_MAP, "flat loops", _passes)


def operands_of(spec):
    make = gemm_operands if isinstance(spec, GemmSpec) else conv_operands
    operands, result = make(spec)
    return operands, np.maximum(result, 0) if spec.relu else result


def executed(built, hardware, spec, tables, turns=None):
    """The product, from tiles that go through a compiled function."""
    form, (operands, _) = form_of(hardware, spec), operands_of(spec)
    slices = form.correlation.slices(hardware.width(Memory.OUT))
    out = np.zeros((slices, *form.result_shape, hardware.batch, hardware.block), np.int8)
    tiles = [np.ascontiguousarray(grid.astype(np.int8)) for grid in form.pack(operands)]
    arrays = [*tiles, np.array(tables or [0], np.int32), out]
    if turns is not None:
        arrays.append(np.array([(one.block, *one.rows, *one.columns) for one in turns], np.int32))
    given = [tvm.runtime.tensor(array) for array in arrays]
    built["correlation"](*given)
    slices = given[3].numpy().astype(np.int32)
    total = slices[-1] if form.signed else slices[-1] & 255
    for digits in slices[-2::-1]:
        total = (total << 8) + (digits & 255)
    return form.unpack(total, operands)


@pytest.mark.parametrize("case", CASES)
def test_the_function_computes_the_product(case):
    hardware, spec = CASES[case]
    function, tables = compute.function(hardware, form_of(hardware, spec).correlation)
    found = executed(tvm.compile(function, target="llvm"), hardware, spec, tables)
    np.testing.assert_array_equal(found, operands_of(spec)[1])


@pytest.mark.parametrize("case", CASES)
def test_so_does_what_the_schedule_and_the_pipeline_make_of_it(case, described):
    hardware, spec = CASES[case]
    form = form_of(hardware, spec)
    made = scheduled.__wrapped__(hardware, form.correlation, form.tiling())  # not kept
    module = tvm.IRModule({"correlation": made.flat})
    for one in (
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.InjectSoftwarePipeline(),
        s_tir.transform.LowerOpaqueBlock(),
    ):
        module = one(module)
    built = tvm.compile(module, target="llvm", tir_pipeline="flat loops")
    found = executed(built, hardware, spec, made.tables, made.turns)
    np.testing.assert_array_equal(found, operands_of(spec)[1])
