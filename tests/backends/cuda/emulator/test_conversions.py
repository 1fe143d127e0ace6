"""cvt: every pair of types, rounding and clamping."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.backends.cuda.emulator import exact
from tests.backends.cuda.emulator.ptx import edges, evaluate
from tests.backends.cuda.emulator.test_floats import bits_of, edge_floats, flushed, same_bits

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]
WIDTHS = {"8": "2", "16": "2", "32": "4", "64": "8"}


def limits(kind):
    bits = int(kind[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def register(value, kind):
    """What a register of 16 bits or more holds of a value of the type, unsigned."""
    bits = int(kind[1:])
    value %= 1 << bits
    if kind[0] == "s" and value >> (bits - 1):
        value -= 1 << bits
    return value % (1 << max(bits, 16))


@pytest.mark.parametrize("source", ["s8", "u8", "u16", "s32", "u32", "s64"])
def test_between_integers(source):
    bits = int(source[1:])
    a = edges(bits, source[0] == "s", 20).astype(f"{'i' if source[0] == 's' else 'u'}{bits // 8}")
    operations = {}
    for kind in INTEGERS:
        dtype = f"u{WIDTHS[kind[1:]]}"
        operations[kind] = (f"cvt.{kind}.{source} %out, %a;", dtype)
        operations[f"sat {kind}"] = (f"cvt.sat.{kind}.{source} %out, %a;", dtype)
    results = evaluate(operations, a=a)
    for kind in INTEGERS:
        low, high = limits(kind)
        values = [int(value) for value in a]
        assert results[kind].tolist() == [register(value, kind) for value in values], kind
        clamped = [register(min(max(value, low), high), kind) for value in values]
        assert results[f"sat {kind}"].tolist() == clamped, kind


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_floats_to_integers(mode, source):
    """Out of range clamps; NaN is 0, or the top bit alone where one side has 64 bits."""
    near = [x + d for x in (-(2**31), 2**31, 2**32, 127, -128, 255, 65535, 2**63, 2**64) for d in
            (-1, -0.5, 0, 0.5, 1)]  # fmt: skip
    a = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1e-40, -1e-40, 3e38, math.inf, -math.inf, *near])
    a = np.append(a, math.nan).astype("f4" if source == "f32" else "f8")
    operations = {
        kind: (f"cvt.{mode}.{kind}.{source} %out, %a;", f"u{WIDTHS[kind[1:]]}") for kind in INTEGERS
    }
    results = evaluate(operations, a=a)
    for kind in INTEGERS:
        low, high = limits(kind)
        bits = int(kind[1:])
        wanted = []
        for value in a.tolist():
            if value != value:
                top = source == "f64" or bits == 64
                wanted.append(register(1 << (bits - 1), kind) if top else 0)
            elif math.isinf(value):
                wanted.append(register(high if value > 0 else low, kind))
            else:
                rounded = exact.whole(Fraction(value), mode[:2])
                wanted.append(register(min(max(rounded, low), high), kind))
        assert results[kind].tolist() == wanted, kind


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64", "s8"])
def test_integers_to_floats(mode, source):
    bits = int(source[1:])
    a = edges(bits, source[0] == "s", 40)
    close = [n + d for n in (2**24, 2**25, 2**53, 2**54) if n < 2 ** (bits - 1) for d in (-1, 1, 3)]
    a = np.concatenate([a, np.array(close, a.dtype)])
    forms = {"f32": (exact.F32, np.float32), "f64": (exact.F64, np.float64)}
    operations = {
        kind: (f"cvt.{mode}.{kind}.{source} %out, %a;", dtype) for kind, (_, dtype) in forms.items()
    }
    results = evaluate(operations, a=a)
    for kind, (form, dtype) in forms.items():
        wanted = [exact.rounded(Fraction(int(v)), mode, form) if v else 0.0 for v in a]
        assert np.array_equal(results[kind], np.array(wanted, dtype)), kind


def test_floats_to_whole_floats():
    near = np.array([0.5, 1.5, 2.5, -0.5, 8388607.5, -8388609, 0.49999997, -0.49999997], "f4")
    a = np.concatenate([edge_floats(), near])
    operations = {
        f"{mode}{ftz}": (f"cvt.{mode}{ftz}.f32.f32 %out, %a;", np.float32)
        for mode in ("rni", "rzi", "rmi", "rpi")
        for ftz in ("", ".ftz")
    }
    results = evaluate(operations, a=a)
    for name, got in results.items():
        wanted = []
        for value in a.tolist():
            value = flushed(value) if "ftz" in name else value
            if not exact.special(value):
                value = math.copysign(exact.whole(Fraction(value), name[:2]), value)
            wanted.append(bits_of(value))
        same_bits(got, wanted, a)


def test_saturating_and_flushing_copies():
    a = edge_floats()
    operations = {
        "sat": ("cvt.sat.f32.f32 %out, %a;", np.float32),
        "ftz": ("cvt.ftz.f32.f32 %out, %a;", np.float32),
    }
    results = evaluate(operations, a=a)
    clamped = [0.0 if x != x or x <= 0 else min(x, 1.0) for x in a.tolist()]
    same_bits(results["sat"], [bits_of(x) for x in clamped], a)
    same_bits(results["ftz"], [bits_of(flushed(x)) for x in a.tolist()], a)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_doubles_to_floats_and_back(mode):
    a = np.array([1 / 3, -1 / 3, 1e300, -1e300, 1e-42, 3e-46, 1.0000000596046448, 0.0, -0.0, 65505])
    operations = {
        "f32": (f"cvt.{mode}.f32.f64 %out, %a;", np.float32),
        "f16": (f"cvt.{mode}.f16.f64 %out, %a;", np.uint16),
        "back": (f"cvt.{mode}.f32.f64 %f0, %a; cvt.f64.f32 %out, %f0;", np.float64),
    }
    results = evaluate(operations, a=a)
    for name, form in (("f32", exact.F32), ("f16", exact.F16)):
        wanted = [exact.rounded(Fraction(x), mode, form) if x else x for x in a.tolist()]
        got = results[name].view("f2") if name == "f16" else results[name]
        assert np.array_equal(got, np.array(wanted, got.dtype)), name
        assert np.array_equal(np.signbit(got), np.signbit(a)), name
    assert np.array_equal(results["back"], results["f32"].astype("f8"))


def test_every_half():
    halves = np.arange(2**16, dtype="u2")
    operations = {
        "f32": ("cvt.f32.f16 %out, %a;", np.float32),
        "back": ("cvt.f32.f16 %f0, %a; cvt.rn.f16.f32 %out, %f0;", np.uint16),
    }
    results = evaluate(operations, a=halves)
    wanted = halves.view("f2").astype("f4")
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(results["f32"]), nan)
    assert np.array_equal(results["f32"].view("u4")[~nan], wanted.view("u4")[~nan])
    assert np.array_equal(results["back"][~nan], halves[~nan])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_floats_to_halves(mode):
    generator = np.random.default_rng(2)
    a = generator.standard_normal(400).astype("f4") * np.float32(2) ** generator.integers(
        -30, 20, 400
    )
    a = np.concatenate([a.astype("f4"), edge_floats(), np.array([65504, 65519, 65520, 6e-8], "f4")])
    results = evaluate({"f16": (f"cvt.{mode}.f16.f32 %out, %a;", np.uint16)}, a=a)
    got = results["f16"].view("f2")
    for value, half in zip(a.tolist(), got.tolist(), strict=True):
        wanted = value if exact.special(value) or not value else None
        wanted = exact.rounded(Fraction(value), mode, exact.F16) if wanted is None else wanted
        assert half == wanted or (half != half and wanted != wanted), (value, half, wanted)


def test_packed_conversions():
    a = np.array([300, -300, 5, -5, 127, -128], "i4")
    b = np.array([7, 255, 256, -1, 0, 70000], "i4")
    c = np.array([0x11223344] * 6, "u4")
    operations = {
        "s8": ("cvt.pack.sat.s8.s32.b32 %out, %a, %b, %c;", np.uint32),
        "u8": ("cvt.pack.sat.u8.s32.b32 %out, %a, %b, %c;", np.uint32),
        "s16": ("cvt.pack.sat.s16.s32 %out, %a, %b;", np.uint32),
    }
    results = evaluate(operations, a=a, b=b, c=c)
    for kind in ("s8", "u8"):
        low, high = limits(kind)
        first, second = (np.clip(x, low, high).astype("i8") & 255 for x in (a, b))
        assert np.array_equal(results[kind], 0x33440000 | first << 8 | second), kind
    first, second = (np.clip(x, -32768, 32767).astype("i8") & 65535 for x in (a, b))
    assert np.array_equal(results["s16"], first << 16 | second)
