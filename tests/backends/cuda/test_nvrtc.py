"""NVRTC: code without a toolkit, the log of ptxas, errors, and rounding."""

import pytest

from sqcompile.backends.cuda import nvrtc
from sqcompile.backends.cuda.architectures import ARCHITECTURES, get
from sqcompile.backends.cuda.nvrtc import Usage, compile_all, compile_source, ptx_of, usages
from sqcompile.errors import SqError

_SUM = """extern "C" __global__ void scaled(float* a, const float* b) {
  a[threadIdx.x] = a[threadIdx.x] * 1.1f + b[threadIdx.x] / a[0] + sqrtf(b[0]);
}
"""
_LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 256 bytes smem, 376 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
"""  # noqa: E501 - as ptxas writes it


def test_every_architecture_compiles_from_the_pip_packages() -> None:
    found = compile_all({"scaled": _SUM}, ARCHITECTURES.values())
    assert {name for _, name in found} == set(ARCHITECTURES)
    for (_, name), code in found.items():
        assert code.cubin.startswith(b"\x7fELF") and f".target {name}" in code.ptx
        assert code.usage["scaled"].registers > 0 and not code.usage["scaled"].spill_stores


def test_float_operations_are_rounded_one_by_one() -> None:
    ptx = compile_source(_SUM, get("sm_80")).ptx
    for instruction in ("mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32"):
        assert instruction in ptx, instruction
    assert "fma" not in ptx and ".ftz" not in ptx and ".approx" not in ptx


def test_ptx_alone_is_the_same_ptx() -> None:
    assert ptx_of(_SUM, get("sm_80")) == compile_source(_SUM, get("sm_80")).ptx


def test_the_log_of_ptxas_is_read() -> None:
    assert usages(_LOG) == {
        "first": Usage(255, 16, 8, 12, 256, 384, 1),
        "second": Usage(8, 0, 0, 0, 0, 0, 0),
    }


def test_equal_code_has_an_equal_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.cache, "load_files", lambda _: None)
    first, second = (compile_source(_SUM, get("sm_75")) for _ in range(2))
    assert first == second and "Compile time" not in first.log


def test_source_that_does_not_compile_is_an_error_with_the_kernels_name() -> None:
    with pytest.raises(SqError, match="kernel odd does not compile for sm_86") as refused:
        compile_source('extern "C" __global__ void odd() { missing(); }', get("sm_86"), "odd")
    assert 'odd.cu(1): error: identifier "missing" is undefined' in str(refused.value)


def test_integer_types_have_their_widths_and_signs() -> None:
    checks = "\n".join(
        f"static_assert(sizeof({sign}int{bits}_t) * 8 == {bits});"
        f"static_assert(std::is_{'un' * bool(sign)}signed<{sign}int{bits}_t>::value);"
        f"static_assert(std::is_integral<{sign}int{bits}_t>::value);"
        for bits in (8, 16, 32, 64)
        for sign in ("", "u")
    )
    names = "\n".join(
        f"using cuda::std::{sign}int{bits}_t;" for bits in (8, 16, 32, 64) for sign in ("", "u")
    )
    traits = ("is_same_v", "is_integral", "is_signed", "is_unsigned", "is_floating_point")
    source = f"""#include <cuda/std/cstdint>
#include <cuda/std/type_traits>
{names}
namespace std {{ {"".join(f"using cuda::std::{one};" for one in traits)} }}
{checks}
static_assert(std::is_floating_point<float>::value && !std::is_integral<float>::value);
static_assert(std::is_same_v<int8_t, signed char> && !std::is_same_v<int8_t, char>);
static_assert(cuda::std::is_same_v<cuda::std::conditional<false, int, float>::type, float>);
extern "C" __global__ void nothing() {{}}
"""
    assert compile_source(source, get("sm_80")).usage["nothing"].registers > 0
