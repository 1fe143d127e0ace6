"""A product that measures its own result: the program before and the program after."""

from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.expose_absmax import expose_absmax
from sqcompile.passes.fuse_epilogues import fuse_epilogues
from tests.passes.programs import graph, same

OPERANDS = (Operand("activation", 4, False), Operand("weight", 4, True, (0,)))
FPROP = {"sq": ProductSpec("fc", "fprop", OPERANDS, 1, True, 0)}
INPUTS = "a: u8[4, 8], b: i8[6, 8], s: f32[1, 6]"


def before(axes: list[int]):
    return graph(
        f"{INPUTS} -> q, r",
        f"""
        acc = sq.shift_matmul(a, b, None, 1, False, True, 0)
        d = sq.dequantize(acc, [s], None)
        y = aten.relu(d)
        r = sq.absmax(y, None, {axes})
        q = sq.quantize(y, r, 4, False)
        """,
        acc=FPROP,
    )


AFTER = (
    f"{INPUTS} -> q, r",
    """
    both = sq.shift_matmul_dequantize_absmax(a, b, None, 1, False, True, 0, [s], None, True)
    y = both[0]
    r = both[1]
    q = sq.quantize(y, r, 4, False)
    """,
)


def test_a_product_measured_whole_measures_itself():
    assert same(fuse_epilogues(before([0, 1])), graph(*AFTER))


def test_an_absmax_of_every_row_stays():
    rows = graph(
        f"{INPUTS} -> q, r",
        """
        y = sq.shift_matmul_dequantize(a, b, None, 1, False, True, 0, [s], None, True)
        r = sq.absmax(y, None, [1])
        q = sq.quantize(y, r, 4, False)
        """,
    )
    assert same(fuse_epilogues(before([1])), rows)


def test_what_a_product_measures_can_still_be_exposed():
    exposed, described = expose_absmax(graph(*AFTER))
    assert len(described) == 1
    q, r, again = exposed.graph.output_node().args[0]
    assert r is again
