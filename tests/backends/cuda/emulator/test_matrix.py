"""mma.sync and ldmatrix against the tables of elements that the ISA gives for every shape."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator.faults import (
    Divergent,
    Misaligned,
    OutOfBounds,
    Race,
    Uninitialised,
)
from tests.backends.cuda.emulator.ptx import module, run

# Where element i of a lane's fragment is: (row, column) from g = lane / 4 and t = lane % 4.
TABLES = {
    "m8n8k16": {
        "bits": 8,
        "a": (4, lambda g, t, i: (g, 4 * t + i)),
        "b": (4, lambda g, t, i: (4 * t + i, g)),
        "c": (2, lambda g, t, i: (g, 2 * t + i)),
    },
    "m16n8k16": {
        "bits": 8,
        "a": (8, lambda g, t, i: (g if i < 4 else g + 8, 4 * t + i % 4)),
        "b": (4, lambda g, t, i: (4 * t + i, g)),
        "c": (4, lambda g, t, i: (g if i < 2 else g + 8, 2 * t + i % 2)),
    },
    "m16n8k32": {
        "bits": 8,
        "a": (
            16,
            lambda g, t, i: (
                g if i < 4 or 8 <= i < 12 else g + 8,
                4 * t + i % 4 + (16 if i >= 8 else 0),
            ),
        ),
        "b": (8, lambda g, t, i: (4 * t + i % 4 + (16 if i >= 4 else 0), g)),
        "c": (4, lambda g, t, i: (g if i < 2 else g + 8, 2 * t + i % 2)),
    },
    "m8n8k32": {
        "bits": 4,
        "a": (8, lambda g, t, i: (g, 8 * t + i)),
        "b": (8, lambda g, t, i: (8 * t + i, g)),
        "c": (2, lambda g, t, i: (g, 2 * t + i)),
    },
    "m16n8k64": {
        "bits": 4,
        "a": (
            32,
            lambda g, t, i: (
                g if i < 8 or 16 <= i < 24 else g + 8,
                8 * t + i % 8 + (32 if i >= 16 else 0),
            ),
        ),
        "b": (16, lambda g, t, i: (8 * t + i % 8 + (32 if i >= 8 else 0), g)),
        "c": (4, lambda g, t, i: (g if i < 2 else g + 8, 2 * t + i % 2)),
    },
}
TABLES["m16n8k32 of 4 bits"] = {
    "bits": 4,
    "a": (16, lambda g, t, i: (g if i < 8 else g + 8, 8 * t + i % 8)),
    "b": (8, lambda g, t, i: (8 * t + i, g)),
    "c": (4, lambda g, t, i: (g if i < 2 else g + 8, 2 * t + i % 2)),
}


def fragment(matrix, table, bits):
    """(lanes, registers) of a matrix, the first element lowest."""
    count, place = table
    per = 32 // bits
    registers = np.zeros((32, count // per), "u4")
    for lane in range(32):
        for i in range(count):
            value = int(matrix[place(lane // 4, lane % 4, i)]) & (1 << bits) - 1
            registers[lane, i // per] |= value << bits * (i % per)
    return registers


def listed(prefix, count):
    return "{" + ", ".join(f"%{prefix}{n}" for n in range(count)) + "}"


def multiply(opcode, a, b, c, after=""):
    """D, by fragments of (32, registers) in arrays."""
    counts = [x.shape[1] for x in (a, b, c)]
    body = "mov.u32 %r0, %tid.x; .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .b32 %c<4>;"
    for name, count in zip("abc", counts, strict=True):
        body += f"ld.param.u64 %d0, [{name}]; mad.wide.u32 %d0, %r0, {4 * count}, %d0;"
        body += "".join(f"ld.global.u32 %{name}{n}, [%d0+{4 * n}];" for n in range(count))
    sources = ", ".join(listed(name, count) for name, count in zip("abc", counts, strict=True))
    body += f"{after} {opcode} {listed('c', counts[2])}, {sources};"
    body += "ld.param.u64 %d0, [d]; mad.wide.u32 %d0, %r0, 16, %d0;"
    body += "".join(f"st.global.u32 [%d0+{4 * n}], %c{n};" for n in range(counts[2]))
    body += "skip: "
    out = np.zeros((32, 4), "i4")
    run(module("a b c d", body + "ret;"), 1, 32, *(x.copy() for x in (a, b, c)), out)
    return out[:, : counts[2]]


SIGNS = [("s", "s"), ("s", "u"), ("u", "s"), ("u", "u")]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("signs", SIGNS, ids=lambda pair: "".join(pair))
def test_products(name, signs):
    tables, shape = TABLES[name], name.split(" ")[0]
    m, n, k = (int(size) for size in shape[1:].replace("n", " ").replace("k", " ").split())
    bits = tables["bits"]
    rng = np.random.default_rng(k)
    ranges = {"s": (-(1 << bits - 1), 1 << bits - 1), "u": (0, 1 << bits)}
    a = rng.integers(*ranges[signs[0]], (m, k))
    b = rng.integers(*ranges[signs[1]], (k, n))
    a[0], b[:, 0] = ranges[signs[0]][0], ranges[signs[1]][0]
    a[1], b[:, 1] = ranges[signs[0]][1] - 1, ranges[signs[1]][1] - 1
    c = rng.integers(-(2**31), 2**31, (m, n))
    opcode = f"mma.sync.aligned.{shape}.row.col.s32.{signs[0]}{bits}.{signs[1]}{bits}.s32"
    out = multiply(
        opcode,
        fragment(a, tables["a"], bits),
        fragment(b, tables["b"], bits),
        fragment(c, tables["c"], 32),
    )
    wanted = (a @ b + c + 2**31) % 2**32 - 2**31  # sums wrap around
    assert np.array_equal(out.view("u4"), fragment(wanted, tables["c"], 32))


@pytest.mark.parametrize("leaves", ["@%p0 ret;", "@%p0 bra skip;", "@!%p0"])
def test_all_lanes_take_part(leaves):
    a = fragment(np.ones((8, 16), int), TABLES["m8n8k16"]["a"], 8)
    c = fragment(np.zeros((8, 8), int), TABLES["m8n8k16"]["c"], 32)
    opcode = "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32"
    out = multiply(opcode, a, a, c, f"setp.eq.u32 %p0, %r0, 32; {leaves}")
    assert out.tolist() == [[16, 16]] * 32
    with pytest.raises(Divergent, match="all 32 lanes"):
        multiply(opcode, a, a, c, f"setp.eq.u32 %p0, %r0, 3; {leaves}")


FILL = """
    .shared .align 16 .b8 tile[512]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile;
    ld.param.u64 %d0, [a]; mad.wide.u32 %d1, %r0, 16, %d0; shl.b32 %r2, %r0, 4;
    add.u32 %r3, %r1, %r2; {keep} ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d1];
    {keep} st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}}; {sync}
"""


def load(count, trans="", address="%r3", sync="bar.warp.sync -1;", keep="", tile=None):
    """(lanes, count) registers; row r of matrix i is 16 bytes at address of lane 8 * i + r."""
    registers = listed("r1", count) if count > 1 else "%r10"
    body = FILL.format(sync=sync, keep=keep)
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [{address}];"
    body += "ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r0, 16, %d2;"
    body += "".join(f"st.global.u32 [%d2+{4 * n}], %r1{n};" for n in range(count))
    out = np.zeros((32, 4), "u4")
    tile = np.arange(4 * 8 * 8, dtype="u2") if tile is None else tile
    run(module("a out", body + "ret;"), 1, 32, tile, out)
    return out[:, :count]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_from_shared_memory(count, trans):
    tile = np.random.default_rng(count).integers(0, 2**16, (4, 8, 8)).astype("u2")
    got = load(count, trans, tile=tile)
    for i in range(count):
        matrix = tile[i].T if trans else tile[i]
        for lane in range(32):
            low, high = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert got[lane, i] == int(low) | int(high) << 16


def test_addresses_of_lanes_that_give_no_row_do_not_matter():
    wild = "setp.ge.u32 %p0, %r0, 8; @%p0 mov.u32 %r3, 77;"
    assert load(1, sync="bar.warp.sync -1;" + wild)[0, 0] == 1 << 16


SWAPPED = "xor.b32 %r3, %r3, 16;"
"""A row that another lane has written."""
SYNC = "bar.warp.sync -1;"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sync": SYNC + SWAPPED}, None),
        ({"sync": SWAPPED}, Race),
        ({"sync": SYNC + "add.u32 %r3, %r3, 8;"}, Misaligned),
        ({"sync": SYNC + "add.u32 %r3, %r3, 256;"}, OutOfBounds),
        ({"keep": "setp.ne.u32 %p1, %r0, 9; @%p1"}, Uninitialised),
    ],
)
def test_rows_are_checked(change, error):
    if error is None:
        load(4, **change)
        return
    with pytest.raises(error):
        load(4, **change)
