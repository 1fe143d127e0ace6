"""Any legal instruction of a hardware, for hypothesis."""

from hypothesis import strategies as st

from sqcompile.backends.vta import isa
from sqcompile.backends.vta.hardware import Memory
from sqcompile.backends.vta.isa import AluOp, Module

_TYPED = {
    "reset": st.booleans(),
    "use_imm": st.booleans(),
    "alu_opcode": st.sampled_from(AluOp),
}


def instructions(hardware):
    loaded = [m for m in Memory if m is not Memory.OUT and (m < 5 or hardware.widens)]
    return st.one_of(
        *(_made(hardware, isa.Load, memory=memory) for memory in loaded),
        _made(hardware, isa.Store, memory=Memory.OUT),
        *(_made(hardware, kind) for kind in (isa.Gemm, isa.Alu, isa.Finish)),
    )


@st.composite
def _made(draw, hardware, kind, **given):
    values = dict(given)
    for field in isa.layout(hardware, kind.opcode):
        low, high = field.range
        if field.name in given or field.name in isa.TOKENS:
            continue
        if kind is isa.Store and "pad" in field.name:
            continue
        if field.name == "uop_bgn":
            values["uop_bgn"] = draw(st.integers(0, hardware.depth(Memory.UOP) - 1))
        elif field.name == "uop_end":
            first = values["uop_bgn"] + 1
            values["uop_end"] = draw(st.integers(first, hardware.depth(Memory.UOP)))
        else:
            low = 1 if field.name.startswith("iter") else low
            values[field.name] = draw(_TYPED.get(field.name, st.integers(low, high)))
    module = kind(**values).module
    assert isinstance(module, Module)
    return kind(**values, **{flag: draw(st.booleans()) for flag in isa.QUEUES[module]})
