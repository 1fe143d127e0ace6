"""The CPU that code is compiled for must not promise what the machine hides."""

import pytest
import tvm

from sqcompile.backends.cpu import host
from sqcompile.runtime import cpu_flags

_FLAGS = """
sse4_2 popcnt avx avx2 bmi1 bmi2 fma f16c avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl
avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq
"""


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ((), "znver4"),
        (("avx512",), "x86-64-v3"),
        (("avx512_bf16",), "x86-64-v4"),
        (("avx", "fma"), "x86-64-v2"),
    ],
    ids=["nothing", "avx512", "one-extension", "avx"],
)
def test_hidden_instructions_lower_the_level(tmp_path, monkeypatch, hidden, expected):
    flags = _FLAGS.split()
    shown = [flag for flag in flags if not flag.startswith(hidden)] if hidden else flags
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {' '.join(shown)}\n")
    monkeypatch.setattr(cpu_flags, "CPUINFO", cpuinfo)
    monkeypatch.setattr(tvm.target.codegen, "llvm_get_system_cpu", lambda: "znver4")
    assert host.host_cpu() == expected


def test_without_a_list_of_flags_llvm_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_flags, "CPUINFO", tmp_path / "none")
    assert host.host_cpu() == str(tvm.target.codegen.llvm_get_system_cpu())
