"""Instructions that TVM has no expression for: matrix products of a warp, copies to shared memory
that run on their own, barriers, atomic additions.

They are device functions of CUDA C++, most of one line of PTX, which kernels call by name;
`completed` puts them before a source that does. Shared memory is an address here, not a TVM
buffer: TVM would place barriers of its own around accesses that it cannot tell apart.
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from sqcompile.backends.builder import Array, Expr
from sqcompile.backends.kernels import TensorSpec

_PREFIX = "sq_"

_HEADER = """
template <int Bytes> __forceinline__ unsigned sq_shared() {
  __shared__ alignas(128) char memory[Bytes];
  return (unsigned)__cvta_generic_to_shared(memory);
}
__forceinline__ void sq_barrier() { __syncthreads(); }
__forceinline__ void sq_store(unsigned at, int value) {
  asm volatile("st.shared.b32 [%0], %1;" :: "r"(at), "r"(value) : "memory");
}
__forceinline__ void sq_store4(unsigned at, int a, int b, int c, int d) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
               :: "r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__forceinline__ int sq_load(unsigned at) {
  int value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
  return value;
}
__forceinline__ void sq_copy(unsigned at, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(at), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}
__forceinline__ void sq_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left> __forceinline__ void sq_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(Left) : "memory");
}
__forceinline__ void sq_matrices(int* r, int first, unsigned at) {
  r += first;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__forceinline__ int sq_bytes(int a, int b, int which) { return __byte_perm(a, b, which); }
__forceinline__ void sq_add(int* at, int value) { atomicAdd(at, value); }
__forceinline__ void sq_add(long long* at, long long value) {
  atomicAdd((unsigned long long*)at, (unsigned long long)value);
}
__forceinline__ void sq_largest(int* at, int value) { atomicMax(at, value); }
#define SQ_MATRICES(WIDE, SMALL, A, B) \\
__forceinline__ void sq_##WIDE##_##A##_##B(int* c, int ci, const int* a, int ai, \\
                                           const int* b, int bi) { \\
  c += ci, a += ai, b += bi; \\
  asm volatile("mma.sync.aligned." #WIDE ".row.col.s32." #A "." #B ".s32 " \\
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \\
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) \\
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \\
} \\
__forceinline__ void sq_##SMALL##_##A##_##B(int* c, int ci, int a, int b) { \\
  c += ci; \\
  asm volatile("mma.sync.aligned." #SMALL ".row.col.s32." #A "." #B ".s32 " \\
               "{%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(c[0]), "+r"(c[1]) : "r"(a), "r"(b)); \\
}
#define SQ_NIBBLES(A, B) SQ_MATRICES(m16n8k64, m8n8k32, A, B)
SQ_NIBBLES(s4, s4)
SQ_NIBBLES(s4, u4)
SQ_NIBBLES(u4, s4)
SQ_NIBBLES(u4, u4)
#define SQ_BYTES(A, B) SQ_MATRICES(m16n8k32, m8n8k16, A, B) \\
__forceinline__ int sq_dp4a_##A##_##B(int a, int b, int c) { \\
  int sum; \\
  asm("dp4a." SQ_##A "." SQ_##B " %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c)); \\
  return sum; \\
}
#define SQ_s8 "s32"
#define SQ_u8 "u32"
SQ_BYTES(s8, s8)
SQ_BYTES(s8, u8)
SQ_BYTES(u8, s8)
SQ_BYTES(u8, u8)
"""
"""A template is only compiled where it is used, and so is an inline function."""


def completed(source: str) -> str:
    """A CUDA source, with these functions before it if it calls one."""
    return f"{_HEADER}{source}" if _PREFIX in source else source


def _do(name: str, *arguments: Any) -> None:
    T.evaluate(tirx.call_extern("int32", _PREFIX + name, *arguments))


def _value(dtype: str, name: str, *arguments: Any) -> Expr:
    return tirx.call_extern(dtype, _PREFIX + name, *arguments)


def address(array: Array, index: Expr) -> Expr:
    """Where an element lies."""
    return tirx.call_intrin("handle", "tirx.address_of", array[index])


def shared(size: int) -> Expr:
    """The address of `size` bytes of the block's shared memory: always the same."""
    return _value("uint32", f"shared<{size}>")


def barrier() -> None:
    """All threads of a block have come here, and see what each has written."""
    _do("barrier")


def store_shared(at: Expr, word: Expr) -> None:
    """Write 32 bits of shared memory."""
    _do("store", at, word)


def store_shared_vector(at: Expr, words: Sequence[Expr]) -> None:
    """Write four neighbouring words of shared memory, aligned to 16 bytes."""
    _do("store4", at, *words)


def load_shared(at: Expr) -> Expr:
    """Read 32 bits of shared memory."""
    return _value("int32", "load", at)


def copy(at: Expr, array: Array, index: Expr, count: Expr) -> None:
    """Begin a copy of the first `count` bytes of 16 into shared memory; the others become zero."""
    _do("copy", at, address(array, index), count)


def commit() -> None:
    """The copies begun since the last commit are a group."""
    _do("commit")


def wait(left: int) -> None:
    """Until no more than `left` of this thread's groups are under way."""
    _do(f"wait<{left}>")


def matrices(registers: Array, first: int, at: Expr) -> None:
    """Four 8x16-byte matrices into four registers of each thread: lane i has the address of row
    i % 8 of matrix i / 8, and gets bytes 4 * (i % 4), ... of row i / 4 of each."""
    _do("matrices", registers.buffer.data, first, at)


def bytes_of(a: Expr, b: Expr, which: int) -> Expr:
    """Four bytes of eight: hexadecimal digit i of `which` names byte i of the result, 0-3 of a, 4-7
    of b."""
    return _value("int32", "bytes", a, b, tirx.const(which, "int32"))


def add(array: Array, index: Expr, value: Expr) -> None:
    """Add to an int32 or int64 in global memory, at once."""
    _do("add", address(array, index), value)


def largest(array: Array, index: Expr, value: Expr) -> None:
    """Raise an int32 in global memory to `value`, at once."""
    _do("largest", address(array, index), value)


Registers = tuple[Array, int]
"""Registers of a thread from a place on."""


def wide_product(
    shape: str, kinds: tuple[str, str], c: Registers, a: Registers, b: Registers
) -> None:
    """Four accumulators of a thread += four registers of a times two of b, in a whole warp, by
    m16n8k32 of bytes or m16n8k64 of nibbles."""
    given = [part for array, first in (c, a, b) for part in (array.buffer.data, first)]
    _do(f"{shape}_{kinds[0]}_{kinds[1]}", *given)


def small_product(shape: str, kinds: tuple[str, str], c: Registers, a: Expr, b: Expr) -> None:
    """Two accumulators of a thread += a register of a times one of b, in a whole warp, by m8n8k16
    of bytes or m8n8k32 of nibbles."""
    _do(f"{shape}_{kinds[0]}_{kinds[1]}", c[0].buffer.data, c[1], a, b)


def dp4a(kinds: tuple[str, str], a: Expr, b: Expr, c: Expr) -> Expr:
    """c + the dot product of four bytes of a and of b."""
    return _value("int32", f"dp4a_{kinds[0]}_{kinds[1]}", a, b, c)


def local(size: int) -> Array:
    """Registers that these instructions read and write, at constant places. They are handed over
    whole, with a place: of an array whose elements alone it sees, TVM keeps what it sees used."""
    buffer = T.alloc_buffer((size,), "int32", scope="local")
    return Array(buffer, TensorSpec((size,), "int32"))
