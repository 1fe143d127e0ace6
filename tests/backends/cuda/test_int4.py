"""Products of 4-bit integers by matrix instructions of 4 bits: the bits of their references, what
stays in bytes, the machine code, and that slips are found."""

import re
from typing import Any

import pytest
from tvm import tirx

from sqcompile.backends.cuda import (
    architectures,
    conv,
    gemm,
    gemm_images,
    gemm_nibbles,
    gemm_shift,
    gemm_stage,
    grid,
)
from sqcompile.backends.cuda.architectures import ARCHITECTURES
from sqcompile.backends.cuda.gemm_operands import Taps
from sqcompile.ops import OPS
from tests.backends.cases import U8, Case, Ranged, Source
from tests.backends.cases_product import SAME, Convolution
from tests.backends.catalogue import all_cases
from tests.backends.cuda.emulated import Emulated, emulated, split_kernels
from tests.backends.cuda.mutations import FIRST, Mutants, Patch, change
from tests.backends.cuda.test_products import LIKE_SM_80, checked, gate
from tests.conftest import require_tool

NAMES = (
    # odd numbers of steps; shifts in two planes of either operand, or of none
    "shift_matmul-s4-s4-G4-nt-0",
    "shift_matmul-s4-s4-G4-tn-1",
    "shift_matmul-u4-s4-G3-nt-0",
    # images: words and copies, phases of a stride, shifts of activations and of gradients
    "conv_fprop_dequantize-9x8x8x16-32x16x3x3-1x1x1x1-4-4",
    "conv_dgrad_dequantize-2x10x10x64-80x64x3x3-2x2x1x1-4-4",
    "conv_fprop_sums-grouped-2x6x6x64-20x64x1x1-2x2x1x1-4-3",
    # gradients of weights: shifts of pixels, a stride, and an epilogue; no shifts
    "conv_wgrad-2x10x10x64-80x64x3x3-2x2x1x1-4-4",
    "conv_wgrad_dequantize-grouped-9x8x8x16-32x16x3x3-1x1x1x1-4-3",
    "conv_wgrad_dequantize-grouped-4x8x8x32-32x32x3x3-1x1x1x1-4-1",
)
BYTES = (
    # one operand is wider
    "shift_matmul-s8-u4-G5-n-0",
    "conv_wgrad_dequantize-grouped-5x9x7x3-5x3x3x3-1x1x1x1-6-3",
)


def _unsigned(s: Source) -> list[Any]:
    """Both operands use all of 4 bits; sums of 64 bits."""
    a, b = (s.integers(0, 15, 3, *size, dtype=U8) for size in ((21, 70), (35, 70)))
    return [a, b, None, 1, False, True, 7]


def _planes(s: Source) -> list[Any]:
    """Planes that are added in memory, as 64-bit sums."""
    a, b = s.integers(-7, 7, 21, 70), s.integers(-7, 7, 35, 70)
    return [a, b, s.integers(0, 4, 1, 70), 5, False, True, 7]


def _halves(s: Source) -> list[Any]:
    """Groups of channels."""
    return Convolution((2, 5, 4, 16), 6, **SAME, groups=2, bits=4).fprop(s)


def _odd(s: Source) -> list[Any]:
    """Channels that are no whole words, and shifts of them."""
    c = Convolution((2, 5, 4, 18), 6, **SAME, groups=2, bits=4, shift_groups=3)
    return [*c.fprop(s), s.integers(0, 2, 1, 1, 1, 18), 3]


def _pixels(s: Source) -> list[Any]:
    """An odd number of pixels, channels that are no whole words, and one tap."""
    return Convolution((3, 5, 7, 6), 10, (1, 1), bits=4, shift_groups=4).wgrad(s)


def _taps(s: Source) -> list[Any]:
    """Groups of channels, dilation, padding, shifts as far as two planes go, sums of 64 bits; both
    operands are signed."""
    shape = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    groups = {"groups": 2, "k_chunk": 3, "shift_groups": 5}
    return Convolution((3, 9, 7, 8), 6, **shape, **groups, bits=4, signed=True).wgrad(s)


def _more() -> dict[str, Case]:
    signed, unsigned = (4, True), (4, False)
    made = {}
    for op, make, kinds in (
        ("shift_matmul", _unsigned, (unsigned, unsigned)),
        ("shift_matmul", _planes, (signed, signed)),
        ("conv_fprop", _halves, (unsigned, signed)),
        ("conv_fprop", _odd, (unsigned, signed)),
        ("conv_wgrad", _pixels, (signed, unsigned)),
        ("conv_wgrad", _taps, (signed, signed)),
    ):
        entry = OPS[f"sq::{op}"]
        name = f"{op}{make.__name__}"
        made[name] = Case(name, entry.target, entry.reference, Ranged(make, kinds))
    return made


MORE = _more()
FOUND = {case.name: case for case in all_cases()} | MORE
CASES = [FOUND[name] for name in (*NAMES, *MORE)]


ON_SM_75 = (
    *(CASES[1], FOUND["shift_matmul_unsigned"]),
    *(FOUND["conv_fprop_halves"], FOUND["conv_wgrad_taps"]),
)
"""Which always run there, by four m8n8k32 for each m16n8k64: of matrices and images, of signed and
unsigned integers, of two planes and one."""


def _emulated(cases: list[Case], arch: str) -> Emulated:
    return emulated({case.name: case.spec() for case in cases}, arch, int4=True)


@pytest.fixture(scope="module")
def on_sm_80() -> Emulated:
    require_tool("g++")
    return _emulated(CASES, "sm_80")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_products_of_nibbles_equal_their_references(case: Case, on_sm_80: Emulated) -> None:
    checked(case, on_sm_80)


@pytest.fixture(scope="module")
def on_sm_75() -> Emulated:
    require_tool("g++")
    return _emulated(list(ON_SM_75), "sm_75")


@pytest.mark.parametrize("case", ON_SM_75, ids=lambda case: case.name)
def test_products_of_nibbles_on_sm_75_equal_their_references(
    case: Case, on_sm_75: Emulated
) -> None:
    source = on_sm_75.kernels[case.name].source.partition('extern "C"')[2]
    assert re.search(r"sq_m8n8k32_[su]4_[su]4", source)
    checked(case, on_sm_75)


@pytest.mark.exhaustive
def test_all_products_of_nibbles_on_sm_75_equal_their_references() -> None:
    require_tool("g++")
    kernels = _emulated(CASES, "sm_75")
    for case in CASES:
        checked(case, kernels)


def _matrices(name: str, arch: str, int4: bool = True) -> set[str]:
    """The types of the operands that a case's product multiplies."""
    kernel = split_kernels({name: FOUND[name].spec()}, arch, int4=int4)[name]
    body = kernel.source.partition('extern "C"')[2]
    return set(re.findall(r"sq_m\d+n\d+k\d+_([su]\d)_([su]\d)", body))


def test_four_bits_are_an_option_of_architectures_that_have_them() -> None:
    name = NAMES[2]
    assert _matrices(name, "sm_80") == {("u4", "u4"), ("u4", "s4")}
    assert _matrices(name, "sm_80", int4=False) == {("u8", "s8")}
    assert _matrices(name, "sm_90") == {("u8", "s8")}


@pytest.mark.parametrize("name", BYTES)
def test_what_stays_in_bytes(name: str) -> None:
    assert {kind[1] for pair in _matrices(name, "sm_80") for kind in pair} == {"8"}


def test_three_planes_stay_in_bytes() -> None:
    """s4 << 5 takes nine bits."""
    with architectures.cuda_target(architectures.get("sm_80"), int4=True):
        for groups, fits in ((5, True), (6, False)):
            shares = gemm_shift.divided(((-8, 7), (-8, 7)), groups, (1, 2), gemm_shift.NIBBLE)
            assert gemm_nibbles.fit(((-8, 7), (-8, 7)), shares) == fits


def test_nibbles_use_tensor_cores_and_spill_nothing(on_sm_80: Emulated, on_sm_75: Emulated) -> None:
    gate(on_sm_80.kernels, "sm_80", "IMMA.16864")
    gate(on_sm_75.kernels, "sm_75", "IMMA.8832")


@pytest.mark.exhaustive
@pytest.mark.parametrize("arch", LIKE_SM_80)
def test_nibbles_on_newer_architectures_spill_nothing(arch: str) -> None:
    specs = {case.name: case.spec() for case in CASES}
    gate(split_kernels(specs, arch, int4=True), arch, "IMMA.16864")


def test_the_option_has_code_of_its_own() -> None:
    from sqcompile.backends import targets
    from sqcompile.backends.cuda.build import identity

    plain, four = (targets.get("cuda", arch="sm_80", int4=one) for one in (False, True))
    assert identity(plain) != identity(four)
    assert not ARCHITECTURES["sm_80"].int4
    with four.machines()[0].compiled_for():
        assert architectures.current().int4


MUTATED = FOUND["conv_fprop_sums-grouped-2x6x6x64-20x64x1x1-2x2x1x1-4-3"]
_WORD = gemm_shift.word_of
_JOINED = gemm_stage.nibbles
IN_PTX = {"an unsigned operand as signed": change(r"\.s32\.u4\.", lambda _: ".s32.s4.", FIRST)}
IN_GENERATOR = {
    "pairs in another order": Patch(
        gemm_shift, "word_of", lambda v, *rest: _WORD([v[i ^ 1] for i in range(8)], *rest)
    ),
    "the high plane a byte on": Patch(
        gemm_shift, "word_of", lambda v, plane, bits: _WORD(v, 2 * plane, bits)
    ),
    "the second pixels of pairs lost": Patch(
        gemm_images, "_joined", lambda word: tirx.bitwise_and(word, grid.const(0xFFFF, "uint32"))
    ),
    "low planes signed": Patch(gemm.Gemm, "kinds", lambda self, plane: ("u4", "s4")),
    "all operands signed": Patch(conv, "signs", lambda *_: (True, True)),
    "signs of planes exchanged": Patch(
        gemm.Gemm, "kinds", lambda self, plane: ("u4", "s4" if not plane else "u4")
    ),
}


@pytest.fixture(scope="module")
def mutants() -> Mutants:
    require_tool("g++")
    return Mutants.of(MUTATED, "sm_80", IN_PTX, IN_GENERATOR, int4=True)


def test_the_kernel_is_right(mutants: Mutants) -> None:
    assert mutants.right("right")


@pytest.mark.parametrize("name", [*IN_PTX, *IN_GENERATOR])
def test_a_mutation_is_found(name: str, mutants: Mutants) -> None:
    assert not mutants.right(name)


OF_PIXELS = {
    "pixels of a pair exchanged": Patch(
        gemm_stage, "nibbles", lambda low, high: _JOINED(high, low)
    ),
    "the second pixels of pairs lost": Patch(
        gemm_stage, "nibbles", lambda low, high: _JOINED(low, grid.zero("int32"))
    ),
    "signs that leave their nibble": Patch(
        gemm_stage, "nibbles", lambda low, high: grid.keep(tirx.bitwise_or(low, high * 16))
    ),
    "pixels one to a byte": Patch(conv, "Taps", lambda x, g, per_byte: Taps(x, g)),
}


@pytest.fixture(scope="module")
def mutants_of_pixels() -> Mutants:
    require_tool("g++")
    return Mutants.of(MORE["conv_wgrad_taps"], "sm_80", {}, OF_PIXELS, int4=True)


def test_the_kernel_of_pixels_is_right(mutants_of_pixels: Mutants) -> None:
    assert mutants_of_pixels.right("right")


@pytest.mark.parametrize("name", OF_PIXELS)
def test_a_mutation_of_pixels_is_found(name: str, mutants_of_pixels: Mutants) -> None:
    assert not mutants_of_pixels.right(name)
