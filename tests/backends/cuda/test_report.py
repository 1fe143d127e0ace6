"""Rows of the report: what is read from code, what is computed, and what is a fault."""

from dataclasses import replace
from typing import Any

import pytest

from sqcompile.backends.cuda.architectures import get
from sqcompile.backends.cuda.report import (
    bytes_moved,
    estimate,
    kernel_rows,
    needs_tensor_cores,
)
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.lower import KernelRecord
from sqcompile.runtime.executable import Binary
from tests.backends.cuda.modules import compiled, products, two_floats


def _spec(op: str, *shapes: tuple[tuple[int, ...], str], **attributes: Any) -> KernelSpec:
    *inputs, output = (TensorSpec(shape, dtype) for shape, dtype in shapes)
    named = tuple((f"x{place}", one) for place, one in enumerate(inputs))
    return KernelSpec(op, named, tuple(attributes.items()), (output,))


_TILE = _spec(
    "sq::shift_matmul", ((3, 16, 32), "int8"), ((3, 8, 32), "int8"), ((3, 16, 8), "int32")
)
_DOTS = _spec("sq::dots", ((24, 16), "int32"), ((24, 16), "int32"), ((24, 24), "int32"))
_RECORDS = [
    KernelRecord("tile_product", "sq::shift_matmul", _TILE, ["forward/mm"]),
    KernelRecord("dot_products", "sq::dots", _DOTS, ["forward/dots"]),
]


@pytest.fixture(scope="module")
def binary() -> Binary:
    return compiled(products(), "sm_80,sm_90")


def test_a_row_has_code_occupancy_and_an_estimate(binary: Binary) -> None:
    rows = kernel_rows(binary, _RECORDS, {"forward/mm": 12288})
    assert [(row["architecture"], row["kernel"]) for row in rows] == [
        ("sm_80", "tile_product"),
        ("sm_80", "dot_products"),
        ("sm_90", "tile_product"),
        ("sm_90", "dot_products"),
    ]
    tile, dots = rows[0], rows[1]
    (function,) = tile["functions"]
    assert function["instructions"]["IMMA.16832.S8.S8"] == 1
    assert (function["grid"], function["block"]) == ([3, 1, 1], [32, 1, 1])
    assert function["registers"] > 8 and function["spill_bytes"] == 0
    assert function["occupancy"]["limited_by"] == "blocks"
    assert tile["tensor_cores"] and tile["macs"] == 12288
    assert dots["dot_products"] and not dots["tensor_cores"]
    assert tile["estimate"]["device"] == "A100 40GB"
    assert rows[2]["estimate"]["device"] == "H100 SXM5"
    assert all(row["faults"] == [] for row in rows)


def test_a_product_outside_the_tensor_cores_is_a_fault(binary: Binary) -> None:
    record = replace(_RECORDS[1], op="sq::shift_matmul", spec=replace(_DOTS, op=_TILE.op))
    rows = kernel_rows(binary, [record], {})
    assert rows[0]["faults"] == ["a product without an instruction of the tensor cores"]


def test_spills_are_a_fault(binary: Binary) -> None:
    log = binary.sources["sm_80/tile_product.log"]
    spilled = log.replace("0 bytes spill stores", "16 bytes spill stores")
    sources = binary.sources | {"sm_80/tile_product.log": spilled}
    rows = kernel_rows(replace(binary, sources=sources), _RECORDS[:1], {})
    assert rows[0]["faults"] == ["16 bytes of registers spilled in tile_product_kernel"]
    assert rows[1]["faults"] == []


def test_every_launch_of_a_kernel_has_a_row_of_its_own() -> None:
    vector = ((1000,), "float32")
    spec = _spec("sq::reversed", vector, vector)
    record = KernelRecord("reversed_blocks", "sq::reversed", spec, [])
    (row,) = kernel_rows(compiled(two_floats(), "sm_80"), [record], {})
    assert [one["shared"] for one in row["functions"]] == [0, 512]
    assert row["bytes"] == 4000 + 4000 + 2 * 4000


def test_bytes_are_those_of_all_tensors_once() -> None:
    assert bytes_moved(_TILE) == 3 * 16 * 32 + 3 * 8 * 32 + 4 * 3 * 16 * 8


def test_an_estimate_is_the_longer_of_moving_and_multiplying() -> None:
    slow = estimate(get("sm_80"), 1555 * 10**6, 10**6)
    assert slow["bound"] == "memory" and slow["us"] == pytest.approx(1000)
    dense = estimate(get("sm_80"), 10**3, 312 * 10**9)
    assert dense["bound"] == "compute" and dense["us"] == pytest.approx(1000)


def test_grouped_convolutions_are_not_for_tensor_cores() -> None:
    image = ((1, 8, 8, 16), "int8")
    assert needs_tensor_cores(_spec("sq::conv_fprop_dequantize", image, image, groups=1))
    assert not needs_tensor_cores(_spec("sq::conv_fprop_dequantize", image, image, groups=16))
    assert not needs_tensor_cores(_spec("sq::quantize", image, image))
