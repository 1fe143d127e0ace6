"""Golden test of the partition: products become programs, with their transfers; the rest stays."""

import pytest
import tvm
from tvm import relax, tirx

from sqcompile.backends import targets
from sqcompile.backends.lower import lower
from sqcompile.backends.vta.graph import offload, partition, table
from sqcompile.backends.vta.graph.build import products_of
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.plain_products import plain_products
from tests.passes.programs import graph

SPEC = ProductSpec(
    "fc", "fprop", (Operand("activation", 4, False), Operand("weight", 4, True, (0,))), 1, False, 0
)


@pytest.fixture(scope="module")
def lowered():
    """A linear layer between a quantiser and a ReLU, as the VTA target lowers it."""
    before = graph(
        "x_0: f32[4, 8], r: f32[1, 1], w: i8[6, 8], s: f32[1, 6] -> y",
        """
        q = sq.quantize(x_0, r, 4, False)
        y = sq.shift_matmul_dequantize(q, w, None, 1, False, True, 0, [s], None, True)
        """,
        y={"sq": SPEC},
    )
    return lower({"forward": plain_products(before)}, targets.get("vta")).module


def calls(module):
    """The calls of forward in order: what is called, on what, and the type that it gives."""
    names, found = {}, []
    for one in module["forward"].params:
        names[one] = one.name
    for block in module["forward"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call):
                callee, arguments = call.args[0], call.args[1]
                short = getattr(callee, "name_hint", None) or callee.global_symbol
                given = [names.get(one, "program") for one in arguments.fields]
                (kind,) = call.ty_args
                shape = [int(size) for size in kind.shape]
                names[binding.var] = short.split(".")[-1]
                found.append(f"{short}({', '.join(given)}): {kind.dtype}{shape}")
    return found


def offloads(module):
    return {
        name: offload.offload(spec, PRESETS["pynq"]) for name, spec in products_of(module).items()
    }


def test_a_product_is_three_calls_of_the_accelerator(lowered):
    programs = offloads(lowered)
    dram = programs["shift_matmul"].dram
    assert calls(lowered) == [
        "quantize(x_0, r): uint8[4, 8]",
        "shift_matmul(quantize, w): int32[4, 6]",
        "dequantize_relu(shift_matmul, s): float32[4, 6]",
    ]
    found = partition.partitioned(lowered, programs)
    assert calls(found) == [
        "quantize(x_0, r): uint8[4, 8]",
        f"sqcompile.vta.pack(program, quantize, w): uint8[{dram}]",
        f"sqcompile.vta.execute(program, pack): uint8[{dram}]",
        "sqcompile.vta.unpack(program, execute, quantize, w): int32[4, 6]",
        "dequantize_relu(unpack, s): float32[4, 6]",
    ]
    kernels = {v.name_hint for v, f in found.functions.items() if isinstance(f, tirx.PrimFunc)}
    assert kernels == {"quantize", "dequantize_relu"}


def test_a_product_without_a_program_stays_on_the_cpu(lowered):
    assert calls(partition.partitioned(lowered, {})) == calls(lowered)


def test_equal_products_share_a_program():
    inputs = "q: u8[4, 8], w: i8[6, 8], v: i8[6, 8] -> a, b"
    program = """
        a = sq.shift_matmul(q, w, None, 1, False, True, 0)
        b = sq.shift_matmul(q, v, None, 1, False, True, 0)
    """
    module = lower({"forward": graph(inputs, program)}, targets.get("vta")).module
    found = partition.partitioned(module, offloads(module))
    executed = [one for one in calls(found) if "execute" in one]
    assert len(executed) == 2 and len(offloads(module)) == 1


def test_a_spec_survives_being_text(lowered):
    (spec,) = products_of(lowered).values()
    assert table.spec_from(table.spec_json(spec)) == spec
    assert spec.ranges("a", "b") == ((0, 15), (-7, 7))


def test_what_a_program_does_not_compute_has_a_reason(lowered):
    (spec,) = products_of(lowered).values()
    wide = table.spec_from(table.spec_json(spec).replace("int32", "int64"))
    assert offload.offload(wide, PRESETS["pynq"]) == (
        "its sums need 64 bits, and accumulators have 32"
    )


def test_the_code_generator_leaves_no_runtime_module(lowered):
    found = partition.partitioned(lowered, offloads(lowered))
    assert not (found.attrs or {}).get("external_mods")
    assert isinstance(found, tvm.IRModule)
