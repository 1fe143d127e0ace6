"""Entries of branches, barriers and what the lanes of a warp do together."""

from sqcompile.backends.cuda.emulator.code import Code, OperandError
from sqcompile.backends.cuda.emulator.program import Instruction, Operand, Pair, Symbol, Vector
from sqcompile.backends.cuda.emulator.table import Groups, instruction


@instruction("bra[.uni]")
def bra(code: Code, one: Instruction, groups: Groups) -> str:
    """Go to a label."""
    code.expect(one, 1)
    return code.jump(_label(one.operands[0]), one.line)


def _label(operand: Operand) -> str:
    if not isinstance(operand, Symbol):
        raise OperandError("a label is expected")
    return operand.name


@instruction("brx.idx[.uni]")
def brx(code: Code, one: Instruction, groups: Groups) -> str:
    """Go to one of a list of labels, by number."""
    code.expect(one, 2)
    targets = code.targets.get(_label(one.operands[1]))
    if targets is None:
        raise OperandError("its list of labels is not declared")
    cases = " ".join(f"case {n}: {code.jump(label, one.line)}" for n, label in enumerate(targets))
    index = code.read(one.operands[0], "u32")
    return f"switch ({index}) {{ {cases} default: fault(t, UNDEFINED, {one.line}); }}"


@instruction("ret[.uni]", "exit")
def ret(code: Code, one: Instruction, groups: Groups) -> str:
    """The thread ends."""
    code.expect(one, 0)
    return "return;"


@instruction("trap")
def trap(code: Code, one: Instruction, groups: Groups) -> str:
    """The kernel has failed."""
    code.expect(one, 0)
    return f"fault(t, TRAP, {one.line});"


@instruction(
    "membar.{level:cta|gl|sys}",
    "fence[.{sem:sc|acq_rel}].{scope:cta|gpu|sys}",
    "nanosleep.u32",
)
def fence(code: Code, one: Instruction, groups: Groups) -> str:
    """Threads here see each other's writes at once."""
    code.expect(one, 1 if one.opcode.startswith("nanosleep") else 0)
    return ""


_REDUCTIONS = {"": 0, "popc": 1, "and": 2, "or": 3}


@instruction(
    "bar[.cta].sync",
    "barrier[.cta].sync[.aligned]",
    "bar[.cta].red.{op:popc}.{t:u32}",
    "bar[.cta].red.{op:and|or}.{t:pred}",
    "barrier[.cta].red.{op:popc}[.aligned].{t:u32}",
    "barrier[.cta].red.{op:and|or}[.aligned].{t:pred}",
)
def barrier(code: Code, one: Instruction, groups: Groups) -> str:
    """Wait for the block, or for so many of its threads; with a reduction of predicates."""
    operation = groups.get("op", "")
    operands = list(one.operands)
    result = operands.pop(0) if operation else None
    value = code.predicate(operands.pop()) if operation else "0"
    if len(operands) not in (1, 2):
        raise OperandError("the number of a barrier and a count are expected")
    numbers = [code.read(operand, "u32") for operand in operands] + ["0"]
    aligned = int(one.opcode.startswith("bar.") or bool(groups.get("aligned")))
    call = (
        f"t.runtime->barrier(&t, {numbers[0]}, {numbers[1]}, {aligned}, "
        f"{_REDUCTIONS[operation]}, {value}, {one.line})"
    )
    return f"{call};" if result is None else code.write(result, groups["t"], call)


@instruction("activemask.b32")
def activemask(code: Code, one: Instruction, groups: Groups) -> str:
    """The lanes that are here together."""
    code.expect(one, 1)
    return code.write(one.operands[0], "b32", f"t.runtime->active_mask(&t, {one.line})")


def together(
    code: Code, one: Instruction, fields: str, inputs: list[str], mask: str, results: list[str]
) -> str:
    """Leave inputs, wait for the lanes of the mask, take results."""
    constant = code.collective(f'{{{fields}, "{one.opcode}"}}')
    given = "".join(f"t.in[{n}] = {value}; " for n, value in enumerate(inputs))
    return f"{given}t.runtime->collective(&t, {constant}, {mask}, {one.line}); {' '.join(results)}"


def _fields(kind: str, aligned: int = 0, mode: str = "0", rest: str = "0, 0, 0, 0, 0, 0") -> str:
    return f"{kind}, {aligned}, {mode}, {rest}"


@instruction("bar.warp.sync")
def warp_sync(code: Code, one: Instruction, groups: Groups) -> str:
    """Wait for lanes of the warp, after which they see each other's writes."""
    code.expect(one, 1)
    mask = code.read(one.operands[0], "b32")
    return together(code, one, _fields("WARP_SYNC"), [], mask, [])


@instruction("shfl.sync.{mode:up|down|bfly|idx}.b32")
def shuffle(code: Code, one: Instruction, groups: Groups) -> str:
    """Take another lane's value."""
    code.expect(one, 5)
    inputs = [code.read(operand, "b32") for operand in one.operands[1:4]]
    mask = code.read(one.operands[4], "b32")
    fields = _fields("SHUFFLE", mode=groups["mode"].upper())
    return together(code, one, fields, inputs, mask, _value_and_flag(code, one.operands[0]))


def _value_and_flag(code: Code, result: Operand) -> list[str]:
    if not isinstance(result, Pair):
        return [code.write(result, "b32", "t.out[0]")]
    second = code.write(result.second, "pred", "t.out[1]")
    return [code.write(result.first, "b32", "t.out[0]"), second]


@instruction("vote.sync.{mode:all|any|uni}.pred", "vote.sync.{mode:ballot}.b32")
def vote(code: Code, one: Instruction, groups: Groups) -> str:
    """A predicate of all lanes."""
    code.expect(one, 3)
    kind = one.opcode.rpartition(".")[2]
    inputs, mask = [code.predicate(one.operands[1])], code.read(one.operands[2], "b32")
    result = code.write(one.operands[0], kind, "t.out[0]")
    return together(code, one, _fields("VOTE", mode=groups["mode"].upper()), inputs, mask, [result])


@instruction("match.{mode:any|all}.sync.{t:b32|b64}")
def match(code: Code, one: Instruction, groups: Groups) -> str:
    """The lanes that hold the same value."""
    code.expect(one, 3)
    value, mask = code.read(one.operands[1], groups["t"]), code.read(one.operands[2], "b32")
    inputs = [f"(u32)({value})", f"(u32)((u64)({value}) >> 32)"]
    fields = _fields("MATCH", mode=f"MATCH_{groups['mode'].upper()}")
    return together(code, one, fields, inputs, mask, _value_and_flag(code, one.operands[0]))


_REDUX = {
    ("add", "u32"): "ADD_U",
    ("add", "s32"): "ADD_U",
    ("min", "u32"): "MIN_U",
    ("max", "u32"): "MAX_U",
    ("min", "s32"): "MIN_S",
    ("max", "s32"): "MAX_S",
    ("and", "b32"): "AND_B",
    ("or", "b32"): "OR_B",
    ("xor", "b32"): "XOR_B",
}


@instruction("redux.sync.{op:add|min|max}.{t:u32|s32}", "redux.sync.{op:and|or|xor}.{t:b32}")
def redux(code: Code, one: Instruction, groups: Groups) -> str:
    """The sum, or whatever, of all lanes' values."""
    code.expect(one, 3)
    inputs, mask = [code.read(one.operands[1], "b32")], code.read(one.operands[2], "b32")
    fields = _fields("REDUCE", mode=_REDUX[groups["op"], groups["t"]])
    result = code.write(one.operands[0], "b32", "t.out[0]")
    return together(code, one, fields, inputs, mask, [result])


def _registers(operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if len(items) != count:
        raise OperandError(f"{count} registers are expected")
    return items


@instruction("ldmatrix.sync.aligned.m8n8.x{n:1|2|4}[.trans].{space:shared|shared::cta}.b16")
def ldmatrix(code: Code, one: Instruction, groups: Groups) -> str:
    """Read 8x8 matrices of 16-bit elements from shared memory, a part into each lane."""
    code.expect(one, 2)
    count = int(groups["n"])
    address = code.address(one.operands[1], "shared")
    mode = "1" if groups["trans"] else "0"
    fields = _fields("LOAD_MATRIX", 1, mode, f"16, 8, {count}, 8, 0, 0")
    results = [
        code.write(register, "b32", f"t.out[{n}]")
        for n, register in enumerate(_registers(one.operands[0], count))
    ]
    return together(code, one, fields, [f"(u32){address}"], "0xffffffffu", results)


_A4, _B4 = "{a:s4|u4}", "{b:s4|u4}"
_A8, _B8 = "{a:s8|u8}", "{b:s8|u8}"


@instruction(
    f"mma.sync.aligned.{{shape:m8n8k16|m16n8k16|m16n8k32}}.row.col.s32.{_A8}.{_B8}.s32",
    f"mma.sync.aligned.{{shape:m8n8k32|m16n8k32|m16n8k64}}.row.col.s32.{_A4}.{_B4}.s32",
)
def mma(code: Code, one: Instruction, groups: Groups) -> str:
    """D = A * B + C, with matrices spread over the lanes."""
    code.expect(one, 4)
    m, n, k = (int(size) for size in groups["shape"].replace("m", "").replace("n", " ")
               .replace("k", " ").split())  # fmt: skip
    bits = int(groups["a"][1:])
    per_register = 32 * (32 // bits)
    counts = [m * n // 32, m * k // per_register, n * k // per_register, m * n // 32]
    d, *sources = (
        _registers(operand, count) for operand, count in zip(one.operands, counts, strict=True)
    )
    signs = f"{int(groups['a'][0] == 's')}, {int(groups['b'][0] == 's')}"
    fields = _fields("MATRIX_PRODUCT", 1, "0", f"{bits}, {m}, {n}, {k}, {signs}")
    inputs = [code.read(register, "b32") for source in sources for register in source]
    results = [code.write(register, "b32", f"t.out[{i}]") for i, register in enumerate(d)]
    return together(code, one, fields, inputs, "0xffffffffu", results)
