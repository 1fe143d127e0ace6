"""The checks of shared memory and of order: each fires where it must, and only there."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator import ALL, Checks
from sqcompile.backends.cuda.emulator.faults import BlockRace, Race, Uninitialised
from tests.backends.cuda.emulator.ptx import module, run

START = """
    .shared .align 16 .b8 tile[4096]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile;
    shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; ld.param.u64 %d0, [out];
    mad.wide.u32 %d1, %r0, 4, %d0;
"""
SYNC = "bar.sync 0;"


def launch(body, block=64, grid=1, checks=True, count=None):
    out = np.zeros(count or block, "u4")
    run(module("out", START + body + "ret;"), grid, block, out, checks=checks)
    return out


def reverse(block, barrier):
    """Write to tile[tid], read tile[block - 1 - tid], which held zeros."""
    return f"""
    st.shared.u32 [%r3], 0; bar.sync 0;
    st.shared.u32 [%r3], %r0; {barrier} mov.u32 %r4, {4 * (block - 1)}; sub.u32 %r4, %r4, %r2;
    add.u32 %r4, %r4, %r1; ld.shared.u32 %r5, [%r4]; st.global.u32 [%d1], %r5;"""


@pytest.mark.parametrize("barrier", [SYNC, "barrier.sync.aligned 0;", "bar.cta.sync 0;"])
def test_a_barrier_orders_the_block(barrier):
    assert launch(reverse(64, barrier)).tolist() == [*range(63, -1, -1)]


def test_a_missing_barrier_between_warps():
    with pytest.raises(Race, match=r"writes what is read by thread \(31, 0, 0\)") as caught:
        launch(reverse(64, ""))
    assert "st.shared.u32 [%r3], %r0" in caught.value.source
    assert caught.value.thread == (32, 0, 0)
    assert "__syncthreads" in str(caught.value)


@pytest.mark.parametrize("nothing", ["", "membar.cta;", "shfl.sync.idx.b32 %r9, %r0, 0, 31, -1;"])
def test_what_orders_nothing_within_a_warp(nothing):
    """Lanes run in turn here, so that results are right, and the program is wrong all the same."""
    with pytest.raises(Race):
        launch(reverse(32, nothing), block=32)
    assert launch(reverse(32, "bar.warp.sync -1;"), block=32).tolist() == [*range(31, -1, -1)]


def test_a_warp_sync_orders_its_own_lanes_alone():
    swap = """
    st.shared.u32 [%r3], 0; bar.sync 0;
    st.shared.u32 [%r3], %r0; bar.warp.sync {mask}; xor.b32 %r4, %r3, {bit};
    ld.shared.u32 %r5, [%r4]; st.global.u32 [%d1], %r5;"""
    near = swap.format(mask="%r6", bit=4)
    masks = "and.b32 %r6, %r0, 16; shl.b32 %r6, 0xffff, %r6;"
    assert launch(masks + near).tolist() == [n ^ 1 for n in range(64)]
    with pytest.raises(Race):
        launch(masks + swap.format(mask="%r6", bit=64))
    with pytest.raises(Race):
        launch(swap.format(mask=-1, bit=128))


def test_order_is_handed_on():
    """Lanes 0-15 meet 16-31 by two syncs with lane 16 in both."""
    body = """
    st.shared.u32 [%r3], %r0; setp.le.u32 %p0, %r0, 16; @%p0 bar.warp.sync 0x1ffff;
    setp.ge.u32 %p1, %r0, 16; @%p1 bar.warp.sync 0xffff0000;
    setp.eq.u32 %p2, %r0, {reader}; @%p2 ld.shared.u32 %r5, [tile+{byte}];"""
    launch(body.format(reader=31, byte=12), block=32)
    with pytest.raises(Race):
        launch(body.format(reader=3, byte=124), block=32)


def test_two_writes():
    body = "shr.u32 %r4, %r0, {shift}; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r1; {sync}"
    body += "st.shared.u32 [%r4], %r0;"
    launch(body.format(shift=0, sync=""))
    with pytest.raises(Race, match="writes what is written by thread"):
        launch(body.format(shift=1, sync=""))
    with pytest.raises(Race, match="writes what is written"):
        launch("setp.eq.u32 %p0, %r0, 40; setp.eq.or.u32 %p0, %r0, 3, %p0;"
               "@%p0 st.shared.u32 [tile], 7;")  # fmt: skip


def test_a_write_after_reads():
    """The second barrier of a loop over tiles: the one that is forgotten most."""
    body = """
    mov.u32 %r7, 0;
    again: st.shared.u32 [%r3], %r0; bar.sync 0; xor.b32 %r4, %r3, 128; ld.shared.u32 %r5, [%r4];
    {sync} add.u32 %r7, %r7, 1; setp.lt.u32 %p0, %r7, 3; @%p0 bra again;
    st.global.u32 [%d1], %r5;"""
    assert launch(body.format(sync=SYNC)).tolist() == [n ^ 32 for n in range(64)]
    with pytest.raises(Race):
        launch(body.format(sync=""))


def test_all_lanes_read_and_the_last_one_writes():
    body = """
    setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [tile], 5; bar.sync 0; ld.shared.u32 %r5, [tile];
    {sync} setp.eq.u32 %p1, %r0, 31; @%p1 st.shared.u32 [tile], 6;"""
    launch(body.format(sync="bar.warp.sync -1;"), block=32)
    with pytest.raises(Race, match=r"read by thread \(0, 0, 0\)"):
        launch(body.format(sync=""), block=32)


def test_bytes_of_one_word_are_places_of_their_own():
    body = """
    st.shared.u32 [%r3], 0; bar.sync 0; add.u32 %r4, %r1, %r0;
    st.shared.u8 [%r4], %r0; {sync} ld.shared.u32 %r5, [tile+4];
    st.global.u32 [%d1], %r5;"""
    assert launch(body.format(sync=SYNC))[0] == 0x07060504
    with pytest.raises(Race):
        launch(body.format(sync=""))


def test_atomics_do_not_race_with_each_other():
    body = """
    setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [tile], 0; {first}
    atom.shared.add.u32 %r5, [tile], 1; {second} ld.shared.u32 %r6, [tile];
    st.global.u32 [%d1], %r6;"""
    assert launch(body.format(first=SYNC, second=SYNC)).tolist() == [64] * 64
    for left_out in ({"first": "", "second": SYNC}, {"first": SYNC, "second": ""}):
        with pytest.raises(Race):
            launch(body.format(**left_out))


def test_reads_of_what_nobody_wrote():
    body = "setp.lt.u32 %p0, %r0, {count}; @%p0 st.shared.u32 [%r3], %r0; bar.sync 0;"
    body += "ld.shared.u32 %r5, [%r3];"
    launch(body.format(count=64))
    with pytest.raises(Uninitialised, match="byte 252 of shared memory") as caught:
        launch(body.format(count=63))
    assert caught.value.thread == (63, 0, 0)
    launch(body.format(count=63), checks=Checks(shared=False))


def test_shared_memory_does_not_outlive_a_block():
    """Block 1 would see what block 0 wrote, in an emulator that forgets to forget."""
    body = "mov.u32 %r6, %ctaid.x; setp.eq.u32 %p0, %r6, 0; @%p0 st.shared.u32 [%r3], %r0;"
    body += "ld.shared.u32 %r5, [%r3];"
    with pytest.raises(Uninitialised) as caught:
        launch(body, grid=2)
    assert caught.value.block == (1, 0, 0)


def test_a_named_barrier_orders_those_who_use_it():
    """Warps 0 and 1 meet at barrier 1, warp 2 does not."""
    body = """
    st.shared.u32 [%r3], %r0; setp.lt.u32 %p0, %r0, 64; @%p0 bar.sync 1, 64;
    setp.eq.u32 %p1, %r0, 0; @%p1 ld.shared.u32 %r5, [tile+{byte}];"""
    launch(body.format(byte=4 * 40), block=96)
    with pytest.raises(Race):
        launch(body.format(byte=4 * 70), block=96)


COPY = """
    setp.lt.u32 %p0, %r0, 16; ld.param.u64 %d2, [out]; shl.b32 %r4, %r0, 4; add.u32 %r5, %r1, %r4;
    mad.wide.u32 %d3, %r0, 16, %d2; @%p0 cp.async.cg.shared.global [%r5], [%d3], 16; {wait} {sync}
    ld.shared.u32 %r6, [%r3]; bar.sync 0; st.global.u32 [%d1], %r6;"""


def copied(wait, sync):
    out = np.arange(64, dtype="u4") + 5
    run(module("out", START + COPY.format(wait=wait, sync=sync) + "ret;"), 1, 64, out)
    return out


@pytest.mark.parametrize(
    "wait", ["cp.async.wait_all;", "cp.async.commit_group; cp.async.wait_group 0;"]
)
def test_a_copy_that_is_waited_for(wait):
    assert copied(wait, SYNC).tolist() == [*range(5, 69)]


def test_a_copy_that_is_not_waited_for():
    with pytest.raises(Race, match="uses what a cp.async still writes"):
        copied("", SYNC)
    with pytest.raises(Race, match="uses what a cp.async still writes"):
        copied("cp.async.commit_group; cp.async.wait_group 1;", SYNC)


def test_waiting_alone_does_not_show_others_the_copy():
    with pytest.raises(Race, match="reads what is written by thread"):
        copied("cp.async.wait_all;", "")


def test_the_thread_that_waited_may_read_its_own_copy():
    body = """
    mov.u64 %d2, %d1; cp.async.ca.shared.global [%r3], [%d2], 4; {wait}
    ld.shared.u32 %r6, [%r3]; add.u32 %r6, %r6, 1; st.global.u32 [%d1], %r6;"""
    assert launch(body.format(wait="cp.async.wait_all;")).tolist() == [1] * 64
    with pytest.raises(Race, match="cp.async"):
        launch(body.format(wait=""))


def test_groups_finish_in_order():
    """Two groups: after wait_group 1 the first may be read, the second may not."""
    body = """
    cp.async.ca.shared.global [%r3], [%d1], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%r3+256], [%d1], 4; cp.async.commit_group; cp.async.wait_group 1;
    ld.shared.u32 %r6, [%r3+{byte}];"""
    launch(body.format(byte=0))
    with pytest.raises(Race, match="cp.async"):
        launch(body.format(byte=256))


def test_a_copy_over_what_others_still_read():
    body = """
    st.shared.u32 [%r3], %r0; bar.sync 0; xor.b32 %r4, %r3, 128; ld.shared.u32 %r5, [%r4]; {sync}
    cp.async.ca.shared.global [%r3], [%d1], 4; cp.async.wait_all;"""
    launch(body.format(sync=SYNC))
    with pytest.raises(Race):
        launch(body.format(sync=""))


def test_zeros_beyond_the_source():
    """src-size: the rest of the 16 bytes is zeros, and the source is not read there."""
    body = """
    .shared .align 16 .b8 tile[64]; mov.u32 %r1, tile; ld.param.u64 %d0, [a];
    ld.param.u32 %r2, [size]; cp.async.cg.shared.global [%r1], [%d0], 16, %r2;
    cp.async.ca.shared.global [%r1+16], [%d0], 4, 0;
    cp.async.ca.shared.global [%r1+24], [%d0], 8, 3;
    cp.async.wait_all; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1];
    ld.shared.u32 %r8, [%r1+16]; ld.shared.v2.u32 {%r9, %r10}, [%r1+24]; ld.param.u64 %d1, [out];
    st.global.v4.u32 [%d1], {%r4, %r5, %r6, %r7}; st.global.u32 [%d1+16], %r8;
    st.global.v2.u32 [%d1+24], {%r9, %r10}; ret;"""
    a, out = np.full(7, 0x11, "u1"), np.zeros(8, "u4")
    run(module("a out .u32~size", body), 1, 1, a, out, 7)
    assert out.tolist() == [0x11111111, 0x111111, 0, 0, 0, 0, 0x111111, 0]


def test_blocks_that_touch_the_same_memory():
    body = "mov.u32 %r6, %ctaid.x; {code}"
    write = body.format(code="st.global.u32 [%d1], %r6;")
    launch(write, grid=2)
    with pytest.raises(BlockRace, match=r"also used by block \(0, 0, 0\)"):
        launch(write, grid=2, checks=ALL)
    atomic = body.format(code="red.global.add.u32 [%d1], %r6;")
    assert launch(atomic, grid=4, checks=ALL).tolist() == [6] * 64
    own = body.format(code="mad.wide.u32 %d1, %r6, 256, %d1; st.global.u32 [%d1], 1;")
    launch(own, grid=3, checks=ALL, count=192)
    handed = "setp.eq.u32 %p0, %r6, 0; @%p0 st.global.u32 [%d0], 1; ld.global.u32 %r7, [%d0];"
    with pytest.raises(BlockRace):
        launch(body.format(code=handed), grid=2, checks=ALL, block=1)
    launch(body.format(code="ld.global.u32 %r7, [%d0];"), grid=2, checks=ALL)
    late = "ld.global.u32 %r7, [%d0]; setp.eq.u32 %p0, %r6, 1; @%p0 st.global.u32 [%d0], 1;"
    with pytest.raises(BlockRace):
        launch(body.format(code=late), grid=2, checks=ALL, block=1)
