"""tools/cuda_table.py: its rows and its page; and that the page is what it writes."""

from pathlib import Path

import click
import cuda_table
import pytest

from sqcompile.backends import targets
from sqcompile.backends.cuda.report import kernel_rows
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.lower import KernelRecord
from tests.backends.cuda.modules import compiled, products

pytest.importorskip("cuda.bindings")
_PAGE = Path(__file__).parents[2] / "docs/cuda.md"


def _record(name: str, op: str, *shapes: tuple[int, ...]) -> KernelRecord:
    *inputs, output = (TensorSpec(shape, "int8") for shape in shapes)
    named = tuple((f"x{place}", one) for place, one in enumerate(inputs))
    return KernelRecord(name, op, KernelSpec(op, named, (("groups", 3),), (output,)), [])


def _kernels() -> cuda_table.Products:
    """A product by a matrix instruction and one by dp4a."""
    op = "sq::shift_matmul"
    records = [
        _record("tile_product", op, (3, 16, 32), (3, 8, 32), (3, 16, 8)),
        _record("dot_products", op, (24, 64), (24, 64), (24, 24)),
    ]
    rows = kernel_rows(compiled(products(), "sm_80,sm_90"), records, {})
    return [(one, [row for row in rows if row["kernel"] == one.name]) for one in records]


def test_a_row_is_a_product_on_every_architecture() -> None:
    kernels = _kernels()
    head, _, row, *rest = cuda_table.table({"net": kernels}).splitlines()
    assert head.endswith("| sm_80 | sm_90 |")
    assert row.startswith("| net | `shift_matmul` | 3x16x32, 3x8x32 | 3 | 0 | ")
    assert row.count("1 IMMA") == 2
    assert rest[-1] == "Bytes of registers that spill in any launch of these kernels: 0."
    assert rest[0].count("IDP") == 2


def test_a_product_without_tensor_cores_is_told() -> None:
    text = "dot_products: a product without an instruction of the tensor cores"
    assert cuda_table.faults(_kernels()) == [f"sm_80 {text}", f"sm_90 {text}"]


def test_the_table_stands_between_its_marks() -> None:
    page = f"before\n{cuda_table.BEGIN}\nold\n{cuda_table.END}\nafter\n"
    text = cuda_table.written(page, "new")
    assert text == f"before\n{cuda_table.BEGIN}\n\nnew\n\n{cuda_table.END}\nafter\n"
    assert cuda_table.written(text, "new") == text
    with pytest.raises(click.UsageError, match="no place for the table"):
        cuda_table.written("a page", "new")


@pytest.mark.exhaustive
def test_the_page_has_the_table_of_whole_steps_and_nothing_spills() -> None:
    target = targets.get("cuda")
    found = {name: cuda_table.step_rows(name, target) for name in ("resnet20", "gpt")}
    assert [line for kernels in found.values() for line in cuda_table.faults(kernels)] == []
    page = _PAGE.read_text()
    assert cuda_table.written(page, cuda_table.table(found)) == page
