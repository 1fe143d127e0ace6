"""What is wrong in a product is found: by the emulator's checks, or by comparison. Mutations of the
PTX are slips of synchronisation and fragments, mutations of the generator those of bounds, shifts
and tails."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from sqcompile.backends.cuda import architectures, gemm, gemm_operands, gemm_shift, products
from sqcompile.backends.cuda.emulator import Fault, Module, emulate
from sqcompile.backends.cuda.emulator.batch import compile_together
from sqcompile.backends.cuda.nvrtc import compile_source
from sqcompile.backends.cuda.split import SplitKernel
from tests.backends.cases import tensors
from tests.backends.catalogue import all_cases
from tests.backends.cuda.emulated import Emulated, joined, split_kernels
from tests.conftest import require_tool

ARCH = "sm_80"
NAME = "shift_matmul-s4-s4-G4-nt-0"
"""m = 83, n = 70, k = 91: two tiles of k, tails everywhere; one operand is gathered, the other is
shifted, packed and copied."""
CASE = next(case for case in all_cases() if case.name == NAME)

Edit = Callable[[str], str]


def _change(pattern: str, to: Callable[[re.Match[str]], str], of: slice = slice(None)) -> Edit:
    """Rewrite those of the matches that `of` takes: the loop over tiles may be unrolled."""

    def edit(text: str) -> str:
        for found in reversed(list(re.finditer(pattern, text))[of]):
            text = text[: found.start()] + to(found) + text[found.end() :]
        return text

    return edit


def _drop(pattern: str, of: slice = slice(None)) -> Edit:
    """Leave out instructions."""
    return _change(pattern, lambda _: "", of)


_FIRST = slice(0, 1)
_MMA = r"mma\.sync\.\S+ \{(.*?)\}, \{(.*?)\}, \{(.*?)\}, \{(.*?)\};"


def _product(order: Callable[[list[str], list[str], list[str]], tuple[Any, ...]]) -> Edit:
    """Change the registers of the first matrix instruction: order(c, a, b) gives new ones."""

    def to(found: re.Match[str]) -> str:
        c, a, b = (found[i].split(", ") for i in (1, 2, 3))
        c, a, b = order(c, a, b)
        parts = [", ".join(one) for one in (c, a, b, c)]
        return found[0].split(" {")[0] + " " + ", ".join(f"{{{one}}}" for one in parts) + ";"

    return _change(_MMA, to, _FIRST)


IN_PTX: dict[str, Edit] = {
    "no barrier before a tile is read": _drop(r"bar\.sync\s+0;", slice(0, -2)),
    "no barrier before results are spread": _drop(r"bar\.sync\s+0;", slice(-2, -1)),
    "no barrier before results are read": _drop(r"bar\.sync\s+0;", slice(-1, None)),
    "no wait for copies": _drop(r"cp\.async\.wait_group 1;"),
    "too short a wait for copies": _change(r"wait_group 1;", lambda _: "wait_group 2;"),
    "copies in no group": _drop(r"cp\.async\.commit_group;"),
    "rows of a fragment exchanged": _product(lambda c, a, b: (c, [a[1], a[0], *a[2:]], b)),
    "halves of a fragment exchanged": _product(lambda c, a, b: (c, a, b[::-1])),
    "results in the wrong rows": _product(lambda c, a, b: (c[2:] + c[:2], a, b)),
    "a signed operand as unsigned": _change(
        r"\.s32\.s8\.s8\.s32", lambda _: ".s32.u8.s8.s32", _FIRST
    ),
    "one fragment read twice": _change(
        r"(ldmatrix\S+ \{.*?\}, \[)(%r\d+)(\];[\s\S]*?ldmatrix\S+ \{.*?\}, \[)(%r\d+)(\];)",
        lambda found: found[1] + found[2] + found[3] + found[2] + found[5],
        _FIRST,
    ),
    "a word stored nowhere": _drop(r"st\.shared\.b32 \[%r\d+\], %r\d+;", _FIRST),
}


@dataclass(frozen=True)
class Patch:
    """Another attribute in a module or class of the generator."""

    of: Any
    name: str
    value: Any


def _row_bound(self: Any, z: Any, row: Any) -> Any:
    place = gemm_operands.grid.linear([z, row], [self.z_step, self.row_step], self.start)
    return gemm_operands.Part(place, row <= self.rows)


def _step_bound(self: Any, z: Any, k: Any) -> Any:
    return gemm_operands.Part(k * self.k_step, k <= self.steps)


def _one_exponent_on(exponent: Any, groups: int, batch_step: int, step: int) -> Any:
    right = gemm_shift.exponent_shift(exponent, groups, batch_step, step)
    return lambda z, k: right(z, gemm_shift.tirx.max(k - 1, 0))


def _swizzle_of_other_rows(row: Any, chunk: Any) -> Any:
    key = gemm.tirx.bitwise_and(row, 3)
    return row * gemm.KS + gemm.tirx.bitwise_xor(chunk, key) * 16


IN_GENERATOR = {
    "a row too many": Patch(gemm_operands.Matrix, "row", _row_bound),
    "a step too many": Patch(gemm_operands.Matrix, "step", _step_bound),
    "the exponent of the step before": Patch(products, "exponent_shift", _one_exponent_on),
    "the last tile left out": Patch(gemm.Gemm, "tiles", property(lambda self: 1)),
    "swizzled in one place alone": Patch(gemm, "place", _swizzle_of_other_rows),
    "operands exchanged": Patch(
        products,
        "Gemm",
        lambda a, b, signed, batch: replace(gemm.Gemm(a, b, signed, batch), a=[b[0]], b=[a[0]]),
    ),
}


def _entry(ptx: str, name: str) -> str:
    start = ptx.index(f".visible .entry {name}(")
    return ptx[start : ptx.index("\n}\n", start) + 3]


@dataclass
class Mutants:
    """The kernel, and wrong ones, in one module."""

    kernels: dict[str, SplitKernel]
    module: Module


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    require_tool("g++")
    spec = CASE.spec()
    sources: dict[str, SplitKernel] = {"right": split_kernels({"right": spec}, ARCH)["right"]}
    for number, (name, patch) in enumerate(IN_GENERATOR.items()):
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(patch.of, patch.name, patch.value)
            sources[name] = split_kernels({name: spec}, ARCH, f"g{number}_")[name]
    code = compile_source(
        joined([one.source for one in sources.values()]), architectures.get(ARCH)
    ).ptx
    kernels = dict(sources)
    *_, product = kernels["right"].launches
    body = _entry(code, product.function)
    for number, (name, edit) in enumerate(IN_PTX.items()):
        mutated = edit(body)
        assert mutated != body
        function = f"m{number}"
        code += mutated.replace(f"{product.function}(", f"{function}(").replace(
            f"{product.function}_param", f"{function}_param"
        )
        launches = (*kernels["right"].launches[:-1], replace(product, function=function))
        kernels[name] = replace(kernels["right"], launches=launches)
    module = emulate(code)
    compile_together(module)
    return Mutants(kernels, module)


def _right(kernel: str, mutants: Mutants) -> bool:
    """Whether a kernel runs without a fault, and gives the reference's bits."""
    arguments = CASE.arguments()
    (want,) = CASE.expected(arguments)
    (out,) = [torch.full(want.shape, 77, dtype=want.dtype)]
    try:
        Emulated(mutants.kernels, mutants.module).run(
            kernel, [*(one.clone() for one in tensors(arguments)), out]
        )
    except Fault:
        return False
    return bool((out == want).all())


def test_the_kernel_is_right(mutants: Mutants) -> None:
    assert _right("right", mutants)


@pytest.mark.parametrize("name", [*IN_PTX, *IN_GENERATOR])
def test_a_mutation_is_found(name: str, mutants: Mutants) -> None:
    assert not _right(name, mutants)
