"""Integer instructions against Python's integers, which do not wrap by themselves."""

import numpy as np
import pytest

from tests.backends.cuda.emulator.ptx import crossed, edges, evaluate

TYPES = ["u16", "s16", "u32", "s32", "u64", "s64"]


def dtype_of(kind):
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")


def wrapped(value, kind):
    """A value modulo the width of a type."""
    bits = int(kind[1:])
    value %= 1 << bits
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def clamped(value, kind):
    info = np.iinfo(dtype_of(kind))
    return min(max(value, int(info.min)), int(info.max))


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def expect(results, references, arrays, kinds):
    """results[name] holds references[name](*elements), wrapped to kinds[name]."""
    columns = [[int(value) for value in array] for array in arrays]
    for name, reference in references.items():
        wanted = [wrapped(reference(*row), kinds[name]) for row in zip(*columns, strict=True)]
        got = [int(value) for value in results[name]]
        wrong = [i for i, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1]]
        assert not wrong, (name, [c[wrong[0]] for c in columns], got[wrong[0]], wanted[wrong[0]])


@pytest.mark.parametrize("kind", TYPES)
def test_sums_products_and_choices(kind):
    bits, dtype = int(kind[1:]), dtype_of(kind)
    one = edges(bits, kind[0] == "s")
    a, b = crossed(one, one)
    c = np.roll(a, 3)
    references = {
        "add": lambda a, b, c: a + b,
        "sub": lambda a, b, c: a - b,
        "mul.lo": lambda a, b, c: a * b,
        "mul.hi": lambda a, b, c: a * b >> bits,
        "min": lambda a, b, c: min(a, b),
        "max": lambda a, b, c: max(a, b),
        "mad.lo": lambda a, b, c: a * b + c,
        "mad.hi": lambda a, b, c: (a * b >> bits) + c,
        "sad": lambda a, b, c: c + abs(a - b),
    }
    if kind[0] == "s":
        references |= {"neg": lambda a, b, c: -a, "abs": lambda a, b, c: abs(a)}
    counts = {"mad.lo": 3, "mad.hi": 3, "sad": 3, "neg": 1, "abs": 1}
    operations = {
        name: (
            f"{name}.{kind} %out, {', '.join(['%a', '%b', '%c'][: counts.get(name, 2)])};",
            dtype,
        )
        for name in references
    }
    results = evaluate(operations, a=a, b=b, c=c)
    expect(results, references, (a, b, c), dict.fromkeys(references, kind))


@pytest.mark.parametrize("kind", TYPES)
def test_quotients(kind):
    one = edges(int(kind[1:]), kind[0] == "s")
    a, b = crossed(one, one)
    fits = (b != 0) & ~((b.astype(object) == -1) & (a == np.iinfo(a.dtype).min))
    a, b = a[fits], b[fits]
    references = {"div": quotient, "rem": lambda a, b: a - b * quotient(a, b)}
    operations = {name: (f"{name}.{kind} %out, %a, %b;", a.dtype) for name in references}
    results = evaluate(operations, a=a, b=b)
    expect(results, references, (a, b), dict.fromkeys(references, kind))


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products(kind):
    one, wide = edges(int(kind[1:]), kind[0] == "s"), f"{kind[0]}{int(kind[1:]) * 2}"
    a, b = crossed(one, one)
    c = np.resize(edges(int(wide[1:]), kind[0] == "s"), len(a))
    references = {"mul": lambda a, b, c: a * b, "mad": lambda a, b, c: a * b + c}
    operations = {
        "mul": (f"mul.wide.{kind} %out, %a, %b;", dtype_of(wide)),
        "mad": (f"mad.wide.{kind} %out, %a, %b, %c;", dtype_of(wide)),
    }
    results = evaluate(operations, a=a, b=b, c=c)
    expect(results, references, (a, b, c), dict.fromkeys(references, wide))


def test_saturating_and_24_bit_forms():
    one = edges(32, True)
    a, b = crossed(one, one)
    low24 = lambda x: ((x & 0xFFFFFF) ^ 0x800000) - 0x800000  # noqa: E731
    references = {
        "add.sat.s32": lambda a, b: clamped(a + b, "s32"),
        "sub.sat.s32": lambda a, b: clamped(a - b, "s32"),
        "mul24.lo.s32": lambda a, b: low24(a) * low24(b),
        "mul24.hi.s32": lambda a, b: low24(a) * low24(b) >> 16,
        "mul24.lo.u32": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
        "mul24.hi.u32": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16,
    }
    operations = {name: (f"{name} %out, %a, %b;", np.int32) for name in references}
    results = evaluate(operations, a=a, b=b)
    expect(results, references, (a, b), dict.fromkeys(references, "s32"))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64", "u16", "s16"])
def test_shifts_by_any_amount(kind):
    bits, dtype = int(kind[1:]), dtype_of(kind)
    a, n = crossed(
        edges(bits, kind[0] == "s"), np.array([0, 1, bits - 1, bits, 64, 255, 2**31], "u4")
    )
    references = {
        "shl": lambda a, n: a << min(n, bits),
        "shr": lambda a, n: a >> min(n, bits),
        "shr.b": lambda a, n: (a % (1 << bits)) >> min(n, bits),
    }
    operations = {
        "shl": (f"shl.b{bits} %out, %a, %n;", dtype),
        "shr": (f"shr.{kind} %out, %a, %n;", dtype),
        "shr.b": (f"shr.b{bits} %out, %a, %n;", dtype),
    }
    results = evaluate(operations, a=a, n=n)
    expect(results, references, (a, n), dict.fromkeys(references, kind))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    a, b = crossed(edges(bits, False), edges(bits, False))
    mask = (1 << bits) - 1
    references = {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "not": lambda a, b: a ^ mask,
        "cnot": lambda a, b: int(a == 0),
    }
    operations = {
        name: (f"{name}.b{bits} %out, %a{'' if 'not' in name else ', %b'};", a.dtype)
        for name in references
    }
    results = evaluate(operations, a=a, b=b)
    expect(results, references, (a, b), dict.fromkeys(references, f"u{bits}"))


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    a = np.concatenate([edges(bits, False, 40), np.uint64(1) << np.arange(bits, dtype="u8")])
    a = a.astype(f"u{bits // 8}")
    text = lambda a: format(a, f"0{bits}b")  # noqa: E731
    references = {
        "clz": lambda a: bits - a.bit_length(),
        "popc": lambda a: text(a).count("1"),
        "brev": lambda a: int(text(a)[::-1], 2),
        "bfind.u": lambda a: a.bit_length() - 1,
        "bfind.shiftamt.u": lambda a: bits - a.bit_length() if a else -1,
    }
    operations = {
        name: (f"{name}{'' if name[-1] == 'u' else '.b'}{bits} %out, %a;", np.uint32)
        for name in references
    }
    operations["brev"] = (f"brev.b{bits} %out, %a;", a.dtype)
    results = evaluate(operations, a=a)
    expect(results, references, (a,), dict.fromkeys(references, "u32") | {"brev": f"u{bits}"})


@pytest.mark.parametrize("bits", [32, 64])
def test_the_highest_bit_that_is_no_sign(bits):
    a = edges(bits, True, 40)
    magnitude = lambda a: ~a if a < 0 else a  # noqa: E731
    references = {
        "bfind": lambda a: magnitude(a).bit_length() - 1,
        "bfind.shiftamt": lambda a: bits - magnitude(a).bit_length() if magnitude(a) else -1,
    }
    operations = {name: (f"{name}.s{bits} %out, %a;", np.uint32) for name in references}
    expect(evaluate(operations, a=a), references, (a,), dict.fromkeys(references, "u32"))


def field(a, position, length, bits, signed):
    """bfe, bit by bit as the ISA writes it."""
    a, position, length, top = a % (1 << bits), position & 255, length & 255, bits - 1
    sign = (a >> min(position + length - 1, top)) & 1 if signed and length else 0
    picked = [
        (a >> (position + i)) & 1 if i < length and position + i <= top else sign
        for i in range(bits)
    ]
    return sum(bit << i for i, bit in enumerate(picked))


def inserted(a, b, position, length, bits):
    position, length, result = position & 255, length & 255, b
    for i in range(length):
        if position + i < bits:
            result &= ~(1 << position + i)
            result |= ((a >> i) & 1) << position + i
    return result


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind):
    bits = int(kind[1:])
    places = np.array([0, 1, 5, bits // 2, bits - 1, bits, bits + 9, 255, 256, 259], "u4")
    some = edges(bits, kind[0] == "s", 3)
    a, position, length = crossed(some, places, places)
    b = np.roll(a, 11)
    references = {
        "bfe": lambda a, b, p, n: field(a, p, n, bits, kind[0] == "s"),
        "bfi": lambda a, b, p, n: inserted(a % (1 << bits), b % (1 << bits), p, n, bits),
    }
    operations = {
        "bfe": (f"bfe.{kind} %out, %a, %p, %n;", a.dtype),
        "bfi": (f"bfi.b{bits} %out, %a, %b, %p, %n;", a.dtype),
    }
    operations = {n: (t.replace("%p,", "%at,"), d) for n, (t, d) in operations.items()}
    results = evaluate(operations, a=a, b=b, at=position, n=length)
    expect(results, references, (a, b, position, length), dict.fromkeys(references, kind))


def test_funnel_shifts():
    words = edges(32, False, 4)
    a, b, n = crossed(words, words, np.array([0, 1, 8, 31, 32, 33, 63, 64, 255], "u4"))
    both = lambda a, b: b << 32 | a  # noqa: E731
    references = {
        "shf.l.wrap.b32": lambda a, b, n: both(a, b) << (n & 31) >> 32,
        "shf.l.clamp.b32": lambda a, b, n: both(a, b) << min(n, 32) >> 32,
        "shf.r.wrap.b32": lambda a, b, n: both(a, b) >> (n & 31),
        "shf.r.clamp.b32": lambda a, b, n: both(a, b) >> min(n, 32),
    }
    operations = {name: (f"{name} %out, %a, %b, %n;", np.uint32) for name in references}
    results = evaluate(operations, a=a, b=b, n=n)
    expect(results, references, (a, b, n), dict.fromkeys(references, "u32"))


PERMUTATIONS = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}
"""The ISA's table: the source byte of d's bytes 3, 2, 1, 0 for each value of c's low bits."""


def test_permuted_bytes():
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, 2**32, 512, dtype="u4") for _ in range(2))
    c = np.concatenate([np.arange(256), rng.integers(0, 2**32, 256)]).astype("u4")

    def generic(a, b, c):
        source, result = (b << 32 | a).to_bytes(8, "little"), []
        for i in range(4):
            choice = c >> 4 * i & 15
            byte = source[choice & 7]
            result.append((255 if byte & 128 else 0) if choice & 8 else byte)
        return int.from_bytes(bytes(result), "little")

    def named(mode):
        def permute(a, b, c):
            source = (b << 32 | a).to_bytes(8, "little")
            order = PERMUTATIONS[mode][c & 3]
            return int.from_bytes(bytes(source[int(i)] for i in reversed(order)), "little")

        return permute

    references = {"prmt.b32": generic} | {f"prmt.b32.{m}": named(m) for m in PERMUTATIONS}
    operations = {name: (f"{name} %out, %a, %b, %c;", np.uint32) for name in references}
    results = evaluate(operations, a=a, b=b, c=c)
    expect(results, references, (a, b, c), dict.fromkeys(references, "u32"))


def test_every_function_of_three_bits():
    """The table of a function is what it gives for 0xF0, 0xCC and 0xAA."""
    a, b, c = (np.array([value], "u4") for value in (0xF0, 0xCC, 0xAA))
    a, b, c = (np.concatenate([x, np.array([0x12345678 * n % 2**32], "u4")]) for n, x in
               ((3, a), (5, b), (7, c)))  # fmt: skip
    operations = {str(n): (f"lop3.b32 %out, %a, %b, %c, {n};", np.uint32) for n in range(256)}
    results = evaluate(operations, a=a, b=b, c=c)
    for n in range(256):
        wanted = [0, 0]
        for bit in range(32):
            for i in range(2):
                index = (a[i] >> bit & 1) << 2 | (b[i] >> bit & 1) << 1 | (c[i] >> bit & 1)
                wanted[i] |= (n >> int(index) & 1) << bit
        assert results[str(n)].tolist() == wanted
        assert results[str(n)][0] & 255 == n


@pytest.mark.parametrize("a_kind", ["s32", "u32"])
@pytest.mark.parametrize("b_kind", ["s32", "u32"])
def test_dot_products_of_bytes(a_kind, b_kind):
    rng = np.random.default_rng(7)
    words = [0, 0x80808080, 0x7F7F7F7F, 0xFFFFFFFF, 0x01020304, 0x80FF7F01]
    a, b = crossed(np.array(words, "u4"), np.array(words, "u4"))
    c = rng.integers(0, 2**32, len(a), dtype="u4")

    def parts(word, bits, kind):
        values = [word >> bits * i & (1 << bits) - 1 for i in range(32 // bits)]
        return [wrapped(value, f"{kind[0]}{bits}") for value in values]

    def dot(first, second, c):
        return sum(x * y for x, y in zip(first, second, strict=True)) + c

    references = {
        "dp4a": lambda a, b, c: dot(parts(a, 8, a_kind), parts(b, 8, b_kind), c),
        "dp2a.lo": lambda a, b, c: dot(parts(a, 16, a_kind), parts(b, 8, b_kind)[:2], c),
        "dp2a.hi": lambda a, b, c: dot(parts(a, 16, a_kind), parts(b, 8, b_kind)[2:], c),
    }
    operations = {
        name: (f"{name}.{a_kind}.{b_kind} %out, %a, %b, %c;", np.uint32) for name in references
    }
    results = evaluate(operations, a=a, b=b, c=c)
    expect(results, references, (a, b, c), dict.fromkeys(references, "u32"))


def test_parts_of_words():
    words = np.array([0, 0x80007FFF, 0x7FFF8000, 0xFFFF0001, 0x00FF80FF, 0x12345678], "u4")
    a, b = crossed(words, words)
    c = np.roll(a, 5)

    def halves(function, kind):
        def apply(a, b, c):
            parts = [wrapped(x >> s & 0xFFFF, kind) for x in (a, b) for s in (0, 16)]
            low, high = function(parts[0], parts[2]), function(parts[1], parts[3])
            return (low & 0xFFFF) | (high & 0xFFFF) << 16

        return apply

    def differences(a, b, kind):
        pairs = [[wrapped(x >> 8 * i & 255, kind) for x in (a, b)] for i in range(4)]
        return [abs(first - second) for first, second in pairs]

    functions = {"add": lambda a, b: a + b, "min": min, "max": max}
    references = {
        f"{name}.{kind}x2": halves(function, kind)
        for name, function in functions.items()
        for kind in ("u16", "s16")
    }
    for kind in "us":
        name = f"vabsdiff4.u32.{kind}32.{kind}32"
        references[name] = lambda a, b, c, kind=kind: sum(
            d << 8 * i for i, d in enumerate(differences(a, b, f"{kind}8"))
        )
        references[f"{name}.add"] = lambda a, b, c, kind=kind: (
            c + sum(differences(a, b, f"{kind}8"))
        )
    operations = {
        name: (f"{name} %out, %a, %b{', %c' if name[0] == 'v' else ''};", np.uint32)
        for name in references
    }
    results = evaluate(operations, a=a, b=b, c=c)
    expect(results, references, (a, b, c), dict.fromkeys(references, "u32"))


COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_comparisons(kind):
    one = edges(int(kind[1:]), kind[0] == "s", 3)
    a, b = crossed(one, one)
    choices = COMPARED | (UNSIGNED if kind[0] == "u" else {})
    operations = {name: (f"setp.{name}.{kind} %out, %a, %b;", bool) for name in choices}
    operations["set"] = (f"set.lt.u32.{kind} %out, %a, %b;", np.uint32)
    operations["bits"] = (f"setp.ne.b{kind[1:]} %out, %a, %b;", bool)
    results = evaluate(operations, a=a, b=b)
    for name, sign in choices.items():
        wanted = {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}
        assert np.array_equal(results[name], wanted[sign]), name
    assert np.array_equal(results["set"], np.where(a < b, 2**32 - 1, 0))
    assert np.array_equal(results["bits"], a != b)


def test_comparisons_with_predicates():
    """p = (a op b) bool c, q = !(a op b) bool c."""
    a, b, c = crossed(np.arange(2, dtype="u4"), np.arange(2, dtype="u4"), np.arange(2, dtype="u4"))
    operations = {}
    for name in ("and", "or", "xor"):
        for negated in ("", "!"):
            for which in ("p", "q"):
                pair = "%out|%z" if which == "p" else "%z|%out"
                text = (
                    ".reg .pred %c1, %z; setp.ne.u32 %c1, %c, 0; "
                    f"setp.lt.{name}.u32 {pair}, %a, %b, {negated}%c1;"
                )
                operations[f"{name} {negated or ' '} {which}"] = (text, bool)
    results = evaluate(operations, a=a, b=b, c=c)
    functions = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    for key, got in results.items():
        name, negated, which = key.split(" ")[0], "!" in key, key[-1]
        first = (a < b) if which == "p" else ~(a < b)
        assert np.array_equal(got, functions[name](first, (c != 0) ^ negated)), key


def test_choices():
    a, b, c = crossed(edges(32, True, 1), np.array([5], "i4"), np.array([-1, 0, 3], "i4"))
    operations = {
        "selp": (".reg .pred %q; setp.gt.s32 %q, %c, 0; selp.b32 %out, %a, %b, %q;", np.int32),
        "slct": ("slct.s32.s32 %out, %a, %b, %c;", np.int32),
        "guard": (
            ".reg .pred %q; setp.gt.s32 %q, %c, 0; mov.b32 %out, %b; @!%q mov.b32 %out, %a;",
            np.int32,
        ),
        "logic": (
            ".reg .pred %q<4>; setp.gt.s32 %q0, %c, 0; setp.eq.s32 %q1, %a, 0; and.pred %q2, %q0, "
            "%q1; or.pred %q3, %q2, %q1; xor.pred %q3, %q3, %q0; not.pred %q3, %q3; "
            "selp.s32 %out, 1, 0, %q3;",
            np.int32,
        ),
    }
    results = evaluate(operations, a=a, b=b, c=c)
    assert np.array_equal(results["selp"], np.where(c > 0, a, b))
    assert np.array_equal(results["slct"], np.where(c >= 0, a, b))
    assert np.array_equal(results["guard"], np.where(c > 0, b, a))
    assert np.array_equal(results["logic"], ~((a == 0) ^ (c > 0)) & 1)


def test_packing_and_unpacking():
    a, b = crossed(edges(32, False), edges(32, False))
    operations = {
        "pack": ("mov.b64 %out, {%a, %b};", np.uint64),
        "low": (".reg .b32 %x; mov.b64 %d5, {%a, %b}; mov.b64 {%out, %x}, %d5;", np.uint32),
        "high": ("mov.b64 %d5, {%a, %b}; mov.b64 {_, %out}, %d5;", np.uint32),
        "halves": ("mov.b32 {%h0, %h1}, %a; mov.b32 %out, {%h1, %h0};", np.uint32),
    }
    results = evaluate(operations, a=a, b=b)
    assert np.array_equal(results["pack"], b.astype("u8") << np.uint64(32) | a)
    assert np.array_equal(results["low"], a)
    assert np.array_equal(results["high"], b)
    assert np.array_equal(results["halves"], a << 16 | a >> 16)
