"""SASS: functions found in cubins, their instructions, and code that rounds wrongly."""

from typing import Any

import pytest

from sqcompile.backends.cuda import sass
from sqcompile.backends.cuda.architectures import get
from sqcompile.backends.cuda.nvrtc import Compiled, compile_source
from sqcompile.errors import SqError

_TWO = """extern "C" __global__ void sums(float* a, const float* b) {
  for (int i = 0; i < b[1]; ++i) a[threadIdx.x] += b[i];
}
extern "C" __global__ void quotients(float* a) { a[threadIdx.x] = a[threadIdx.x] / a[0]; }
"""


def _compiled(body: str, *options: str, monkeypatch: pytest.MonkeyPatch | None = None) -> Compiled:
    source = f'extern "C" __global__ void f(float* a, const float* b) {{ {body} }}'
    if monkeypatch is not None:
        from sqcompile.backends.cuda import nvrtc

        monkeypatch.setattr(nvrtc, "OPTIONS", options)
    return compile_source(source, get("sm_80"))


def _faults(code: Compiled) -> list[str]:
    found = sass.instructions(sass.disassemble({"f": code.cubin}, "sm_80")["f"])["f"]
    return sass.rounding_faults(code.source, code.ptx, found)


def test_every_function_is_disassembled_with_addresses_of_its_own() -> None:
    code = compile_source(_TWO, get("sm_80"))
    texts = sass.disassemble({"one": code.cubin, "other": code.cubin}, "sm_80")
    assert texts["one"] == texts["other"]
    found = sass.instructions(texts["one"])
    assert set(found) == {"sums", "quotients"}
    assert "FADD" in sass.mix(found["sums"])
    assert texts["one"].count("/*0000*/") == 2


def test_a_loop_jumps_to_an_address_inside_its_function() -> None:
    code = compile_source(_TWO, get("sm_80"))
    text = sass.disassemble({"one": code.cubin}, "sm_80")["one"]
    for body in text.split(".text.")[1:]:
        addresses = {
            int(line.split("*/")[0].split("/*")[1], 16) for line in body.splitlines()[1:] if line
        }
        jumps = [int(part.split(";")[0], 16) for part in body.split("BRA 0x")[1:]]
        assert jumps and set(jumps) <= addresses


def test_the_instruction_mix_names_tensor_instructions_in_full() -> None:
    found: dict[str, Any] = {"IMMA.16832.S8.S8": 4, "LDG.E.128": 2, "LDG.E": 1, "FADD": 1}
    assert sass.mix(found) == {"IMMA.16832.S8.S8": 4, "LDG": 3, "FADD": 1}
    assert sass.uses_tensor_cores(found) and not sass.uses_tensor_cores({"IDP.4A.S8.S8": 1})


def test_the_loop_of_tensor_cores_is_the_shortest_that_multiplies() -> None:
    text = """.text.f:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LDSM.16.M88.4 R4, [R0] ;
        /*0020*/              @!P0 LDG.E R1, [R2.64] ;
        /*0030*/                   IMMA.16864.S4.U4 R8, R4.ROW, R6.COL, R8 ;
        /*0040*/               @P1 BRA 0x20 ;
        /*0050*/               @P2 BRA 0x10 ;
        /*0060*/                   BRA 0x60 ;
.text.g:
        /*0000*/                   IMMA.16864.S4.U4 R8, R4.ROW, R6.COL, R8 ;
        /*0010*/                   EXIT ;
"""
    assert sass.tensor_loops(text) == {"f": {"LDG.E": 1, "IMMA.16864.S4.U4": 1, "BRA": 1}}


@pytest.mark.parametrize(
    "body",
    [
        "a[0] = a[0] * b[0] + b[1];",
        "a[0] = a[0] / b[0] + sqrtf(b[1]);",
        "a[0] = fmaf(a[0], b[0], b[1]);",
    ],
)
def test_code_of_this_target_has_no_rounding_faults(body: str) -> None:
    assert _faults(_compiled(body)) == []


def test_a_contraction_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    code = _compiled("a[0] = a[0] * b[0] + b[1];", "--fmad=true", monkeypatch=monkeypatch)
    assert _faults(code) == [
        "fma in PTX, not in the source",
    ]


def test_fast_math_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    code = _compiled("a[0] = a[0] / b[0];", "--use_fast_math", monkeypatch=monkeypatch)
    assert any("approx" in fault for fault in _faults(code))


def test_ffma_that_nothing_explains_is_found() -> None:
    ptx = "mul.rn.f32 %f1, %f2, %f3;\nadd.rn.f32 %f4, %f1, %f5;"
    assert sass.rounding_faults("", ptx, {"FFMA": 1}) == [
        "FFMA in SASS, neither asked for nor part of a division"
    ]
    loose = "mul.f32 %f1, %f2, %f3;"
    assert sass.rounding_faults("", loose, {}) == ["mul.f32 in PTX, which ptxas may contract"]


def test_bytes_that_are_no_code_are_an_error() -> None:
    with pytest.raises(SqError, match="nvdisasm cannot read"):
        sass._run(sass.program(), b"\xff" * 32, "sm_80")
