"""Golden test of the partition: products become programs, with their transfers; the rest stays."""

import json

import pytest
import tvm
from tvm import relax, tirx

from sqcompile.backends import targets
from sqcompile.backends.lower import lower
from sqcompile.backends.vta.graph import offload, partition, table
from sqcompile.backends.vta.graph.build import candidates
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.plain_products import plain_products
from sqcompile.runtime import vta
from tests.passes.programs import graph

SPEC = ProductSpec(
    "fc", "fprop", (Operand("activation", 4, False), Operand("weight", 4, True, (0,))), 1, False, 0
)

GRADIENT = ProductSpec(
    "fc", "dgrad", (Operand("gradient", 4, True), Operand("weight", 4, True, (0,))), 4, False, 0
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
                if call.op == tvm.ir.Op.get("relax.reshape"):
                    names[binding.var] = "reshape"
                    continue
                callee, arguments = call.args[0], call.args[1]
                short = getattr(callee, "name_hint", None) or callee.global_symbol
                given = [names.get(one, "text") for one in arguments.fields]
                (kind,) = call.ty_args
                shape = [int(size) for size in kind.shape]
                names[binding.var] = short.split(".")[-1]
                found.append(f"{short}({', '.join(given)}): {kind.dtype}{shape}")
    return found


def offloads(module, hardware=PRESETS["pynq"]):
    return {name: offload.offload(spec, hardware) for name, spec in candidates(module).items()}


def test_a_product_is_three_calls_of_the_accelerator(lowered):
    programs = offloads(lowered)
    dram = programs["shift_matmul"][0].dram
    assert calls(lowered) == [
        "quantize(x_0, r): uint8[4, 8]",
        "shift_matmul(quantize, w): int32[4, 6]",
        "dequantize(shift_matmul, s): float32[4, 6]",
        "relu(dequantize): float32[4, 6]",
    ]
    found = partition.partitioned(lowered, programs)
    assert calls(found) == [
        "quantize(x_0, r): uint8[4, 8]",
        f"sqcompile.vta.pack(text, text, quantize, w): uint8[{dram}]",
        f"sqcompile.vta.execute(text, pack): uint8[{dram}]",
        "sqcompile.vta.unpack(text, text, execute, quantize, w): int32[4, 6]",
        "dequantize(unpack, s): float32[4, 6]",
        "relu(dequantize): float32[4, 6]",
    ]
    kernels = {v.name_hint for v, f in found.functions.items() if isinstance(f, tirx.PrimFunc)}
    assert kernels == {"quantize", "dequantize", "relu"}


def test_a_program_that_is_written_in_the_run_is_told_the_lengths_of_groups():
    inputs = "g: i8[16, 64], w: i8[64, 32], e: i8[1, 64] -> dx"
    program = "dx = sq.shift_matmul(g, w, e, 4, False, False, 0)"
    before = graph(inputs, program, dx={"sq": GRADIENT})
    module = lower({"forward": plain_products(before)}, targets.get("vta")).module
    programs = offloads(module, PRESETS["pynq-int4-out32"])
    dram = programs["shift_matmul"][0].dram
    assert calls(partition.partitioned(module, programs)) == [
        "sqcompile.vta.lengths(text, text, e): int32[4]",
        f"sqcompile.vta.pack(text, text, g, w, e, lengths): uint8[{dram}]",
        f"sqcompile.vta.execute(text, pack, lengths): uint8[{dram}]",
        "sqcompile.vta.unpack(text, text, execute, g, w, e, lengths): int32[16, 32]",
    ]


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
    executed = [one for one in calls(found) if one.startswith(vta.EXECUTE)]
    assert len(executed) == 2 and len(offloads(module)) == 1


def test_a_spec_survives_being_text(lowered):
    (spec,) = candidates(lowered).values()
    assert table.spec_from(table.spec_json(spec)) == spec
    assert spec.ranges("a", "b") == ((0, 15), (-7, 7))


def test_sums_of_64_bits_are_added_from_parts():
    inputs = "g: i8[5, 4, 4, 6], x: u8[5, 4, 4, 3], e: i8[5, 1, 1, 1] -> w"
    window = "[6, 3, 3, 3], [1, 1], [1, 1], [1, 1], 1"
    program = f"w = sq.conv_wgrad(g, x, e, 4, {window}, 9)"
    module = lower({"forward": graph(inputs, program)}, targets.get("vta")).module
    (parts,) = offloads(module).values()
    assert [json.loads(part.cut) for part in parts] == [
        [[0, 0, 2], [0, 0, 2], [0, 0, 2]],
        [[0, 2, 4], [0, 2, 4], [0, 2, 4]],
        [[0, 4, 5], [0, 4, 5], [0, 4, 5]],
    ]
    assert parts[0].identity == parts[1].identity != parts[2].identity
    found = calls(partition.partitioned(module, offloads(module)))
    assert found[-1] == "sqcompile.vta.add(unpack, unpack, unpack): int64[6, 3, 3, 3]"
    assert found[-2].endswith("unpack(text, text, execute, g, x, e): int32[6, 3, 3, 3]")


def test_sums_of_accumulators_run_on_the_accelerator():
    before = graph(
        "q: u8[2, 5, 5, 4], w: i8[6, 4, 3, 3] -> acc, sums",
        """
        both = sq.conv_fprop_sums(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
        acc = both[0]
        sums = both[1]
        """,
        both={"sq": SPEC},
    )
    module = lower({"forward": plain_products(before)}, targets.get("vta")).module
    found = partition.partitioned(module, offloads(module))
    assert [one for one in calls(found) if "unpack" in one.split("(")[0]] == [
        "sqcompile.vta.unpack(text, text, execute, q, w): int32[2, 5, 5, 6]",
        "sqcompile.vta.unpack(text, text, execute, reshape): int64[6]",
    ]


def test_a_sum_of_anything_else_stays_on_the_cpu():
    module = lower(
        {"forward": graph("x: i8[3, 4] -> y", "y = aten.sum.dim_IntList(x, [0])")},
        targets.get("vta"),
    ).module
    assert offloads(module) == {"sum": "not a sum of accumulators over all axes but the last"}


@pytest.mark.parametrize(
    ("chunk", "groups", "reason"),
    [(3, 1, "the sums of one image need 64 bits"), (8, 3, "it has groups of channels")],
)
def test_a_product_that_cannot_be_cut_has_a_reason(chunk, groups, reason):
    inputs = "g: i8[5, 4, 4, 6], x: u8[5, 4, 4, 3] -> w"
    window = f"[6, {3 // groups}, 3, 3], [1, 1], [1, 1], [1, 1], {groups}"
    program = f"w = sq.conv_wgrad(g, x, None, 1, {window}, {chunk})"
    module = lower({"forward": graph(inputs, program)}, targets.get("vta")).module
    (found,) = offloads(module).values()
    assert reason in found


def test_the_code_generator_leaves_no_runtime_module(lowered):
    found = partition.partitioned(lowered, offloads(lowered))
    assert not (found.attrs or {}).get("external_mods")
    assert isinstance(found, tvm.IRModule)
