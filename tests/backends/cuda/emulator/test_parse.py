"""What of PTX's form is understood, and that nothing else is let through."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator import PtxError, emulate
from sqcompile.backends.cuda.emulator.parse import parse
from sqcompile.backends.cuda.emulator.program import Float, Instruction, Label, Pair, Symbol, Vector
from tests.backends.cuda.emulator.ptx import module, run


def body_of(text):
    return parse(module("a", text)).kernels["k"].body


def test_operands():
    (one,) = body_of("@!%p1 shfl.sync.down.b32 %r1|%p2, %r3, -4, 0x1fU, %r5;")
    assert one.guard.operand.name == "v_p1"
    assert isinstance(one.operands[0], Pair) and one.operands[0].second.type == "pred"
    assert [operand.value for operand in one.operands[2:4]] == [-4, 31]
    assert one.line == 14
    (one,) = body_of("ld.shared.v2.f32 {%f1, _}, [name+-8];")
    assert isinstance(one.operands[0], Vector)
    assert one.operands[1].base == Symbol("name", 0 - 8) or one.operands[1].offset == -8
    (one,) = body_of("mov.f32 %f1, 0f3F800000;")
    assert one.operands[1] == Float(0x3F800000, 4)


def test_comments_directives_and_labels():
    body = body_of("""
    .loc 1 20 3
    .pragma "nounroll";
    // a comment; with a semicolon
    $L__BB0_1: /* another
    one */ add.u32 %r1, %r1, 1;
    """)
    assert [type(one) for one in body] == [Label, Instruction]
    assert body[1].line == 19


def test_inner_scopes_have_names_of_their_own():
    """Inline assembly declares registers and labels in braces, twice the same ones."""
    out = np.zeros(2, "u4")
    inner = "{ .reg .pred p; .reg .u32 x; mov.u32 x, %s; setp.eq.u32 p, x, 1; @p bra DONE;"
    inner += "add.u32 %%r1, %%r1, x; DONE: add.u32 %%r1, %%r1, 100; }"
    text = "mov.u32 %r1, 0; mov.u32 %r2, 7;" + inner % 1 + inner % 2 + "ld.param.u64 %d0, [a];"
    run(module("a", text + "st.global.v2.u32 [%d0], {%r1, %r2}; ret;"), 1, 1, out)
    assert out.tolist() == [202, 7]


def test_module_level():
    program = parse("""
    .version 9.0
    .target sm_90a, texmode_independent
    .address_size 64
    .extern .func (.param .b32 result) vprintf (.param .b64 a, .param .b64 b);
    .visible .const .align 8 .b8 table[2][4] = {{1, 2, 3, 4}, {0xFF, 6}};
    .global .align 4 .f32 one = 0f3F800000;
    .weak .shared .align 16 .b8 pool[32];
    .entry empty()
    .maxntid 128, 1, 1
    .minnctapersm 2
    { ret; }
    .visible .entry two(.param .u64 .ptr .global .align 16 a, .param .align 4 .b8 b[12]) { ret; }
    """)
    assert program.target == "sm_90a"
    assert set(program.kernels) == {"empty", "two"}
    assert program.kernels["empty"].max_threads == 128
    assert [(v.name, v.size, v.align) for v in program.kernels["two"].parameters] == [
        ("a", 8, 8),
        ("b", 12, 4),
    ]
    table, one, pool = program.variables
    assert table.content == bytes([1, 2, 3, 4, 255, 6, 0, 0])
    assert one.content == b"\0\0\x80\x3f"
    assert (pool.space, pool.size, pool.align) == ("shared", 32, 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".version 9.0\n.target sm_80\n.address_size 32", "only .address_size 64"),
        (".texref name;", "'.texref' at module level"),
        (module("a", ".reg .b128 %q;"), r"line 14: registers of type .b128"),
        (module("a", "bra nowhere"), "; is expected"),
        (module("a", "add.u32 %r1, 1, ];"), "line 14: an operand is expected"),
        (module("a", "mov.u32 %r1, \x01;"), "line 14: this is no PTX"),
        (module("a", "add.u32 %r1"), "; is expected"),
        (module("a", ".noreturn;"), ".noreturn in a kernel"),
    ],
)
def test_errors_name_their_line(text, words):
    with pytest.raises(PtxError, match=words):
        parse(text)


def test_all_unsupported_instructions_are_told_at_once():
    text = module(
        "a",
        """
    add.u32 %r1, %r1, 1;
    tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [name, {%f1, %f2}];
    ex2.approx.f32 %f1, %f2;
    @%q1 mov.u32 %r1, %clock;
    add.u32.wrong %r1, %r1, 1;
    ret;""",
    )
    with pytest.raises(PtxError) as caught:
        emulate(text)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["line 16", "line 17", "line 18", "line 19"]
    assert "no specified bits" in lines[1]
    assert "%q1, %clock: not declared" in lines[2]
    assert "no such instruction" in lines[3]


@pytest.mark.parametrize(
    "instruction",
    [
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %d2, %r3;",
        "add.u64 %d1, %r2, %d3;",
        "add.f32 %f1, %f2, 1;",
        "add.u32 %r1, %r2, 0f3F800000000;",
        "add.u32 %p1, %r2, %r3;",
        "setp.lt.u32 %r1, %r2, %r3;",
        "selp.u32 %r1, %r2, %r3, %r4;",
        "setp.lo.s32 %p1, %r2, %r3;",
        "setp.lt.b32 %p1, %r2, %r3;",
        "st.const.u32 [%d1], %r1;",
        "ld.global.v2.u32 {%r1, %r2, %r3}, [%d1];",
        "ld.global.u32 %r1, [%h1];",
        "ld.global.u32 %r1, %d1;",
        "ld.global.acquire.gpu.u32 %r1, [%d1];",
        "ld.shared.u32 %r1, [absent];",
        "lop3.b32 %r1, %r2, %r3, %r4, 256;",
        "lop3.b32 %r1, %r2, %r3, %r4, %r5;",
        "cp.async.cg.shared.global [%r1], [%d1], 8;",
        "cp.async.wait_group %r1;",
        "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%r1,%r2,%r3,%r4}, "
        "{%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2,%r3,%r4};",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2}, "
        "{%r1,%r2,%r3,%r4};",
        "atom.global.add.s64 %d1, [%d2], %d3;",
        "bar.arrive 0, 64;",
        "div.approx.f32 %f1, %f2, %f3;",
        "call.uni (%r1), name, (%r2);",
    ],
)
def test_what_does_not_fit_its_instruction(instruction):
    with pytest.raises(PtxError, match="line 14"):
        emulate(module("a", instruction))


def test_operations_that_an_assembler_may_fuse():
    text = module("a", "mul.f32 %f1, %f2, %f3; add.rn.f32 %f1, %f1, %f3; add.f32 %f2, %f1, %f1;")
    assert emulate(text).contractible == [
        "line 14: mul.f32 %f1, %f2, %f3",
        "line 14: add.f32 %f2, %f1, %f1",
    ]
