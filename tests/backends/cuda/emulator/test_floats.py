"""Float instructions against exact arithmetic: every rounding mode, subnormals, NaN."""

import math
import struct

import numpy as np
import pytest

from tests.backends.cuda.emulator import exact
from tests.backends.cuda.emulator.ptx import crossed, evaluate

CANONICAL = 0x7FFFFFFF
EDGES = [
    *(0x00000000, 0x00000001, 0x00000003, 0x007FFFFF, 0x00800000, 0x00800001, 0x01000000),
    *(0x33800000, 0x34000001, 0x3EAAAAAB, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x3FC00000),
    *(0x40400000, 0x4B000001, 0x4B7FFFFF, 0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7FC00123),
]
"""Bits of f32: zeros, subnormals, around 1, where ulps are 1, the largest, infinity, a NaN."""


def edge_floats():
    bits = np.array(EDGES, "u4")
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view("f4")


def flushed(value):
    return math.copysign(0.0, value) if value == value and 0 < abs(value) < 2.0**-126 else value


def flush_all(values):
    """flushed, of an array."""
    return np.where(
        (values.view("u4") & 0x7F800000) == 0, np.copysign(np.float32(0), values), values
    )


def bits_of(value):
    return CANONICAL if value != value else struct.unpack("<I", struct.pack("<f", value))[0]


def same_bits(results, wanted, *operands):
    """Results as f32 are the wanted bits; a failure shows the operands."""
    got = results.view("u4")
    wrong = np.flatnonzero(got != np.array(wanted, "u4"))
    first = wrong[0] if len(wrong) else 0
    shown = [hex(operand.view("u4")[first]) for operand in operands]
    assert not len(wrong), (len(wrong), shown, hex(got[first]), hex(wanted[first]))


@pytest.mark.parametrize("mode", ["", "rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("ftz", [False, True])
def test_sums_and_products(mode, ftz):
    a, b = crossed(edge_floats(), edge_floats())
    c = np.roll(a, 17)
    suffix = (f".{mode}" if mode else "") + (".ftz" if ftz else "") + ".f32"
    names = {"add": 2, "sub": 2, "mul": 2}
    if mode:
        names |= {"div": 2, "fma": 3}
    operations = {
        name: (f"{name}{suffix} %out, {', '.join(['%a', '%b', '%c'][:count])};", np.float32)
        for name, count in names.items()
    }
    results = evaluate(operations, a=a, b=b, c=c)
    clean = flushed if ftz else float
    for name, count in names.items():
        wanted = []
        for row in zip(*(x.tolist() for x in (a, b, c)[:count]), strict=True):
            function = getattr(exact, name)
            wanted.append(bits_of(clean(function(*map(clean, row), mode or "rn", exact.F32))))
        same_bits(results[name], wanted, a, b, c)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_roots_and_reciprocals(mode):
    generator = np.random.default_rng(3)
    some = generator.integers(0, 2**31, 300, dtype="u4").view("f4")
    a = np.concatenate([edge_floats(), some])
    operations = {
        "sqrt": (f"sqrt.{mode}.f32 %out, %a;", np.float32),
        "sqrt.ftz": (f"sqrt.{mode}.ftz.f32 %out, %a;", np.float32),
        "rcp": (f"rcp.{mode}.f32 %out, %a;", np.float32),
    }
    results = evaluate(operations, a=a)
    values = a.tolist()
    same_bits(results["sqrt"], [bits_of(exact.sqrt(x, mode, exact.F32)) for x in values], a)
    wanted = [bits_of(exact.sqrt(flushed(x), mode, exact.F32)) for x in values]
    same_bits(results["sqrt.ftz"], wanted, a)
    same_bits(results["rcp"], [bits_of(exact.div(1.0, x, mode, exact.F32)) for x in values], a)


def test_numpy_agrees():
    """The rational arithmetic that the others trust, against the CPU's."""
    generator = np.random.default_rng(11)
    a, b = generator.integers(0, 2**32, (2, 500), dtype="u4").view("f4")
    with np.errstate(all="ignore"):
        pairs = {"add": a + b, "mul": a * b, "div": a / b}
    for name, wanted in pairs.items():
        got = [
            getattr(exact, name)(x, y, "rn", exact.F32)
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        assert np.array_equal(np.array(got, "f4"), wanted, equal_nan=True), name
    with np.errstate(all="ignore"):
        roots = np.sqrt(np.abs(a))
    got = [exact.sqrt(abs(x), "rn", exact.F32) for x in a.tolist()]
    assert np.array_equal(np.array(got, "f4"), roots, equal_nan=True)


def test_saturation_to_the_unit_interval():
    a, b = crossed(edge_floats(), np.array([1.0, -1.0, 0.25], "f4"))
    operations = {
        "mul.sat": ("mul.rn.sat.f32 %out, %a, %b;", np.float32),
        "add.ftz.sat": ("add.rn.ftz.sat.f32 %out, %a, %b;", np.float32),
    }
    results = evaluate(operations, a=a, b=b)

    def clamped(value):
        return 0.0 if value != value or value <= 0 else min(value, 1.0)

    rows = list(zip(a.tolist(), b.tolist(), strict=True))
    wanted = [bits_of(clamped(exact.mul(x, y, "rn", exact.F32))) for x, y in rows]
    same_bits(results["mul.sat"], wanted, a, b)
    wanted = [
        bits_of(flushed(clamped(exact.add(flushed(x), flushed(y), "rn", exact.F32))))
        for x, y in rows
    ]
    same_bits(results["add.ftz.sat"], wanted, a, b)


def test_minima_and_maxima():
    a, b = crossed(edge_floats(), edge_floats())

    def order(value):
        return value, not exact.is_negative(value)

    def pick(x, y, chooser, nan_wins):
        if x != x or y != y:
            return math.nan if nan_wins or (x != x and y != y) else (y if x != x else x)
        return chooser(x, y, key=order)

    operations = {
        f"{name}{flags}": (f"{name}{flags}.f32 %out, %a, %b;", np.float32)
        for name in ("min", "max")
        for flags in ("", ".ftz", ".NaN", ".ftz.NaN")
    }
    results = evaluate(operations, a=a, b=b)
    for name, got in results.items():
        clean = flushed if "ftz" in name else float
        chooser = min if "min" in name else max
        wanted = [
            bits_of(pick(clean(x), clean(y), chooser, "NaN" in name))
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        same_bits(got, wanted, a, b)


def test_signs():
    a, b = crossed(edge_floats(), edge_floats())
    operations = {
        "neg": ("neg.f32 %out, %a;", np.float32),
        "abs": ("abs.f32 %out, %a;", np.float32),
        "abs.ftz": ("abs.ftz.f32 %out, %a;", np.float32),
        "copysign": ("copysign.f32 %out, %a, %b;", np.float32),
    }
    results = evaluate(operations, a=a, b=b)
    values = a.tolist()
    same_bits(results["neg"], [bits_of(-x) for x in values], a)
    same_bits(results["abs"], [bits_of(abs(x)) for x in values], a)
    same_bits(results["abs.ftz"], [bits_of(flushed(abs(x))) for x in values], a)
    sign, magnitude = a.view("u4") & 0x80000000, b.view("u4") & 0x7FFFFFFF
    assert np.array_equal(results["copysign"].view("u4"), sign | magnitude)


ORDERED = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_comparisons(ftz):
    """Ordered ones are false with a NaN, those with u true."""
    a, b = crossed(edge_floats(), edge_floats())
    names = [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]
    operations = {name: (f"setp.{name}{ftz}.f32 %out, %a, %b;", bool) for name in names}
    operations["set.f32"] = (f"set.lt{ftz}.f32.f32 %out, %a, %b;", np.float32)
    results = evaluate(operations, a=a, b=b)
    clean = flush_all if ftz else np.array
    x, y = clean(a), clean(b)
    nan = np.isnan(x) | np.isnan(y)
    for name, compare in ORDERED.items():
        assert np.array_equal(results[name], compare(x, y) & ~nan), name
        assert np.array_equal(results[f"{name}u"], compare(x, y) | nan), name
    assert np.array_equal(results["num"], ~nan)
    assert np.array_equal(results["nan"], nan)
    assert np.array_equal(results["set.f32"], np.where((x < y) & ~nan, 1.0, 0.0))


def test_kinds_of_floats():
    a = edge_floats()
    names = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    operations = {name: (f"testp.{name}.f32 %out, %a;", bool) for name in names}
    results = evaluate(operations, a=a)
    exponent, fraction = a.view("u4") >> 23 & 255, a.view("u4") & 0x7FFFFF
    wanted = {
        "finite": exponent < 255,
        "infinite": (exponent == 255) & (fraction == 0),
        "number": (exponent < 255) | (fraction == 0),
        "notanumber": (exponent == 255) & (fraction > 0),
        "normal": (exponent > 0) & (exponent < 255),
        "subnormal": (exponent == 0) & (fraction > 0),
    }
    for name in names:
        assert np.array_equal(results[name], wanted[name]), name


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_doubles(mode):
    values = [0.0, -0.0, 5e-324, 2.2e-308, 1.0, -1.0, 1 / 3, 1e300, -1.7e308, math.inf]
    a, b = crossed(np.array(values), np.array(values))
    names = ("add", "sub", "mul", "div")
    operations = {name: (f"{name}.{mode}.f64 %out, %a, %b;", np.float64) for name in names}
    operations["fma"] = (f"fma.{mode}.f64 %out, %a, %b, %a;", np.float64)
    operations["sqrt"] = (f"sqrt.{mode}.f64 %out, %a;", np.float64)
    operations["min"] = ("min.f64 %out, %a, %b;", np.float64)
    results = evaluate(operations, a=a, b=b)
    rows = list(zip(a.tolist(), b.tolist(), strict=True))
    wanted = {
        name: [getattr(exact, name)(x, y, mode, exact.F64) for x, y in rows] for name in names
    }
    wanted["fma"] = [exact.fma(x, y, x, mode, exact.F64) for x, y in rows]
    wanted["sqrt"] = [exact.sqrt(x, mode, exact.F64) for x in a.tolist()]
    wanted["min"] = [min(x, y, key=lambda v: (v, not exact.is_negative(v))) for x, y in rows]
    for name, column in wanted.items():
        column = np.array(column)
        nan = np.isnan(column)
        assert np.array_equal(np.isnan(results[name]), nan), name
        assert np.array_equal(results[name].view("u8")[~nan], column.view("u8")[~nan]), name
