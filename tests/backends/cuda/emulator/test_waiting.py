"""Barriers: who meets, who waits forever, and what runs forever."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator.faults import Deadlock, Divergent, Runaway, Trap, Undefined
from tests.backends.cuda.emulator.ptx import module, run

START = """
    mov.u32 %r0, %tid.x; ld.param.u64 %d0, [out]; mad.wide.u32 %d1, %r0, 4, %d0;
    setp.lt.u32 %p0, %r0, 32;
"""


def launch(body, block=64, **options):
    out = np.zeros(block, "u4")
    run(module("out", START + body + "ret;"), 1, block, out, **options)
    return out.tolist()


@pytest.mark.parametrize("checks", [True, False])
def test_a_barrier_in_a_branch(checks):
    with pytest.raises(
        Deadlock, match=r"thread \(0, 0, 0\) and 31 more wait at line \d+"
    ) as caught:
        launch("@%p0 bar.sync 0; @!%p0 bar.sync 1;", checks=checks)
    assert "barrier 1" in str(caught.value)


def test_one_barrier_from_two_places():
    """Of one barrier, warps may come from different instructions, lanes of a warp may not."""
    body = "@{p} bra one; bar.sync 0; bra end; one: bar.sync 0; end: "
    launch(body.format(p="%p0"))
    with pytest.raises(Divergent, match="another lane of its warp is at the barrier of line"):
        launch("and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 1;\n" +
               body.replace(";", ";\n").format(p="%p1"))  # fmt: skip
    launch("and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 1;\n" +
           body.replace(";", ";\n").replace("bar.", "barrier.").format(p="%p1"))  # fmt: skip


def test_threads_that_left_are_not_waited_for():
    launch("setp.lt.u32 %p1, %r0, 40; @%p1 ret; bar.sync 0;")


def test_barriers_of_parts():
    """Two halves of a block, each at a barrier of its own, then all."""
    launch("@%p0 bar.sync 1, 32; @!%p0 bar.sync 2, 32; bar.sync 0;")
    with pytest.raises(Deadlock):
        launch("@%p0 bar.sync 1, 64;")
    with pytest.raises(Divergent, match="different counts"):
        launch("@%p0 bar.sync 1, 64; @!%p0 bar.sync 1, 32;")
    for wrong in ("bar.sync 16;", "bar.sync 1, 20;"):
        with pytest.raises(Undefined):
            launch(wrong)


def test_barriers_that_count():
    body = "setp.lt.u32 %p1, %r0, 5; bar.red.popc.u32 %r1, 0, %p1; st.global.u32 [%d1], %r1;"
    assert launch(body) == [5] * 64
    for name, predicate, wanted in (("and", "%p1", 0), ("or", "%p1", 1), ("and", "!%p2", 1)):
        body = f"""setp.lt.u32 %p1, %r0, 5; setp.gt.u32 %p2, %r0, 99;
        bar.red.{name}.pred %p3, 0, {predicate};
        selp.b32 %r1, 1, 0, %p3; st.global.u32 [%d1], %r1;"""
        assert launch(body) == [wanted] * 64


def test_a_trap():
    with pytest.raises(Trap, match=r"thread \(7, 0, 0\)"):
        launch("setp.eq.u32 %p1, %r0, 7; @%p1 trap;")


def test_a_loop_without_end():
    with pytest.raises(Runaway, match="branched backwards"):
        launch("again: bra again;", branches=1 << 20)


def test_threads_that_wait_for_each_other_make_progress():
    """Thread 0 spins until thread 63 has written."""
    body = """
    setp.eq.u32 %p1, %r0, 63; @%p1 st.volatile.global.u32 [%d0], 9; setp.ne.u32 %p2, %r0, 0;
    @%p2 bra end;
    again: ld.volatile.global.u32 %r1, [%d0]; setp.ne.u32 %p3, %r1, 9; @%p3 bra again;
    end: """
    assert launch(body)[0] == 9


@pytest.mark.parametrize(("a", "b"), [(5, 0), (-(2**31), -1)])
@pytest.mark.parametrize("name", ["div", "rem"])
def test_divisions_without_a_result(name, a, b):
    with pytest.raises(Undefined, match="does not define"):
        launch(f"mov.u32 %r1, {a}; mov.u32 %r2, {b}; {name}.s32 %r3, %r1, %r2;")


def test_branches_by_number():
    body = """
    and.b32 %r1, %r0, 3; setp.lt.u32 %p1, %r0, {valid}; @!%p1 mov.u32 %r1, 3;
    list: .branchtargets zero, one, two;
    setp.eq.u32 %p2, %r1, 3; setp.lt.and.u32 %p2, %r0, {valid}, %p2; @%p2 mov.u32 %r1, 0;
    brx.idx %r1, list;
    zero: mov.u32 %r2, 10; bra end;
    one: mov.u32 %r2, 11; bra end;
    two: mov.u32 %r2, 12;
    end: st.global.u32 [%d1], %r2;"""
    assert launch(body.format(valid=64)) == [10, 11, 12, 10] * 16
    with pytest.raises(Undefined):
        launch(body.format(valid=60))
