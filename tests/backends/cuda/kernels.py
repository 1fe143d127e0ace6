"""Small kernels for the GPU: elementwise, two launches with a workspace between them, dp4a, mma."""

from typing import Any

from tvm.script import tirx as T


def scaled_sum(n: int = 1000, threads: int = 128) -> Any:
    """out = a * 2 + b over n float32: a contraction would round once."""
    blocks = -(-n // threads)

    @T.prim_func(s_tir=True)
    def main(a_: T.handle, b_: T.handle, out_: T.handle):
        a = T.match_buffer(a_, (n,), "float32", align=1)
        b = T.match_buffer(b_, (n,), "float32", align=1)
        out = T.match_buffer(out_, (n,), "float32", align=1)
        for block in T.thread_binding(blocks, thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                if block * threads + thread < n:
                    out[block * threads + thread] = (
                        a[block * threads + thread] * T.float32(1.1) + b[block * threads + thread]
                    )

    return main.with_attr({"global_symbol": "scaled_sum", "tirx.noalias": True})


def reversed_blocks(n: int = 1000, threads: int = 128) -> Any:
    """out[i] = 2 * a[n - 1 - i] + 1: one launch writes a workspace, one reads it through dynamic
    shared memory."""
    blocks = -(-n // threads)

    @T.prim_func(s_tir=True)
    def main(a_: T.handle, out_: T.handle):
        a = T.match_buffer(a_, (n,), "float32", align=1)
        out = T.match_buffer(out_, (n,), "float32", align=1)
        between = T.alloc_buffer((n,), "float32")
        for block in T.thread_binding(blocks, thread="blockIdx.x"):
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                if block * threads + thread < n:
                    between[block * threads + thread] = a[block * threads + thread] * T.float32(2)
        for block in T.thread_binding(blocks, thread="blockIdx.x"):
            shared = T.alloc_buffer((threads,), "float32", scope="shared.dyn")
            for thread in T.thread_binding(threads, thread="threadIdx.x"):
                if block * threads + thread < n:
                    shared[thread] = between[n - 1 - block * threads - thread] + T.float32(1)
                    out[block * threads + thread] = shared[thread]

    return main.with_attr({"global_symbol": "reversed_blocks", "tirx.noalias": True})


def dot_products(rows: int = 24, words: int = 16) -> Any:
    """out[i, j] = a[i] . b[j] over 4 * words int8, given as int32 words."""

    @T.prim_func(s_tir=True)
    def main(a_: T.handle, b_: T.handle, out_: T.handle):
        a = T.match_buffer(a_, (rows, words), "int32", align=1)
        b = T.match_buffer(b_, (rows, words), "int32", align=1)
        out = T.match_buffer(out_, (rows, rows), "int32", align=1)
        for block in T.thread_binding(rows, thread="blockIdx.x"):
            for thread in T.thread_binding(rows, thread="threadIdx.x"):
                out[block, thread] = 0
                for word in range(words):
                    out[block, thread] = T.call_pure_extern(
                        "int32", "__dp4a", a[block, word], b[thread, word], out[block, thread]
                    )

    return main.with_attr({"global_symbol": "dot_products", "tirx.noalias": True})


def tile_product(tiles: int = 3) -> Any:
    """out[t] = a[t] @ b[t].T of int8 (16, 32) and (8, 32): one mma.m16n8k32 a block."""

    @T.prim_func(s_tir=True)
    def main(a_: T.handle, b_: T.handle, out_: T.handle):
        a = T.match_buffer(a_, (tiles, 16, 32), "int8", align=1)
        b = T.match_buffer(b_, (tiles, 8, 32), "int8", align=1)
        out = T.match_buffer(out_, (tiles, 16, 8), "int32", align=1)
        for tile in T.thread_binding(tiles, thread="blockIdx.x"):
            for lane in T.thread_binding(32, thread="threadIdx.x"):
                left = T.alloc_buffer((16,), "int8", scope="local")
                right = T.alloc_buffer((8,), "int8", scope="local")
                sums = T.alloc_buffer((4,), "int32", scope="local")
                for i in T.unroll(16):
                    left[i] = a[
                        tile, lane // 4 + i % 8 // 4 * 8, lane % 4 * 4 + i % 4 + i // 8 * 16
                    ]
                for i in T.unroll(8):
                    right[i] = b[tile, lane // 4, lane % 4 * 4 + i % 4 + i // 4 * 16]
                for i in T.unroll(4):
                    sums[i] = 0
                T.evaluate(
                    T.ptx_legacy.mma(
                        "m16n8k32",
                        "row",
                        "col",
                        "int8",
                        "int8",
                        "int32",
                        left.data,
                        0,
                        right.data,
                        0,
                        sums.data,
                        0,
                        False,
                        dtype="int32",
                    )
                )
                for i in T.unroll(4):
                    out[tile, lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = sums[i]

    return main.with_attr({"global_symbol": "tile_product", "tirx.noalias": True})
