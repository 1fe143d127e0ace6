"""Golden test of the partition: products become programs, with their transfers; the rest stays."""

import json
from dataclasses import replace

import pytest
import torch
import tvm
from tvm import relax, tirx

from sqcompile.backends import targets
from sqcompile.backends.lower import lower
from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.graph import offload, partition, table
from sqcompile.backends.vta.graph.build import candidates
from sqcompile.backends.vta.graph.fused import Fusions
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


def calls(module, function="forward"):
    """The calls of a function in order: what is called, on what, and the type that it gives."""
    names, found = {}, []
    for one in module[function].params:
        names[one] = one.name
    for block in module[function].body.blocks:
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
                kinds = kind.fields if isinstance(kind, relax.TupleType) else [kind]
                types = [f"{one.dtype}{[int(size) for size in one.shape]}" for one in kinds]
                names[binding.var] = short.split(".")[-1]
                found.append(f"{short}({', '.join(given)}): {', '.join(types)}")
            elif isinstance(call, relax.TupleGetItem):
                names[binding.var] = names.get(call.tuple_value)
    return found


def offloads(module, hardware=PRESETS["pynq"]):
    return {name: offload.offload(spec, hardware) for name, spec in candidates(module).items()}


def parted(module, programs=None, hardware=PRESETS["pynq"]):
    fusions = Fusions(candidates(module), hardware)
    given = offloads(module, hardware) if programs is None else programs
    taken = {name: one for name, one in given.items() if not isinstance(one, str)}
    return partition.partitioned(module, taken, fusions).module


def test_a_product_is_three_calls_of_the_accelerator(lowered):
    programs = offloads(lowered)
    dram = programs["shift_matmul"][0].dram
    assert calls(lowered) == [
        "quantize(x_0, r): uint8[4, 8]",
        "shift_matmul(quantize, w): int32[4, 6]",
        "dequantize(shift_matmul, s): float32[4, 6]",
        "relu(dequantize): float32[4, 6]",
    ]
    found = parted(lowered, programs)
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
    chip = PRESETS["pynq-int4-out32"]
    programs = offloads(module, chip)
    dram = programs["shift_matmul"][0].dram
    assert calls(parted(module, programs, chip)) == [
        "sqcompile.vta.lengths(text, text, e): int32[4]",
        f"sqcompile.vta.pack(text, text, g, w, e, lengths): uint8[{dram}]",
        f"sqcompile.vta.execute(text, pack, lengths): uint8[{dram}]",
        "sqcompile.vta.unpack(text, text, execute, g, w, e, lengths): int32[16, 32]",
    ]


def test_a_product_without_a_program_stays_on_the_cpu(lowered):
    assert calls(parted(lowered, {})) == calls(lowered)


def test_equal_products_share_a_program():
    inputs = "q: u8[4, 8], w: i8[6, 8], v: i8[6, 8] -> a, b"
    program = """
        a = sq.shift_matmul(q, w, None, 1, False, True, 0)
        b = sq.shift_matmul(q, v, None, 1, False, True, 0)
    """
    module = lower({"forward": graph(inputs, program)}, targets.get("vta")).module
    found = parted(module)
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
    found = calls(parted(module))
    assert found[-1] == "sqcompile.vta.add(unpack, unpack, unpack): int64[6, 3, 3, 3]"
    assert found[-2].endswith("unpack(text, text, execute, g, x, e): int32[6, 3, 3, 3]")


SUMMED = graph(
    "q: u8[2, 5, 5, 4], w: i8[6, 4, 3, 3] -> acc, sums",
    """
    both = sq.conv_fprop_sums(q, w, [1, 1], [1, 1], [1, 1], 1, 0)
    acc = both[0]
    sums = both[1]
    """,
    both={"sq": SPEC},
)


def test_a_product_and_its_sums_are_a_region_with_one_program():
    module = lower({"forward": plain_products(SUMMED)}, targets.get("vta")).module
    dram = Fusions(candidates(module), PRESETS["pynq"]).of("conv_fprop", "sum").dram
    assert calls(parted(module)) == [
        f"sqcompile.vta.pack(text, text, q, w): uint8[{dram}]",
        f"sqcompile.vta.execute(text, pack): uint8[{dram}]",
        "sqcompile.vta.unpack(text, text, execute, q, w): int32[2, 5, 5, 6], int64[6]",
    ]


def test_both_functions_of_a_step_have_regions():
    graphs = {name: plain_products(SUMMED) for name in ("forward", "backward")}
    found = parted(lower(graphs, targets.get("vta")).module)
    assert len(found.functions) == 2
    assert calls(found, "forward") == calls(found, "backward")


def test_sums_that_find_no_room_in_the_products_program_have_one():
    module = lower({"forward": plain_products(SUMMED)}, targets.get("vta")).module
    tiny = hw.checked(replace(PRESETS["pynq-out32"], log_acc_buff_size=8))
    found = calls(parted(module, hardware=tiny))
    assert [one for one in found if "unpack" in one.split("(")[0]] == [
        "sqcompile.vta.unpack(text, text, execute, q, w): int32[2, 5, 5, 6]",
        "sqcompile.vta.unpack(text, text, execute, reshape): int64[6]",
    ]


def test_sums_of_accumulators_from_elsewhere_are_a_program():
    before = graph("a: i32[3, 5, 4] -> y", "y = aten.sum.dim_IntList(a, [0, 1])", y={})
    (node,) = before.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.dim_IntList)
    node.meta["range"] = (-100, 100)
    found = calls(parted(lower({"forward": before}, targets.get("vta")).module))
    assert found[-1] == "sqcompile.vta.unpack(text, text, execute, reshape): int64[4]"


def test_a_relu_of_accumulators_is_in_the_products_program():
    program = """
        acc = sq.shift_matmul(q, w, None, 1, False, True, 0)
        positive = aten.relu(acc)
        y = sq.dequantize(positive, [s], None)
    """
    before = graph("q: i8[4, 8], w: i8[6, 8], s: f32[1, 6] -> y", program)
    module = lower({"forward": before}, targets.get("vta")).module
    found = calls(parted(module))
    assert found[2:] == [
        "sqcompile.vta.unpack(text, text, execute, q, w): int32[4, 6]",
        "dequantize(unpack, s): float32[4, 6]",
    ]
    assert Fusions(candidates(module), PRESETS["pynq"]).of("shift_matmul", "relu").identity in str(
        parted(module)["forward"]
    )


@pytest.mark.parametrize(
    ("q", "outputs"), [("u8", "y"), ("i8", "y, acc")], ids=["offsets", "another reader"]
)
def test_a_relu_that_the_program_cannot_take_is_the_hosts(q, outputs):
    """0..255 has an offset, which the host makes good behind the program."""
    program = """
        acc = sq.shift_matmul(q, w, None, 1, False, True, 0)
        y = aten.relu(acc)
    """
    before = graph(f"q: {q}[4, 8], w: i8[6, 8] -> {outputs}", program)
    found = calls(parted(lower({"forward": before}, targets.get("vta")).module))
    assert found[2:4] == [
        "sqcompile.vta.unpack(text, text, execute, q, w): int32[4, 6]",
        "relu(unpack): int32[4, 6]",
    ]


def test_a_tensor_that_a_product_reads_twice_is_packed_twice():
    program = "y = sq.shift_matmul(q, q, None, 1, False, True, 0)"
    before = graph("q: i8[4, 8] -> y", program)
    found = calls(parted(lower({"forward": before}, targets.get("vta")).module))
    assert found[-1] == "sqcompile.vta.unpack(text, text, execute, q, q): int32[4, 4]"


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
    found = parted(lowered)
    assert not (found.attrs or {}).get("external_mods")
    assert isinstance(found, tvm.IRModule)
