"""Lowered modules to binaries: what is in them, for each architecture, and what is refused."""

import json

import pytest
from tvm.script import tirx as T

from sqcompile.api import binary_key
from sqcompile.backends import targets
from sqcompile.backends.cuda import nvrtc
from sqcompile.backends.cuda.architectures import cuda_target, get
from sqcompile.backends.cuda.build import build, listings
from sqcompile.backends.cuda.split import Launch, split
from sqcompile.errors import SqError, TargetUnavailableError
from sqcompile.runtime.cuda import INDEX
from sqcompile.runtime.executable import Binary, Executable
from tests.backends.cuda import kernels
from tests.backends.cuda.modules import compiled, products, two_floats


@pytest.fixture(scope="module")
def floats() -> Binary:
    return compiled(two_floats(), "sm_90,sm_80")


def test_a_binary_holds_cubin_ptx_source_and_log_of_every_kernel_and_architecture(
    floats: Binary,
) -> None:
    for architecture in ("sm_80", "sm_90"):
        for kernel in ("scaled_sum", "reversed_blocks"):
            stem = f"{architecture}/{kernel}"
            assert floats.images[f"{stem}.cubin"].startswith(b"\x7fELF")
            ptx = floats.images[f"{stem}.ptx"].decode()
            assert f".target {architecture}" in ptx and f".entry {kernel}_kernel(" in ptx
            assert "__global__" in floats.sources[f"{stem}.cu"]
            assert f"for '{architecture}'" in floats.sources[f"{stem}.log"]
    assert floats.target == "cuda"
    assert floats.objects == []


def test_a_binary_is_the_same_after_being_files(floats: Binary) -> None:
    assert Binary.from_files(floats.files()) == floats


def test_device_json_has_the_launches_and_what_their_pointers_are(floats: Binary) -> None:
    found = json.loads(floats.images[INDEX])["architectures"]["sm_90"]["reversed_blocks"]
    assert [one["arguments"] for one in found["launches"]] == [[0, -1], [-1, 1]]
    assert found["workspaces"] == [4000]
    assert found["functions"]["reversed_blocks_kernel_1"]["launch_param_tags"] == [
        "blockIdx.x",
        "threadIdx.x",
        "tirx.use_dyn_shared_memory",
    ]


def test_products_use_the_instructions_that_were_asked_for() -> None:
    sass = listings(compiled(products(), "sm_86"))
    assert "IDP.4A.S8.S8" in sass["sm_86/dot_products.sass"]
    assert "IMMA.16832.S8.S8" in sass["sm_86/tile_product.sass"]


def test_code_for_a_gpu_is_loaded_when_it_runs_not_when_it_is_compiled(floats: Binary) -> None:
    executable = Executable(floats)
    assert executable.device == "cuda"
    assert executable.function("forward").name == "forward"


def test_the_cache_tells_architectures_apart() -> None:
    modules = [two_floats()]
    first, second = (targets.get("cuda", arch=arch) for arch in ("sm_80", "sm_86"))
    assert binary_key(modules, first) == binary_key(modules, first)
    assert binary_key(modules, first) != binary_key(modules, second)


def test_without_the_compiler_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "PACKAGES", ("no-such-package",))
    with pytest.raises(TargetUnavailableError, match=r"pip install sqcompile\[cuda\]") as refused:
        build(two_floats(), target=targets.get("cuda", arch="sm_80"))
    assert refused.value.exit_code == 5


def test_launches_are_read_from_the_host_function() -> None:
    found = split("scaled_sum", kernels.scaled_sum(300, 64), cuda_target(get("sm_80")))
    assert found.launches == (Launch("scaled_sum_kernel", (0, 1, 2), (5, 1, 1), (64, 1, 1), 0),)
    assert found.workspaces == ()


def test_a_kernel_without_threads_is_refused() -> None:
    @T.prim_func(s_tir=True)
    def main(a_: T.handle):
        a = T.match_buffer(a_, (4,), "int32", align=1)
        for i in range(4):
            a[i] = i

    kernel = main.with_attr({"global_symbol": "threadless"})
    with pytest.raises(SqError, match="threadless.*must be bound to threads"):
        split("threadless", kernel, cuda_target(get("sm_80")))
