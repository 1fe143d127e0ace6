"""What the accelerator does with tiles, as TVM's tensor intrinsics: a schedule puts them in place
of the loops that they are equal to, which TVM checks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.vta.hardware import Hardware, Memory
from sqcompile.backends.vta.tir.compute import block, dtype, tile
from sqcompile.backends.vta.tir.names import ACC, INP, WGT

GEMM, CLEAR = "vta.gemm", "vta.clear"
"""Extern functions that stand for a tile operation; they are never linked."""

_SCOPES = {Memory.ACC: ACC, Memory.INP: INP, Memory.WGT: WGT}


@cache
def registered(hardware: Hardware) -> tuple[str, str]:
    """Names of the intrinsics of a product of two tiles and of a cleared one."""
    widths = [hardware.width(memory) for memory in (Memory.INP, Memory.WGT)]
    shape = "x".join(map(str, (hardware.batch, hardware.block, *widths)))
    gemm, clear = f"{GEMM}.{shape}", f"{CLEAR}.{shape}"
    TensorIntrin.register(gemm, _gemm(hardware, True), _gemm(hardware, False), override=True)
    TensorIntrin.register(clear, _clear(hardware, True), _clear(hardware, False), override=True)
    return gemm, clear


def replaced(hardware: Hardware, found: Sequence[Any]) -> Any:
    """Of a tile's loops, the outermost that an intrinsic replaces. One row is no loop to TVM: it
    has put its number in place, so a description has none either."""
    return found[0] if hardware.batch > 1 else found[1]


def _gemm(hardware: Hardware, described: bool) -> Any:
    """ACC += INP @ WGT.T: the loops, or the call that replaces them."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("gemm")
        inp, wgt, acc = (_tile(hardware, m) for m in (Memory.INP, Memory.WGT, Memory.ACC))
        with T.sblock("root"):
            T.reads([_whole(acc), _whole(inp), _whole(wgt)])
            T.writes([_whole(acc)])
            if described:
                extents = (hardware.batch, hardware.block, hardware.block)
                with _loops("SSR", extents) as (b, n, k):
                    wide = [T.Cast("int32", factor) for factor in (inp[b, k], wgt[n, k])]
                    T.buffer_store(acc, acc[b, n] + wide[0] * wide[1], [b, n])
            else:
                _call(GEMM, acc, inp, wgt)
    return builder.get()


def _clear(hardware: Hardware, described: bool) -> Any:
    """ACC = 0."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("clear")
        acc = _tile(hardware, Memory.ACC)
        with T.sblock("root"):
            T.reads([])
            T.writes([_whole(acc)])
            if described:
                with _loops("SS", (hardware.batch, hardware.block)) as (b, n):
                    T.buffer_store(acc, tirx.const(0, "int32"), [b, n])
            else:
                _call(CLEAR, acc)
    return builder.get()


@contextmanager
def _loops(kinds: str, extents: tuple[int, ...]) -> Iterator[list[Any]]:
    """A block in loops over a tile; a tile of one row has none over rows."""
    names, there = "bnk"[: len(extents)], int(extents[0] == 1)
    with block("tile", kinds[there:], names[there:], extents[there:]) as axes:
        yield [*([0] * there), *axes]


def _tile(hardware: Hardware, memory: Memory) -> Any:
    scope = _SCOPES[memory]
    shape = tile(hardware, memory)
    buffer = T.buffer(shape, dtype(hardware, memory), offset_factor=1, scope=scope)
    return T.arg(memory.name.lower(), buffer)


def _whole(buffer: Any) -> Any:
    return buffer[tuple(slice(0, int(size)) for size in buffer.shape)]


def _call(name: str, *buffers: Any) -> None:
    T.evaluate(T.call_extern("int32", name, *(T.address_of(one[0, 0]) for one in buffers)))
