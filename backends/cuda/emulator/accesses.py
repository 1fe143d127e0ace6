"""Entries of instructions that read and write memory."""

from sqcompile.backends.cuda.emulator.code import Code, OperandError, cpp_type
from sqcompile.backends.cuda.emulator.program import BYTES, Instruction, Operand, Symbol, Vector
from sqcompile.backends.cuda.emulator.table import Groups, instruction

TYPES = "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"
_EVICTION = "L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate"
HINTS = f"[.{{evict:{_EVICTION}}}][.{{prefetch:L2::64B|L2::128B|L2::256B}}]"
"""Of caches, which have no effect on values."""
VECTOR = "[.{v:v2|v4}]"
_AT = {"global": "global_at", "const": "global_at", "shared": "shared_at", "local": "local_at"}


def space_of(groups: Groups) -> str:
    """global, shared, ...; "" is the generic space."""
    return groups.get("space", "").removesuffix("::cta")


def pointer(code: Code, operand: Operand, space: str, size: int, access: str, line: int) -> str:
    """A host pointer to `size` checked bytes, in C++."""
    address = code.address(operand, space)
    if space == "param":
        return f"param_at<{size}>(t, params, {code.parameter_bytes}, {address}, {line})"
    return f"{_AT.get(space, 'generic_at')}<{size}>(t, {address}, {access}, {line})"


def _items(operand: Operand, groups: Groups) -> tuple[Operand, ...]:
    """The registers of a vector access, or the one of a scalar."""
    if not groups["v"]:
        return (operand,)
    if not isinstance(operand, Vector) or len(operand.items) != int(groups["v"][1:]):
        raise OperandError(f"a vector of {groups['v'][1:]} is expected")
    return operand.items


@instruction(
    f"ld[.{{space:param|global|const|local|shared|shared::cta}}][.{{cache:ca|cg|cs|lu|cv}}]"
    f"{HINTS}{VECTOR}.{{t:{TYPES}}}",
    f"ld.{{space:global}}[.{{cache:ca|cg|cs}}].nc{HINTS}{VECTOR}.{{t:{TYPES}}}",
    f"ld.volatile[.{{space:global|local|shared|shared::cta}}]{VECTOR}.{{t:{TYPES}}}",
    f"ldu[.{{space:global}}]{VECTOR}.{{t:{TYPES}}}",
)
def load(code: Code, one: Instruction, groups: Groups) -> str:
    """A load; a register wider than the type is filled by its sign or with zeros."""
    code.expect(one, 2)
    kind, items = groups["t"], _items(one.operands[0], groups)
    size = BYTES[kind]
    at = pointer(code, one.operands[1], space_of(groups), size * len(items), "READ", one.line)
    return f"const u8* at = {at}; " + " ".join(
        code.write(item, kind, f"load<{cpp_type(kind)}>(at + {n * size})", wide=True)
        for n, item in enumerate(items)
    )


@instruction(
    f"st[.{{space:global|local|shared|shared::cta}}][.{{cache:wb|cg|cs|wt}}]{HINTS}{VECTOR}"
    f".{{t:{TYPES}}}",
    f"st.volatile[.{{space:global|local|shared|shared::cta}}]{VECTOR}.{{t:{TYPES}}}",
)
def store(code: Code, one: Instruction, groups: Groups) -> str:
    """A store of the low bits of its registers."""
    code.expect(one, 2)
    kind, items = groups["t"], _items(one.operands[1], groups)
    size = BYTES[kind]
    at = pointer(code, one.operands[0], space_of(groups), size * len(items), "WRITE", one.line)
    return f"u8* at = {at}; " + " ".join(
        f"store<{cpp_type(kind)}>(at + {n * size}, {code.read(item, kind, wide=True)});"
        for n, item in enumerate(items)
    )


@instruction(
    "cvta.{space:global|const|local|shared|shared::cta}.u64",
    "cvta.{to:to}.{space:global|const|local|shared|shared::cta}.u64",
)
def cvta(code: Code, one: Instruction, groups: Groups) -> str:
    """From an address of a state space to a generic one, or back."""
    code.expect(one, 2)
    space, operand = space_of(groups), one.operands[1]
    if isinstance(operand, Symbol) and code.place(operand)[0] != space:
        raise OperandError(f"{operand.name} is not in .{space}")
    value = code.read(operand, "u64")
    if window := {"shared": "SHARED_WINDOW", "local": "LOCAL_WINDOW"}.get(space):
        way = f"from_window(t, {window}, {value}, {one.line})"
        value = way if groups.get("to") else f"({window} + (u32){value})"
    return code.write(one.operands[0], "u64", value)


@instruction("isspacep.{space:global|const|local|shared|shared::cta}")
def isspacep(code: Code, one: Instruction, groups: Groups) -> str:
    """Whether a generic address lies in a state space."""
    code.expect(one, 2)
    address = code.read(one.operands[1], "u64")
    tests = {
        "global": f"is_global(t, {address})",
        "const": f"is_constant(t, {address})",
        "shared": f"in_window({address}, SHARED_WINDOW)",
        "local": f"in_window({address}, LOCAL_WINDOW)",
    }
    return code.write(one.operands[0], "pred", tests[space_of(groups)])


_ATOMIC = "[.{sem:relaxed}][.{scope:cta|gpu|sys}][.{space:global|shared|shared::cta}]"
_OPERATIONS = [
    ".{op:add}.{t:u32|s32|u64|f32|f64}",
    ".{op:min|max}.{t:u32|s32|u64|s64}",
    ".{op:and|or|xor}.{t:b32|b64}",
    ".{op:inc|dec}.{t:u32}",
]


def _atomic(code: Code, one: Instruction, groups: Groups, operands: int) -> str:
    """A C++ expression: performs the operation and gives what was there before."""
    kind, space, first = groups["t"], space_of(groups), len(one.operands) - operands
    at = pointer(code, one.operands[first], space, BYTES[kind], "ATOMIC_ACCESS", one.line)
    values = ", ".join(code.read(operand, kind) for operand in one.operands[first + 1 :])
    flush = "!in_shared(t, at)" if (groups["op"], kind) == ("add", "f32") else ""
    operation = f"Atomic_{groups['op']}{{{flush}}}"
    return f"u8* at = {at}; {cpp_type(kind)} old = atomic({operation}, at, {values});"


@instruction(
    *(f"atom{_ATOMIC}{operation}" for operation in _OPERATIONS),
    f"atom{_ATOMIC}.{{op:exch}}.{{t:b32|b64}}",
)
def atom(code: Code, one: Instruction, groups: Groups) -> str:
    """Change memory at once, and give what was there."""
    code.expect(one, 3)
    return _atomic(code, one, groups, 2) + code.write(one.operands[0], groups["t"], "old")


@instruction(f"atom{_ATOMIC}.{{op:cas}}.{{t:b16|b32|b64}}")
def atom_cas(code: Code, one: Instruction, groups: Groups) -> str:
    """Replace what equals the first value by the second."""
    code.expect(one, 4)
    return _atomic(code, one, groups, 3) + code.write(one.operands[0], groups["t"], "old")


@instruction(*(f"red{_ATOMIC}{operation}" for operation in _OPERATIONS))
def red(code: Code, one: Instruction, groups: Groups) -> str:
    """Change memory at once."""
    code.expect(one, 2)
    return _atomic(code, one, groups, 2)


@instruction(
    "cp.async.{cache:ca|cg}.{to:shared|shared::cta}.global[.{p:L2::64B|L2::128B|L2::256B}]"
)
def cp_async(code: Code, one: Instruction, groups: Groups) -> str:
    """Begin a copy to shared memory; bytes beyond the source's size are zeros."""
    code.expect(one, 3, 4)
    size = code.constant(one.operands[2], 16)
    if size not in ((4, 8, 16) if groups["cache"] == "ca" else (16,)):
        raise OperandError(f"{size} bytes at once")
    given = str(size)
    if len(one.operands) == 4:
        operand = one.operands[3]
        ignored = code.is_predicate(operand)
        given = (
            f"({code.predicate(operand)} ? 0 : {size})" if ignored else code.read(operand, "u32")
        )
    to, source = code.address(one.operands[0], "shared"), code.address(one.operands[1], "global")
    return f"copy_async<{size}>(t, {to}, {source}, {given}, {one.line});"


@instruction("cp.async.commit_group")
def commit_group(code: Code, one: Instruction, groups: Groups) -> str:
    """The copies begun since the last one are a group."""
    code.expect(one, 0)
    return "t.runtime->commit(&t);"


@instruction("cp.async.wait_group")
def wait_group(code: Code, one: Instruction, groups: Groups) -> str:
    """Wait until at most so many groups are under way."""
    code.expect(one, 1)
    return f"t.runtime->wait(&t, {code.constant(one.operands[0], 1 << 31)});"


@instruction("cp.async.wait_all")
def wait_all(code: Code, one: Instruction, groups: Groups) -> str:
    """Wait for all copies."""
    code.expect(one, 0)
    return "t.runtime->commit(&t); t.runtime->wait(&t, 0);"


@instruction("prefetch[.{space:global|local}].{level:L1|L2}", "prefetchu.L1")
def prefetch(code: Code, one: Instruction, groups: Groups) -> str:
    """A hint: nothing to compute."""
    code.expect(one, 1)
    return ""
