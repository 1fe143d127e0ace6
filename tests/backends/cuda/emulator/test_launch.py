"""Launching: sizes, arguments, workers, counts, the compiler and the cache."""

import numpy as np
import pytest

from sqcompile.backends.cuda.emulator import LaunchError, compiler, emulate, layout
from sqcompile.backends.cuda.emulator.batch import compile_together
from sqcompile.backends.cuda.emulator.faults import KINDS
from sqcompile.backends.cuda.emulator.hints import HINTS
from sqcompile.errors import TargetUnavailableError
from tests.backends.cuda.emulator.ptx import module

PLACES = """
    ld.param.u64 %d0, [out]; mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.z;
    mov.u32 %r3, %nctaid.x; mov.u32 %r4, %nctaid.y; mad.lo.u32 %r5, %r2, %r4, %r1;
    mad.lo.u32 %r5, %r5, %r3, %r0; mov.u32 %r6, %ntid.x; mov.u32 %r7, %ntid.y; mov.u32 %r8, %ntid.z;
    mul.lo.u32 %r9, %r6, %r7; mul.lo.u32 %r9, %r9, %r8; mov.u32 %r10, %tid.x; mov.u32 %r11, %tid.y;
    mov.u32 %r12, %tid.z; mad.lo.u32 %r13, %r12, %r7, %r11; mad.lo.u32 %r13, %r13, %r6, %r10;
    mad.lo.u32 %r14, %r5, %r9, %r13; mad.wide.u32 %d1, %r14, 16, %d0; shl.b32 %r1, %r1, 8;
    add.u32 %r0, %r0, %r1; shl.b32 %r2, %r2, 16; add.u32 %r0, %r0, %r2; shl.b32 %r11, %r11, 8;
    add.u32 %r10, %r10, %r11; shl.b32 %r12, %r12, 16; add.u32 %r10, %r10, %r12;
    mov.u32 %r15, %laneid; mov.u32 %r16, %warpid;
    st.global.v4.u32 [%d1], {%r0, %r10, %r15, %r16}; ret;"""


@pytest.mark.parametrize("workers", [1, 3])
def test_grids_and_blocks_of_three_dimensions(workers):
    grid, block = (3, 2, 2), (5, 3, 4)
    out = np.zeros((*grid[::-1], *block[::-1], 4), "u4")
    emulate(module("out", PLACES)).launch("k", grid, block, [out], workers=workers)
    for bz, by, bx, tz, ty, tx in np.ndindex(out.shape[:-1]):
        linear = tx + 5 * (ty + 3 * tz)
        wanted = [bx | by << 8 | bz << 16, tx | ty << 8 | tz << 16, linear % 32, linear // 32]
        assert out[bz, by, bx, tz, ty, tx].tolist() == wanted


def test_a_fault_of_one_worker_ends_all():
    text = emulate(module("out", "mov.u32 %r0, %ctaid.x; setp.eq.u32 %p0, %r0, 5; @%p0 trap; ret;"))
    with pytest.raises(KINDS[8], match=r"block \(5, 0, 0\)"):
        text.launch("k", 64, 32, [np.zeros(1)], workers=2)


NOTHING = module("out .s32~whole .f32~single .align~4~.b8~many[8]", "ret;")
FITTING = [np.zeros(1), 1, 0.5, bytes(8)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (FITTING[:3], "3 arguments for 4 parameters"),
        ([1.5, *FITTING[1:]], r"argument 0 is a .u64, which 1.5 does not fit"),
        ([FITTING[0], 1.0, *FITTING[2:]], "argument 1 is a .s32"),
        ([*FITTING[:2], 1, FITTING[3]], "argument 2 is a .f32"),
        ([*FITTING[:3], 7], "argument 3 is a struct of 8 bytes"),
        ([*FITTING[:3], bytes(7)], "argument 3 has 7 bytes for 8"),
        ([np.zeros((4, 4)).T[1:], *FITTING[1:]], "argument 0 is not contiguous"),
        ([np.broadcast_to(np.zeros(1), 1), *FITTING[1:]], "argument 0 is not writeable"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    text = emulate(NOTHING)
    text.launch("k", 1, 1, FITTING)
    with pytest.raises(LaunchError, match=words):
        text.launch("k", 1, 1, arguments)


def test_sizes_that_do_not_fit():
    text = emulate(NOTHING)
    for wrong in ({"grid": 0}, {"block": (1, 2, 3, 4)}, {"block": 1025}, {"shared": 16},
                  {"grid": (1, 65536)}, {"block": (1, 1, 65)}):  # fmt: skip
        sizes = {"grid": 1, "block": 1} | wrong
        with pytest.raises(LaunchError):
            text.launch("k", arguments=FITTING, **sizes)
    with pytest.raises(LaunchError, match="there is no kernel other; there are k"):
        text.launch("other", 1, 1, [])
    bounded = NOTHING.replace(")\n{", ")\n.maxntid 64, 1, 1\n{")
    emulate(bounded).launch("k", 1, 64, FITTING)
    with pytest.raises(LaunchError, match="65 threads in a block, at most 64"):
        emulate(bounded).launch("k", 1, 65, FITTING)


def test_an_array_passed_twice_is_one():
    body = """
    ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b]; st.global.u32 [%d0], 5;
    ld.global.u32 %r0, [%d1]; add.u32 %r0, %r0, 1; st.global.u32 [%d1+4], %r0; ret;"""
    both = np.zeros(2, "u4")
    emulate(module("a b", body)).launch("k", 1, 1, [both, both])
    assert both.tolist() == [5, 6]


def test_counts_of_executed_instructions():
    body = """
    mov.u32 %r0, 0;
    again: add.u32 %r0, %r0, 1; setp.lt.u32 %p0, %r0, 5; @%p0 bra again;
    mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 3; @%p1 bra end; mul.lo.u32 %r2, %r1, %r1;
    end: ret;"""
    text = emulate(module("a", body), counted=True)
    text.launch("k", 2, 8, [np.zeros(1)])
    assert text.executed["add.u32"] == 2 * 8 * 5
    assert text.executed["mul.lo.u32"] == 2 * 5
    assert text.executed["bra"] == 2 * 8 * 6
    assert text.executed["ret"] == 16


def test_kernels_compiled_together():
    """Constants of collectives, labels and registers of several do not meet."""
    bodies = []
    for number in (1, 2, 3):
        body = f"""
        mov.u32 %r0, %tid.x; setp.ge.u32 %p0, %r0, 32; @%p0 bra end;
        redux.sync.{("add.u32", "max.u32", "min.u32")[number - 1]} %r1, %r0, -1;
        ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, 4, %d0; st.global.u32 [%d0], %r1;
        end: ret;"""
        bodies.append(module("out", body).replace(".entry k(", f".entry k{number}("))
    joined = bodies[0] + "".join(body[body.index(".visible") :] for body in bodies[1:])
    text = emulate(joined)
    compile_together(text)
    assert set(text.loaded) == {"k1", "k2", "k3"}
    for name, wanted in (("k1", 496), ("k2", 31), ("k3", 0)):
        out = np.zeros(32, "u4")
        text.launch(name, 1, 64, [out])
        assert out.tolist() == [wanted] * 32
    compile_together(text)


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TargetUnavailableError, match="apt install g") as caught:
        emulate(module("a", "ret;")).launch("k", 1, 1, [np.zeros(1)])
    assert caught.value.exit_code == 5
    monkeypatch.setenv("CXX", "clang-of-tomorrow")
    with pytest.raises(TargetUnavailableError, match="clang-of-tomorrow"):
        compiler.compiler()


def test_a_kernel_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SQCOMPILE_CACHE_DIR", str(tmp_path))
    text = module("a", "mov.u32 %r1, 12345; ret;")
    emulate(text).compile("k")
    monkeypatch.setattr(compiler.subprocess, "run", None)
    emulate(text).compile("k")
    with pytest.raises(TypeError):
        emulate(text.replace("12345", "12346")).compile("k")


def test_python_and_the_runtime_agree():
    """Structures that both sides write down, and the numbers of faults."""
    sizes = (layout.ctypes.c_uint64 * 3)()
    compiler.runtime().ptx_layout(sizes)
    structures = (layout.Launch, layout.Report, layout.Allocation)
    assert list(sizes) == [layout.ctypes.sizeof(structure) for structure in structures]
    assert set(HINTS) == set(KINDS)
