"""What is wrong in a product is found: by the emulator's checks, or by comparison. Mutations of the
PTX are slips of synchronisation and fragments, mutations of the generator those of bounds, shifts
and tails."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sqcompile.backends.cuda import gemm, gemm_operands, gemm_shift, products
from tests.backends.catalogue import all_cases
from tests.backends.cuda.mutations import FIRST, Edit, Mutants, Patch, change, drop
from tests.conftest import require_tool

ARCH = "sm_80"
NAME = "shift_matmul-s4-s4-G4-nt-0"
"""m = 83, n = 70, k = 91: two tiles of k, tails everywhere; one operand is gathered, the other is
shifted, packed and copied."""
CASE = next(case for case in all_cases() if case.name == NAME)

_MMA = r"mma\.sync\.\S+ \{(.*?)\}, \{(.*?)\}, \{(.*?)\}, \{(.*?)\};"


def _product(order: Callable[[list[str], list[str], list[str]], tuple[Any, ...]]) -> Edit:
    """Change the registers of the first matrix instruction: order(c, a, b) gives new ones."""

    def to(found: re.Match[str]) -> str:
        c, a, b = (found[i].split(", ") for i in (1, 2, 3))
        c, a, b = order(c, a, b)
        parts = [", ".join(one) for one in (c, a, b, c)]
        return found[0].split(" {")[0] + " " + ", ".join(f"{{{one}}}" for one in parts) + ";"

    return change(_MMA, to, FIRST)


IN_PTX: dict[str, Edit] = {
    "no barrier before a tile is read": drop(r"bar\.sync\s+0;", slice(0, -2)),
    "no barrier before results are spread": drop(r"bar\.sync\s+0;", slice(-2, -1)),
    "no barrier before results are read": drop(r"bar\.sync\s+0;", slice(-1, None)),
    "no wait for copies": drop(r"cp\.async\.wait_group 1;"),
    "too short a wait for copies": change(r"wait_group 1;", lambda _: "wait_group 2;"),
    "copies in no group": drop(r"cp\.async\.commit_group;"),
    "rows of a fragment exchanged": _product(lambda c, a, b: (c, [a[1], a[0], *a[2:]], b)),
    "halves of a fragment exchanged": _product(lambda c, a, b: (c, a, b[::-1])),
    "results in the wrong rows": _product(lambda c, a, b: (c[2:] + c[:2], a, b)),
    "a signed operand as unsigned": change(
        r"\.s32\.s8\.s8\.s32", lambda _: ".s32.u8.s8.s32", FIRST
    ),
    "one fragment read twice": change(
        r"(ldmatrix\S+ \{.*?\}, \[)(%r\d+)(\];[\s\S]*?ldmatrix\S+ \{.*?\}, \[)(%r\d+)(\];)",
        lambda found: found[1] + found[2] + found[3] + found[2] + found[5],
        FIRST,
    ),
    "a word stored nowhere": drop(r"st\.shared\.b32 \[%r\d+\], %r\d+;", FIRST),
}


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
        lambda a, b, *rest: replace(gemm.Gemm(a, b, *rest), a=[b[0]], b=[a[0]]),
    ),
}


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    require_tool("g++")
    return Mutants.of(CASE, ARCH, IN_PTX, IN_GENERATOR)


def test_the_kernel_is_right(mutants: Mutants) -> None:
    assert mutants.right("right")


@pytest.mark.parametrize("name", [*IN_PTX, *IN_GENERATOR])
def test_a_mutation_is_found(name: str, mutants: Mutants) -> None:
    assert not mutants.right(name)
