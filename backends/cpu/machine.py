"""What the CPU that is compiled for offers to kernels: its registers and its integer dot product.

Kernel generators ask `machine()`, which reads the TVM target in scope (`with llvm_target(...)`),
so one generator serves every CPU and a target is detected once, where compilation starts.

A dot product multiplies small groups of `depth` neighbouring integers and adds them to int32
lanes. Both of its operands hold `depth` values a lane: the two forms differ in what a value is.

- vpdpbusd: 4 products, unsigned bytes times signed bytes, exact in int32. 64 products an
  instruction with AVX-512.
- pmaddwd: 2 products of signed 16-bit integers, exact in int32; and one addition. Every x86 CPU
  has it; vpmaddubsw, which AVX2 has for bytes, saturates at 16 bits.
- elsewhere the second form is written out, and LLVM finds the instructions.
"""

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import tirx

from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.nest import Array, Expr


@dataclass(frozen=True)
class Dot:
    """int32[lanes] += sum over depth of left * right, each lane with values of its own.

    `left` and `right` are the element dtypes of the two operands; `intrinsic` is empty where the
    form is written out.
    """

    name: str
    intrinsic: str
    lanes: int
    depth: int
    left: str
    right: str

    @property
    def bytes(self) -> bool:
        """Whether operands are 8-bit: the left one unsigned then, the right one signed."""
        return self.depth == 4

    def repeated(self, array: Array, index: Expr) -> Expr:
        """`depth` values from index on, the same in every lane: dtype of the array."""
        word = tirx.reinterpret("int32", array[nest.ramp(index, self.depth)])
        kind = f"{array.dtype}x{self.lanes * self.depth}"
        return tirx.reinterpret(kind, nest.splat(word, self.lanes))

    def loaded(self, array: Array, index: Expr) -> Expr:
        """`depth` values for each lane, from index on."""
        return array[nest.ramp(index, self.lanes * self.depth)]

    def add(self, acc: Expr, left: Expr, right: Expr) -> Expr:
        """acc + the products of each lane; left and right as `repeated` or `loaded` give them, of
        dtypes `left` and `right`."""
        kind = f"int32x{self.lanes}"
        if self.bytes:
            return tirx.call_llvm_pure_intrin(kind, self.intrinsic, acc, left, right)
        if self.intrinsic:
            return acc + tirx.call_llvm_pure_intrin(kind, self.intrinsic, left, right)
        return acc + (self._product(left, right, 0) + self._product(left, right, 1))

    def _product(self, left: Expr, right: Expr, part: int) -> Expr:
        places = [tirx.const(self.depth * lane + part, "int32") for lane in range(self.lanes)]
        first, second = (
            nest.cast(tirx.Shuffle([one], places), "int32", self.lanes) for one in (left, right)
        )
        return first * second


@dataclass(frozen=True)
class Machine:
    """A CPU: its LLVM name, bits of a vector register and how many there are, its dot product,
    and whether one instruction permutes the bytes of two registers (AVX-512 VBMI)."""

    mcpu: str
    vector_bits: int
    registers: int
    dot: Dot
    permutes: bool = False

    @property
    def lanes(self) -> int:
        """32-bit elements of a vector register."""
        return self.vector_bits // 32

    def permuted(self, first: Expr, pattern: Expr, second: Expr) -> Expr:
        """64 bytes out of two times 64: byte i of the result is byte pattern[i] of both together.

        For CPUs with `permutes`.
        """
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        return tirx.call_llvm_pure_intrin("int8x64", name, first, pattern, second)

    @property
    def words(self) -> Dot:
        """The dot product of 16-bit values, for operands that bytes do not hold with their
        shifts; half as fast as bytes where there are both."""
        if not self.dot.bytes:
            return self.dot
        return next(_dot(bits, *form) for _, bits, _, form in _FORMS if form[0] == "pmaddwd")


_FORMS = (
    ({"avx512vnni", "avx512vl", "avx512bw"}, 512, 32, ("vpdpbusd", "x86.avx512.vpdpbusd.512")),
    ({"avx512bw", "avx512vl"}, 512, 32, ("pmaddwd", "x86.avx512.pmaddw.d.512")),
    ({"avx2"}, 256, 16, ("pmaddwd", "x86.avx2.pmadd.wd")),
    ({"sse2"}, 128, 16, ("pmaddwd", "x86.sse2.pmadd.wd")),
)
"""Features that a form needs, vector bits, vector registers, dot product; the best first."""


def _dot(bits: int, name: str, intrinsic: str) -> Dot:
    depth, dtypes = (4, ("uint8", "int8")) if name == "vpdpbusd" else (2, ("int16",) * 2)
    return Dot(name, f"llvm.{intrinsic}", bits // 32, depth, dtypes[0], dtypes[1])


@cache
def _machine(mcpu: str, features: frozenset[str]) -> Machine:
    for needed, bits, registers, form in _FORMS:
        if needed <= features:
            permutes = bits == 512 and "avx512vbmi" in features
            return Machine(mcpu, bits, registers, _dot(bits, *form), permutes)
    return Machine(mcpu, 128, 16, Dot("written out", "", 4, 2, "int16", "int16"))


def machine_of(target: tvm.target.Target) -> Machine:
    """The machine of an LLVM target."""
    features = frozenset(map(str, tvm.target.codegen.llvm_get_cpu_features(target)))
    return _machine(str(target.attrs.get("mcpu", "")), features)


def machine() -> Machine:
    """The machine of the TVM target in scope.

    Raises RuntimeError when there is none: a kernel is generated for a CPU.
    """
    target = tvm.target.Target.current(allow_none=True)
    if target is None:
        raise RuntimeError("no target in scope: generate kernels inside `with llvm_target(...)`")
    return machine_of(target)
