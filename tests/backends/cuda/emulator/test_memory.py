"""State spaces, widths, bounds, alignment, and memory that the host makes."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator import LaunchError, Memory, emulate
from sqcompile.backends.cuda.emulator.faults import Misaligned, OutOfBounds, Uninitialised
from tests.backends.cuda.emulator.ptx import module, run

WIDTHS = {"u8": "i1", "u16": "i2", "u32": "i4", "u64": "i8"}


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32", "b64"])
def test_loads_extend_to_the_register(kind):
    """By the type's sign, into a register that is wider."""
    bits, signed = int(kind[1:]), kind[0] == "s"
    source = np.array([1, 0x7F, 0x80, 0xFF, 0x8000, 0xFFFF, 0x80000000, 2**64 - 1], "u8")
    values = source.astype(f"{'i' if signed else 'u'}{bits // 8}")
    out = np.zeros(8, "u8")
    body = f"""
    mov.u32 %r0, %tid.x; ld.param.u64 %d0, [a]; ld.param.u64 %d1, [out];
    mad.wide.u32 %d0, %r0, {bits // 8}, %d0; mad.wide.u32 %d1, %r0, 8, %d1;
    ld.global.{kind} %d2, [%d0]; st.global.u64 [%d1], %d2; ret;"""
    run(module("a out", body), 1, 8, values, out)
    assert np.array_equal(out, values.astype("i8" if signed else "u8").view("u8"))


def test_stores_take_the_low_bits():
    out = np.zeros(16, "u1")
    body = """
    ld.param.u64 %d0, [out]; mov.b64 %d1, 0x1122334455667788;
    st.global.u8 [%d0], %d1; st.global.u16 [%d0+2], %d1; st.global.u32 [%d0+4], %d1;
    st.global.b64 [%d0+8], %d1; ret;"""
    run(module("out", body), 1, 1, out)
    assert bytes(out).hex() == "88008877887766558877665544332211"


def test_vectors():
    a, out = np.arange(8, dtype="u4"), np.zeros(8, "u4")
    body = """
    ld.param.u64 %d0, [a]; ld.param.u64 %d1, [out];
    ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}, [%d0]; ld.global.v2.b32 {%r4, %r5}, [%d0+16];
    st.global.v4.u32 [%d1], {%r3, %r2, %r1, %r0}; st.global.v2.u32 [%d1+24], {%r5, %r4}; ret;"""
    run(module("a out", body), 1, 1, a, out)
    assert out.tolist() == [3, 2, 1, 0, 0, 0, 5, 4]


SPACES = """
    .shared .align 8 .b8 there[16]; .local .align 8 .b8 here[16];
    ld.param.u64 %d0, [out];
    mov.u32 %r0, there; st.shared.u32 [%r0+4], 11; st.shared.u32 [there], 10;
    mov.u64 %d1, here; cvta.local.u64 %d2, %d1; st.local.u32 [%d1], 20; st.u32 [%d2+8], 21;
    cvt.u64.u32 %d3, %r0; cvta.shared.u64 %d3, %d3; ld.u32 %r1, [%d3+4];
    cvta.to.shared.u64 %d4, %d3; ld.shared.u32 %r2, [%d4];
    ld.local.u32 %r3, [here+8]; ld.u32 %r4, [%d2];
    mov.u64 %d5, table; ld.const.u32 %r5, [table+4]; cvta.const.u64 %d5, %d5; ld.u32 %r6, [%d5+8];
    ld.global.u32 %r7, [counter]; add.u32 %r7, %r7, 1; st.global.u32 [counter], %r7;
    isspacep.shared %p0, %d3; isspacep.local %p1, %d2; isspacep.global %p2, %d0;
    isspacep.global %p3, %d3; selp.u32 %r8, 1, 0, %p0; selp.u32 %r9, 1, 0, %p1;
    selp.u32 %r10, 1, 0, %p2; selp.u32 %r11, 1, 0, %p3;
    st.global.v4.u32 [%d0], {%r1, %r2, %r3, %r4}; st.global.v4.u32 [%d0+16], {%r5, %r6, %r7, %r8};
    st.global.v2.u32 [%d0+32], {%r9, %r10}; st.global.u32 [%d0+40], %r11; ret;"""


def test_every_state_space_and_generic_addresses():
    out = np.zeros(12, "u4")
    before = """.const .align 4 .u32 table[3] = {7, 8, 9};
    .visible .global .align 4 .u32 counter = 40;"""
    text = emulate(module("out", SPACES, before))
    text.launch("k", 1, 1, [out])
    assert out.tolist() == [11, 10, 21, 20, 8, 9, 41, 1, 1, 1, 0, 0]
    text.launch("k", 1, 1, [out])
    assert out[6] == 42, "variables of the module live on"


def test_pointers_between_variables():
    out = np.zeros(1, "u4")
    before = """.global .align 4 .u32 target[2] = {5, 6};
    .global .align 8 .u64 pointer = generic(target)+4;"""
    body = "ld.param.u64 %d0, [out]; ld.global.u64 %d1, [pointer]; ld.u32 %r0, [%d1];"
    run(module("out", body + "st.global.u32 [%d0], %r0; ret;", before), 1, 1, out)
    assert out[0] == 6


def test_parameters_of_every_kind():
    out = np.zeros(6, "f8")
    parameters = "out .s32~whole .f32~single .f64~double .u8~small .align~4~.b8~many[8]"
    body = """
    ld.param.u64 %d0, [out]; ld.param.s32 %r0, [whole]; ld.param.f32 %f0, [single];
    ld.param.f64 %g0, [double]; ld.param.u8 %r1, [small]; ld.param.b32 %r2, [many+4];
    cvt.rn.f64.s32 %g1, %r0; cvt.f64.f32 %g2, %f0; cvt.rn.f64.u32 %g3, %r1; cvt.rn.f64.s32 %g4, %r2;
    st.global.f64 [%d0], %g1; st.global.f64 [%d0+8], %g2; st.global.f64 [%d0+16], %g0;
    st.global.f64 [%d0+24], %g3; st.global.f64 [%d0+32], %g4; ret;"""
    many = np.array([1, -2], "i4").tobytes()
    run(module(parameters, body), 1, 1, out, -5, 0.5, 1 / 3, 200, many)
    assert out.tolist() == [-5.0, 0.5, 1 / 3, 200.0, -2.0, 0.0]


def copy_body(kind, offset=0, size=4, space="global"):
    return f"""
    ld.param.u64 %d0, [a]; mov.u32 %r0, %tid.x; mad.wide.u32 %d1, %r0, {size}, %d0;
    ld.{space}.{kind} %d2, [%d1+{offset}]; ret;"""


@pytest.mark.parametrize("offset", [0, 1])
def test_bounds_to_the_byte(offset):
    """The last byte of an array may be read, the one after it may not, however near others are."""
    a = np.zeros(64 + 7, "u1")[:67]
    text = module("a", copy_body("u8", offset, 1))
    if not offset:
        run(text, 1, 67, a)
        return
    with pytest.raises(OutOfBounds, match=r"byte 67 of argument 0, which has 67 bytes") as caught:
        run(text, 1, 67, a)
    assert caught.value.thread == (66, 0, 0)
    assert caught.value.kernel == "k"
    assert "ld.global.u8" in caught.value.source


def test_an_access_that_begins_inside_and_ends_outside():
    a = np.zeros(6, "u1")
    with pytest.raises(OutOfBounds, match="byte 4 of argument 0"):
        run(module("a", copy_body("u32", 4)), 1, 1, a)


@pytest.mark.parametrize(
    ("address", "words"),
    [("0", "in no allocation"), ("[a]-4", "4 bytes before argument 0"), ("77777777", "in no")],
)
def test_wild_pointers(address, words):
    body = f"ld.param.u64 %d0, [a]; mov.u64 %d0, {address}; ld.global.u32 %r0, [%d0]; ret;"
    if "[a]" in address:
        body = "ld.param.u64 %d0, [a]; ld.global.u32 %r0, [%d0+-4]; ret;"
    for checks in (True, False):
        with pytest.raises(OutOfBounds, match=words):
            run(module("a", body), 1, 1, np.zeros(4, "u4"), checks=checks)


@pytest.mark.parametrize(
    ("kind", "register"), [("u16", "%h0"), ("u32", "%r0"), ("u64", "%d1"), ("v2.u32", "{%r0, %r1}")]
)
def test_alignment(kind, register):
    size = int(kind[-2:]) // 8 * (2 if kind[0] == "v" else 1)
    body = f"ld.param.u64 %d0, [a]; ld.global.{kind} {register}, [%d0+%s]; ret;"
    run(module("a", body.replace("%s", str(size))), 1, 1, np.zeros(32, "u1"))
    with pytest.raises(Misaligned, match=f"no multiple of {size}"):
        run(module("a", body.replace("%s", str(size // 2))), 1, 1, np.zeros(32, "u1"))


def test_constants_are_not_written():
    body = "mov.u64 %d0, table; st.global.u32 [%d0], 1; ret;"
    with pytest.raises(OutOfBounds, match="constant"):
        run(module("a", body, ".const .align 4 .u32 table[3] = {7, 8, 9};"), 1, 1, np.zeros(1))


@pytest.mark.parametrize("space", ["shared", "local"])
@pytest.mark.parametrize(("offset", "error"), [(12, None), (16, OutOfBounds), (-4, OutOfBounds)])
def test_bounds_of_small_memories(space, offset, error):
    body = f"""
    .{space} .align 4 .b8 array[16]; mov.u32 %r0, array; add.u32 %r0, %r0, {offset};
    st.{space}.u32 [%r0], 1; ld.{space}.u32 %r1, [%r0]; ret;"""
    if error is None:
        run(module("a", body), 1, 1, np.zeros(1))
        return
    with pytest.raises(error, match=f"byte {offset % 2**32} of {space} memory"):
        run(module("a", body), 1, 1, np.zeros(1))


def test_dynamic_shared_memory():
    before = ".extern .shared .align 16 .b8 pool[];"
    body = """
    .shared .align 4 .b8 first[4]; mov.u32 %r0, pool; mov.u32 %r3, first;
    mov.u32 %r1, %dynamic_smem_size; add.u32 %r2, %r0, %r1; st.shared.u32 [%r0+60], 3;
    ld.shared.u32 %r5, [%r2+-4]; st.shared.u32 [first], %r5;
    ld.param.u64 %d0, [a]; st.global.v2.u32 [%d0], {%r0, %r1}; ret;"""
    out = np.zeros(2, "u4")
    text = module("a", body, before)
    run(text, 1, 1, out, shared=64)
    assert out.tolist() == [16, 64]
    with pytest.raises(OutOfBounds):
        run(text, 1, 1, out, shared=60)


def test_unwritten_memory():
    """alloc gives memory without values; the host or a kernel gives it some."""
    memory = Memory()
    text = emulate(module("a", copy_body("u32")), memory)
    a = memory.alloc(16, "activations")
    memory.write(a, np.arange(3, dtype="u4"))
    text.launch("k", 1, 3, [a])
    with pytest.raises(Uninitialised, match="byte 12 of activations"):
        text.launch("k", 1, 4, [a])
    text.launch("k", 1, 4, [a], checks=False)
    load, store = "ld.global.u32 %d2, [%d1+0]", "st.global.u32 [%d1], %r0"
    fill = emulate(module("a", copy_body("u32").replace(load, store)), memory)
    fill.launch("k", 1, 4, [a])
    text.launch("k", 1, 4, [a])
    assert np.frombuffer(memory.read(a, 16), "u4").tolist() == [0, 1, 2, 3]


def test_memory_from_the_host():
    memory = Memory()
    a, b = memory.alloc(8), memory.alloc(8)
    assert a % 256 == 0 and b % 256 == 0 and abs(a - b) >= 2**32
    memory.fill(a, 0x5A, 8)
    memory.copy(b + 2, a, 4)
    assert memory.read(b, 8) == b"\0\0ZZZZ\0\0"
    text = emulate(module("a", copy_body("u32", 4)), memory)
    with pytest.raises(Uninitialised):
        text.launch("k", 1, 1, [b])
    with pytest.raises(LaunchError, match="byte 4 of 8 bytes"):
        memory.read(a + 4, 5)
    memory.free(a)
    with pytest.raises(LaunchError, match="freed"):
        memory.write(a, b"1")
    with pytest.raises(OutOfBounds, match="freed"):
        text.launch("k", 1, 1, [a])
    for address in (a, b + 1, 0):
        with pytest.raises(LaunchError, match="not the address of an allocation"):
            memory.free(address)


def test_many_allocations():
    """More than the table has rows at first; an address is used again after a thousand others."""
    memory = Memory()
    addresses = [memory.alloc(4) for _ in range(200)]
    for number, address in enumerate(addresses):
        memory.write(address, np.uint32([number]))
    text = emulate(module("a", copy_body("u32")), memory)
    for address in addresses:
        text.launch("k", 1, 1, [address])
    assert [memory.read(address, 1)[0] for address in addresses] == [*range(200)]
    memory.free(addresses[0])
    later = []
    while addresses[0] not in later:
        later.append(memory.alloc(4))
        memory.free(later[-1])
    assert len(later) > 1000
    assert len(set(later[:-1])) == len(later) - 1


def test_atomics():
    """Every thread changes one place; results do not depend on the order."""
    body = """
    ld.param.u64 %d0, [a]; mov.u32 %r0, %tid.x; cvt.u64.u32 %d1, %r0; cvt.rn.f32.u32 %f0, %r0;
    red.global.add.u32 [%d0], %r0; atom.global.add.u64 %d2, [%d0+8], %d1;
    atom.global.add.f32 %f1, [%d0+16], %f0; red.global.max.s32 [%d0+20], %r0;
    sub.s32 %r1, 0, %r0; red.global.min.s32 [%d0+24], %r1;
    red.relaxed.gpu.global.or.b32 [%d0+28], %r0;
    atom.global.xor.b32 %r2, [%d0+32], %r0; red.and.b32 [%d0+36], %r0;
    atom.global.inc.u32 %r3, [%d0+40], 9; atom.global.dec.u32 %r3, [%d0+44], 9;
    atom.global.exch.b32 %r4, [%d0+48], 77; atom.global.cas.b32 %r5, [%d0+52], 0, 5;
    atom.global.min.u64 %d3, [%d0+56], %d1; atom.global.add.u32 %r6, [%d0+64], 1;
    mad.wide.u32 %d4, %r6, 4, %d0; st.global.u32 [%d4+68], %r0; ret;"""
    out = np.zeros(17 + 64, "u4")
    out[9], out[14:16] = 2**32 - 1, 2**32 - 1
    run(module("a", body), 2, 32, out)
    total = 2 * 31 * 32 // 2
    assert out[0] == total and out[2:4].view("u8")[0] == total and out[4:5].view("f4")[0] == total
    assert out[5:7].view("i4").tolist() == [31, -31]
    assert out[7:10].tolist() == [31, 0, 0]
    assert out[10] == 64 % 10
    assert out[11] == (0 - 64) % 10
    assert out[12:14].tolist() == [77, 5]
    assert out[14:16].view("u8")[0] == 0
    assert out[16] == 64
    assert sorted(out[17:].tolist()) == sorted([*range(32)] * 2), "each got a number of its own"


def test_float_atomics_flush_in_global_memory_alone():
    body = """
    .shared .align 4 .b8 one[4]; st.shared.u32 [one], 1; atom.shared.add.f32 %f0, [one], 0f00000001;
    ld.shared.u32 %r0, [one]; ld.param.u64 %d0, [a]; red.global.add.f32 [%d0], 0f00000001;
    st.global.u32 [%d0+4], %r0; ret;"""
    out = np.array([1, 0], "u4")
    run(module("a", body), 1, 1, out)
    assert out.tolist() == [0, 2]
