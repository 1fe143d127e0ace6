"""Entries of instructions that compute registers from registers."""

from sqcompile.backends.cuda.emulator.code import Code, cpp_type
from sqcompile.backends.cuda.emulator.program import Instruction, Pair, Vector
from sqcompile.backends.cuda.emulator.table import Groups, arithmetic, instruction

INT = "u16|s16|u32|s32|u64|s64"
FLOAT_OPTIONS = "[.{r:rn|rz|rm|rp}][.ftz][.sat]"
ROUNDED = "[.{r:rn|rz|rm|rp}]"

for _pattern, _signature, _code in [
    # Integers
    (f"add.{{t:{INT}}}", "t = t t", "add<{t}>"),
    (f"sub.{{t:{INT}}}", "t = t t", "sub<{t}>"),
    ("add.sat.s32", "s32 = s32 s32", "add_sat"),
    ("sub.sat.s32", "s32 = s32 s32", "sub_sat"),
    (f"mul.lo.{{t:{INT}}}", "t = t t", "mul_lo<{t}>"),
    (f"mul.hi.{{t:{INT}}}", "t = t t", "mul_hi<{t}>"),
    ("mul.wide.{t:u16|s16|u32|s32}", "w = t t", "mul_wide<{w}, {t}>"),
    (f"mad.lo.{{t:{INT}}}", "t = t t t", "mad_lo<{t}>"),
    (f"mad.hi.{{t:{INT}}}", "t = t t t", "mad_hi<{t}>"),
    ("mad.wide.{t:u16|s16|u32|s32}", "w = t t w", "mad_wide<{w}, {t}>"),
    ("mul24.{part:lo|hi}.{t:u32|s32}", "t = t t", "mul24_{part}<{t}>"),
    (f"div.{{t:{INT}}}", "t = t t", "div<{t}>(t, {line}, {args})"),
    (f"rem.{{t:{INT}}}", "t = t t", "rem<{t}>(t, {line}, {args})"),
    ("neg.{t:s16|s32|s64}", "t = t", "neg<{t}>"),
    ("abs.{t:s16|s32|s64}", "t = t", "abs<{t}>"),
    (f"min.{{t:{INT}}}", "t = t t", "min<{t}>"),
    (f"max.{{t:{INT}}}", "t = t t", "max<{t}>"),
    (f"sad.{{t:{INT}}}", "t = t t t", "sad<{t}>"),
    # Bits
    ("and.{t:b16|b32|b64}", "t = t t", "bit_and<{t}>"),
    ("or.{t:b16|b32|b64}", "t = t t", "bit_or<{t}>"),
    ("xor.{t:b16|b32|b64}", "t = t t", "bit_xor<{t}>"),
    ("not.{t:b16|b32|b64}", "t = t", "bit_not<{t}>"),
    ("cnot.{t:b16|b32|b64}", "t = t", "cnot<{t}>"),
    ("and.pred", "pred = pred pred", "bit_and<bool>"),
    ("or.pred", "pred = pred pred", "bit_or<bool>"),
    ("xor.pred", "pred = pred pred", "bit_xor<bool>"),
    ("not.pred", "pred = pred", "bit_not<bool>"),
    ("shl.{t:b16|b32|b64}", "t = t u32", "shl<{t}>"),
    (f"shr.{{t:b16|b32|b64|{INT}}}", "t = t u32", "shr<{t}>"),
    ("shf.{way:l|r}.{mode:wrap|clamp}.b32", "b32 = b32 b32 u32", "shf_{way}_{mode}"),
    ("bfe.{t:u32|s32|u64|s64}", "t = t u32 u32", "bfe<{t}>"),
    ("bfi.{t:b32|b64}", "t = t t u32 u32", "bfi<{t}>"),
    ("bfind.{t:u32|s32|u64|s64}", "u32 = t", "bfind<{t}>"),
    ("bfind.shiftamt.{t:u32|s32|u64|s64}", "u32 = t", "bfind_shift<{t}>"),
    ("clz.{t:b32|b64}", "u32 = t", "clz<{t}>"),
    ("popc.{t:b32|b64}", "u32 = t", "popc<{t}>"),
    ("brev.{t:b32|b64}", "t = t", "brev<{t}>"),
    ("prmt.b32", "b32 = b32 b32 b32", "prmt"),
    ("prmt.b32.{m:f4e|b4e|rc8|ecl|ecr|rc16}", "b32 = b32 b32 b32", "prmt_{m}"),
    ("dp4a.{a:s32|u32}.{b:s32|u32}", "sum = b32 b32 sum", "dp4a<{a8}, {b8}, {sum}>"),
    ("dp2a.lo.{a:s32|u32}.{b:s32|u32}", "sum = b32 b32 sum",
     "dp2a<{a16}, {b8}, 0, {sum}>"),
    ("dp2a.hi.{a:s32|u32}.{b:s32|u32}", "sum = b32 b32 sum",
     "dp2a<{a16}, {b8}, 2, {sum}>"),
    *((f"{op}.{{t:u16x2|s16x2}}", "b32 = b32 b32", f"halves_{op}<{{half}}>")
      for op in ("add", "min", "max")),
    ("vabsdiff4.u32.{a:u32}.u32", "b32 = b32 b32 b32", "differences<{a8}>"),
    ("vabsdiff4.u32.{a:s32}.s32", "b32 = b32 b32 b32", "differences<{a8}>"),
    ("vabsdiff4.u32.{a:u32}.u32.add", "b32 = b32 b32 b32", "sum_of_differences<{a8}>"),
    ("vabsdiff4.u32.{a:s32}.s32.add", "b32 = b32 b32 b32", "sum_of_differences<{a8}>"),
    # Floats
    (f"add{FLOAT_OPTIONS}.f32", "f32 = f32 f32", "rounded<Add, {R}, {ftz}, {sat}>"),
    (f"sub{FLOAT_OPTIONS}.f32", "f32 = f32 f32", "rounded<Sub, {R}, {ftz}, {sat}>"),
    (f"mul{FLOAT_OPTIONS}.f32", "f32 = f32 f32", "rounded<Mul, {R}, {ftz}, {sat}>"),
    ("fma.{r:rn|rz|rm|rp}[.ftz][.sat].f32", "f32 = f32 f32 f32",
     "rounded<Fma, {R}, {ftz}, {sat}>"),
    ("mad.{r:rn|rz|rm|rp}[.ftz][.sat].f32", "f32 = f32 f32 f32",
     "rounded<Fma, {R}, {ftz}, {sat}>"),
    ("div.{r:rn|rz|rm|rp}[.ftz].f32", "f32 = f32 f32", "rounded<Div, {R}, {ftz}, 0>"),
    ("rcp.{r:rn|rz|rm|rp}[.ftz].f32", "f32 = f32", "rounded<Rcp, {R}, {ftz}, 0>"),
    ("sqrt.{r:rn|rz|rm|rp}[.ftz].f32", "f32 = f32", "rounded<Sqrt, {R}, {ftz}, 0>"),
    (f"add{ROUNDED}.f64", "f64 = f64 f64", "rounded<Add, {R}, 0, 0>"),
    (f"sub{ROUNDED}.f64", "f64 = f64 f64", "rounded<Sub, {R}, 0, 0>"),
    (f"mul{ROUNDED}.f64", "f64 = f64 f64", "rounded<Mul, {R}, 0, 0>"),
    ("fma.{r:rn|rz|rm|rp}.f64", "f64 = f64 f64 f64", "rounded<Fma, {R}, 0, 0>"),
    ("div.{r:rn|rz|rm|rp}.f64", "f64 = f64 f64", "rounded<Div, {R}, 0, 0>"),
    ("rcp.{r:rn|rz|rm|rp}.f64", "f64 = f64", "rounded<Rcp, {R}, 0, 0>"),
    ("sqrt.{r:rn|rz|rm|rp}.f64", "f64 = f64", "rounded<Sqrt, {R}, 0, 0>"),
    ("neg[.ftz].f32", "f32 = f32", "fneg<{ftz}, f32>"),
    ("neg.f64", "f64 = f64", "fneg<0, f64>"),
    ("abs[.ftz].f32", "f32 = f32", "fabs<{ftz}, f32>"),
    ("abs.f64", "f64 = f64", "fabs<0, f64>"),
    ("min[.ftz][.NaN].f32", "f32 = f32 f32", "fmin<{ftz}, {NaN}, f32>"),
    ("max[.ftz][.NaN].f32", "f32 = f32 f32", "fmax<{ftz}, {NaN}, f32>"),
    ("min.f64", "f64 = f64 f64", "fmin<0, 0, f64>"),
    ("max.f64", "f64 = f64 f64", "fmax<0, 0, f64>"),
    ("copysign.{t:f32|f64}", "t = t t", "copysign<{t}>"),
    ("testp.{what:finite|infinite|number|notanumber|normal|subnormal}.{t:f32|f64}", "pred = t",
     "test_{what}<{t}>"),
    # Choices
    (f"selp.{{t:b16|b32|b64|{INT}|f32|f64}}", "t = t t pred", "choose<{t}>"),
    (f"slct.{{t:b16|b32|b64|{INT}|f32|f64}}.s32", "t = t t s32", "choose_positive<{t}>"),
    (f"slct[.ftz].{{t:b16|b32|b64|{INT}|f32|f64}}.f32", "t = t t f32",
     "choose_float<{ftz}, {t}>"),
    # Packing conversions
    ("cvt.pack.sat.{t:s16|u16}.s32", "b32 = s32 s32", "pack2<{t}>"),
    ("cvt.pack.sat.{t:s8|u8}.s32.b32", "b32 = s32 s32 b32", "pack4<{t}>"),
]:  # fmt: skip
    arithmetic(_pattern, _signature, _code)


@instruction("lop3.b32")
def lop3(code: Code, one: Instruction, groups: Groups) -> str:
    """Any function of three bits, by its table as a constant."""
    code.expect(one, 5)
    a, b, c = (code.read(operand, "b32") for operand in one.operands[1:4])
    table = code.constant(one.operands[4], 0xFF)
    return code.write(one.operands[0], "b32", f"lop3<{table}>({a}, {b}, {c})")


ORDERED = "eq|ne|lt|le|gt|ge"
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
UNORDERED = "equ|neu|ltu|leu|gtu|geu|num|nan"
_OF_TYPE = [
    "{cmp:eq|ne}%s.%s{t:b16|b32|b64}",
    f"{{cmp:{ORDERED}}}%s.%s{{t:{INT}}}",
    f"{{cmp:{'|'.join(UNSIGNED)}}}%s.%s{{t:u16|u32|u64}}",
    f"{{cmp:{ORDERED}|{UNORDERED}}}%s[.ftz].%s{{t:f32|f64}}",
]
_COMBINED = "[.{bool:and|or|xor}]"
_OPERATOR = {"and": "&", "or": "|", "xor": "^"}


def _compared(code: Code, one: Instruction, groups: Groups) -> tuple[str, str]:
    """The comparison and its contrary, each combined with the last operand if there is one."""
    code.expect(one, 4 if groups["bool"] else 3)
    name, kind = UNSIGNED.get(groups["cmp"], groups["cmp"]), groups["t"]
    a, b = (code.read(operand, kind) for operand in one.operands[1:3])
    holds = f"cmp_{name}<{groups['ftz']}, {cpp_type(kind)}>({a}, {b})"
    if not groups["bool"]:
        return holds, f"!{holds}"
    other, sign = code.predicate(one.operands[3]), _OPERATOR[groups["bool"]]
    return f"{holds} {sign} ({other})", f"(!{holds}) {sign} ({other})"


@instruction(*("setp." + pattern % (_COMBINED, "") for pattern in _OF_TYPE))
def setp(code: Code, one: Instruction, groups: Groups) -> str:
    """A comparison into a predicate, and its contrary into a second one."""
    holds, contrary = _compared(code, one, groups)
    result = one.operands[0]
    if not isinstance(result, Pair):
        return code.write(result, "pred", holds)
    first = code.write(result.first, "pred", "holds")
    second = code.write(result.second, "pred", "contrary")
    return f"bool holds = {holds}, contrary = {contrary}; {first} {second}"


@instruction(*("set." + pattern % (_COMBINED, "{d:u32|s32|f32}.") for pattern in _OF_TYPE))
def set_(code: Code, one: Instruction, groups: Groups) -> str:
    """A comparison into a number."""
    holds, _ = _compared(code, one, groups)
    return code.write(one.operands[0], groups["d"], f"set_value<{groups['d']}>({holds})")


_NUMBERS = "u8|s8|u16|s16|u32|s32|u64|s64"
_FLOATS = "f16|f32|f64"


@instruction(
    f"cvt[.sat].{{d:{_NUMBERS}}}.{{s:{_NUMBERS}}}",
    f"cvt.{{r:rni|rzi|rmi|rpi}}[.ftz][.sat].{{d:{_NUMBERS}}}.{{s:{_FLOATS}}}",
    f"cvt.{{r:rn|rz|rm|rp}}[.sat].{{d:{_FLOATS}}}.{{s:{_NUMBERS}}}",
    "cvt[.{r:rni|rzi|rmi|rpi}][.ftz][.sat].{d:f32}.{s:f32}",
    "cvt[.{r:rni|rzi|rmi|rpi}][.sat].{d:f64}.{s:f64}",
    "cvt[.{r:rni|rzi|rmi|rpi}][.sat].{d:f16}.{s:f16}",
    "cvt.{r:rn|rz|rm|rp}[.ftz][.sat].{d:f32}.{s:f64}",
    "cvt[.ftz][.sat].{d:f64}.{s:f32}",
    "cvt.{r:rn|rz|rm|rp}[.ftz][.sat].{d:f16}.{s:f32}",
    "cvt.{r:rn|rz|rm|rp}[.sat].{d:f16}.{s:f64}",
    "cvt[.ftz][.sat].{d:f32}.{s:f16}",
    "cvt[.sat].{d:f64}.{s:f16}",
)
def cvt(code: Code, one: Instruction, groups: Groups) -> str:
    """A conversion; registers may be wider than the types."""
    code.expect(one, 2)
    d, s = groups["d"], groups["s"]
    whole = "1" if groups.get("r", "").endswith("i") or s[0] != "f" else "0"
    flags = f"{groups['R']}, {whole}, {groups['ftz']}, {groups['sat']}"
    value = code.read(one.operands[1], s, wide=s[0] != "f" or s == "f16")
    return code.write(one.operands[0], d, f"cvt<{d}, {s}, {flags}>({value})", wide=d[0] != "f")


@instruction(f"mov.{{t:b16|b32|b64|{INT}|f32|f64}}")
def mov(code: Code, one: Instruction, groups: Groups) -> str:
    """A copy; a vector on one side packs or unpacks, its first item lowest."""
    code.expect(one, 2)
    kind, (to, value) = groups["t"], one.operands
    if isinstance(value, Vector):
        width = code.bits(kind) // len(value.items)
        parts = [
            f"({cpp_type(kind)}){code.read(item, f'b{width}')} << {width * n}"
            for n, item in enumerate(value.items)
        ]
        return code.write(to, kind, " | ".join(f"({part})" for part in parts))
    if not isinstance(to, Vector):
        return code.write(to, kind, code.read(value, kind))
    width = code.bits(kind) // len(to.items)
    whole = f"{cpp_type(kind)} whole = {code.read(value, kind)};"
    return whole + "".join(
        code.write(item, f"b{width}", f"whole >> {width * n}") for n, item in enumerate(to.items)
    )


@instruction("mov.pred")
def mov_pred(code: Code, one: Instruction, groups: Groups) -> str:
    """A copy of a predicate."""
    code.expect(one, 2)
    return code.write(one.operands[0], "pred", code.predicate(one.operands[1]))
