"""What lanes of a warp do together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqcompile.backends.cuda.emulator import emulate
from sqcompile.backends.cuda.emulator.faults import Deadlock, Divergent, Undefined
from tests.backends.cuda.emulator.ptx import module, run

LANES = np.arange(32)
START = """
    mov.u32 %r0, %tid.x; ld.param.u64 %d0, [out]; mad.wide.u32 %d1, %r0, 4, %d0;
    mul.lo.u32 %r1, %r0, 3; add.u32 %r1, %r1, 100; and.b32 %r2, %r0, 1; setp.ne.u32 %p0, %r2, 0;
"""


def lanes(body, block=32):
    """The %r9 that each lane leaves. %r1 = 100 + 3 * lane; %p0: the lane is odd."""
    out = np.zeros(block, "u4")
    run(module("out", START + body + "st.global.u32 [%d1], %r9; ret;"), 1, block, out)
    return out.tolist()


def source_lane(mode, lane, b, c):
    """The ISA's definition: (lane to read, in range)."""
    b, clamp, mask = b & 31, c & 31, c >> 8 & 31
    last = (lane & mask) | (clamp & ~mask)
    first = lane & mask
    j, fits = {
        "up": (lane - b, lane - b >= last),
        "down": (lane + b, lane + b <= last),
        "bfly": (lane ^ b, (lane ^ b) <= last),
        "idx": (first | (b & ~mask), (first | (b & ~mask)) <= last),
    }[mode]
    return (j if fits else lane), fits


MODES = ["up", "down", "bfly", "idx"]


@pytest.fixture(scope="module")
def shuffles():
    """All modes in one kernel: b and c of each lane are inputs."""
    body = START + "ld.param.u64 %d2, [b]; mad.wide.u32 %d2, %r0, 8, %d2;"
    body += "ld.global.v2.u32 {%r3, %r4}, [%d2];"
    for n, mode in enumerate(MODES):
        body += f"shfl.sync.{mode}.b32 %r9|%p1, %r1, %r3, %r4, -1; selp.b32 %r10, 1, 0, %p1;"
        body += f"st.global.u32 [%d1+{256 * n}], %r9; st.global.u32 [%d1+{256 * n + 128}], %r10;"
    return emulate(module("out b", body + "ret;"))


@given(
    offsets=st.lists(st.integers(0, 63), min_size=32, max_size=32),
    widths=st.sampled_from([0, 16, 24, 28, 30, 31]),
    clamp=st.sampled_from([0, 31, 15, 7, 30]),
    alike=st.booleans(),
)
@settings(max_examples=60)
def test_shuffles(shuffles, offsets, widths, clamp, alike):
    offsets = [offsets[0]] * 32 if alike else offsets
    c = widths << 8 | clamp
    out = np.zeros((4, 2, 32), "u4")
    shuffles.launch("k", 1, 32, [out, np.array([[b, c] for b in offsets], "u4")])
    for n, mode in enumerate(MODES):
        wanted = [source_lane(mode, lane, offsets[lane], c) for lane in range(32)]
        assert out[n, 0].tolist() == [100 + 3 * lane for lane, _ in wanted], mode
        assert out[n, 1].tolist() == [int(fits) for _, fits in wanted], mode


def test_a_tree_of_shuffles_sums_a_warp():
    body = "mov.u32 %r9, %r1;" + "".join(
        f"shfl.sync.bfly.b32 %r3, %r9, {1 << n}, 31, -1; add.u32 %r9, %r9, %r3;" for n in range(5)
    )
    assert lanes(body, 64)[:32] == [sum(100 + 3 * lane for lane in range(32))] * 32


def test_votes():
    assert lanes("vote.sync.ballot.b32 %r9, %p0, -1;") == [0xAAAAAAAA] * 32
    for mode, negated, mask, wanted in [
        ("all", "", -1, 0),
        ("any", "", -1, 1),
        ("uni", "", -1, 0),
        ("all", "!", 0x55555555, 1),
        ("any", "", 0x55555555, 0),
        ("uni", "", 0x55555555, 1),
        ("all", "", 0xAAAAAAAA, 1),
    ]:
        guard = {-1: "", 0x55555555: "@!%p0", 0xAAAAAAAA: "@%p0"}[mask]
        body = f"""mov.u32 %r9, 9; setp.eq.u32 %p1, 1, 2;
        {guard} vote.sync.{mode}.pred %p1, {negated}%p0, {mask}; {guard} selp.b32 %r9, 1, 0, %p1;"""
        takes_part = [mask >> lane & 1 for lane in range(32)]
        assert lanes(body) == [wanted if part else 9 for part in takes_part], (mode, mask)


def test_matches():
    values = "and.b32 %r3, %r0, 5; cvt.u64.u32 %d4, %r3; shl.b64 %d4, %d4, 33;"
    same = [sum(1 << j for j in range(32) if j & 5 == lane & 5) for lane in range(32)]
    assert lanes(f"{values} match.any.sync.b32 %r9, %r3, -1;") == same
    assert lanes(f"{values} match.any.sync.b64 %r9, %d4, -1;") == same
    everything = "match.all.sync.b32 %r9|%p3, {}, -1; @%p3 add.u32 %r9, %r9, 1;"
    assert lanes(everything.format("7")) == [0] * 32
    assert lanes(everything.format("%r0")) == [0] * 32
    assert lanes("match.all.sync.b32 %r9, 7, -1;") == [0xFFFFFFFF] * 32


def test_reductions():
    start = "sub.u32 %r3, %r0, 7;"
    values = (LANES - 7).tolist()
    unsigned = [value % 2**32 for value in values]
    for operation, wanted in {
        "add.s32": sum(values),
        "add.u32": sum(values),
        "min.s32": min(values),
        "max.s32": max(values),
        "min.u32": min(unsigned),
        "max.u32": max(unsigned),
        "and.b32": np.bitwise_and.reduce(values),
        "or.b32": np.bitwise_or.reduce(values),
        "xor.b32": np.bitwise_xor.reduce(values),
    }.items():
        got = lanes(f"{start} redux.sync.{operation} %r9, %r3, -1;")
        assert got == [int(wanted) % 2**32] * 32, operation


def test_parts_of_a_warp_work_apart():
    """Both sides of a branch, each with its own mask."""
    body = """
    @%p0 bra odd;
    redux.sync.add.u32 %r9, %r0, 0x55555555; bra end;
    odd: redux.sync.add.u32 %r9, %r0, 0xaaaaaaaa;
    end: """
    assert lanes(body) == [240, 256] * 16


def test_one_instruction_at_two_places():
    """.sync meets by what is done and the mask, not by the place."""
    body = """
    @%p0 bra odd;
    redux.sync.add.u32 %r9, %r0, -1; bra end;
    odd: redux.sync.add.u32 %r9, %r0, -1;
    end: """
    assert lanes(body) == [496] * 32


def test_exited_lanes_are_not_waited_for():
    body = "setp.ge.u32 %p1, %r0, 20; @%p1 ret; redux.sync.add.u32 %r9, %r0, -1;"
    assert lanes(body) == [190] * 20 + [0] * 12


def test_a_lane_that_is_not_there():
    """Blocks that are no multiple of 32: a reduction must not take values from beyond."""
    body = "shfl.sync.down.b32 %r9, %r1, 8, 31, -1;"
    with pytest.raises(Undefined, match="lane 8 reads a lane that takes no part"):
        lanes(body, 16)
    assert lanes(body.replace("8, 31", "8, 15"), 16) == [124 + 3 * n for n in range(8)] + [
        124 + 3 * n for n in range(8)
    ]


def test_a_lane_outside_of_its_own_mask():
    with pytest.raises(Divergent, match="lane 1 is not in its own mask"):
        lanes("redux.sync.add.u32 %r9, %r0, 1;")


def test_a_mask_that_waits_for_others():
    with pytest.raises(
        Deadlock, match=r"15 more wait at line \d+ for redux.sync.add.u32"
    ) as caught:
        lanes("@%p0 bra end; redux.sync.add.u32 %r9, %r0, -1; end: bar.sync 0;")
    assert "for barrier 0" in str(caught.value)
    with pytest.raises(Deadlock):
        lanes("selp.b32 %r3, -1, 0x7fffffff, %p0; redux.sync.add.u32 %r9, %r0, %r3;")


def test_active_lanes():
    body = """
    activemask.b32 %r9; @%p0 bra odd; activemask.b32 %r3; add.u32 %r9, %r9, %r3; bra end;
    odd: activemask.b32 %r9;
    end: """
    assert lanes(body) == [0x55555554, 0xAAAAAAAA] * 16
    assert lanes("activemask.b32 %r9;", 20) == [0xFFFFF] * 20


def test_lane_registers():
    body = "".join(
        f"mov.u32 %r{n + 10}, %lanemask_{name};" for n, name in enumerate(["lt", "le", "gt", "ge"])
    )
    body += "mov.u32 %r15, %lanemask_eq; sub.u32 %r9, %r11, %r10; sub.u32 %r9, %r9, %r15;"
    body += "add.u32 %r9, %r9, %r13; sub.u32 %r9, %r9, %r12; mov.u32 %r16, %laneid;"
    body += "shl.b32 %r17, 1, %r16; sub.u32 %r9, %r9, %r17; add.u32 %r9, %r9, %r10;"
    assert lanes(body) == [(1 << lane) - 1 for lane in range(32)]
