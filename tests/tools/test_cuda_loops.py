"""tools/cuda_loops.py: its cells; and that the page is what it writes."""

from collections import Counter
from pathlib import Path

import cuda_loops
import cuda_table
import pytest

from sqcompile.backends import targets

pytest.importorskip("cuda.bindings")
_PAGE = Path(__file__).parents[2] / "docs/kernels-cuda.md"


def test_a_cell_counts_all_instructions_and_names_some() -> None:
    loop = Counter(
        {"IMMA.16832.S8.U8": 16, "LDSM.16.M88.4": 8, "LDG.E": 3, "LDG.E.64": 1, "BRA": 1}
    )
    assert cuda_loops.cell(loop, 1) == "29: 16 IMMA, 8 LDSM, 4 LDG, 0 STS, 0 PRMT"
    assert cuda_loops.cell(loop, 2) == "58: 32 IMMA, 16 LDSM, 8 LDG, 0 STS, 0 PRMT"


@pytest.mark.exhaustive
def test_the_page_has_the_loops_of_a_step() -> None:
    text = cuda_loops.table(
        cuda_loops.weight_gradients("resnet20", targets.get("cuda")), ["sm_75", "sm_80"]
    )
    assert text.count("\n") > 2
    page = _PAGE.read_text()
    assert cuda_table.written(page, text, cuda_loops.BEGIN) == page
