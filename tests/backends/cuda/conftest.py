"""What the CUDA target's tests need: the packages of sqcompile[cuda], a stub driver, a GPU."""

import ctypes
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import require_tool

STUB = Path(__file__).parent / "stub_driver"
_PACKAGES = {"cuda.bindings": "cuda-bindings", "nvidia.cu13": "nvidia-cuda-nvrtc"}


def _missing() -> list[str]:
    missing = []
    for module, package in _PACKAGES.items():
        try:
            found = find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            missing.append(package)
    return missing


def _has_gpu() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and (count.value > 0)
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder's tests without the packages, and those marked `gpu` without a GPU."""
    missing = _missing()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if missing:
            reason = f"sqcompile[cuda] is not installed: no {', '.join(missing)}"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU and driver on this machine"))


@pytest.fixture(scope="session")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for libcuda.so.1 and libcudart.so.13; see stub_driver/."""
    compiler = require_tool("g++")
    folder = tmp_path_factory.mktemp("stub_driver")
    common = [compiler, "-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    driver, runtime = folder / "libcuda.so.1", folder / "libcudart.so.13"
    names = [f"-Wl,-soname,{path.name}" for path in (driver, runtime)]
    versions = f"-Wl,--version-script={STUB / 'runtime.map'}"
    subprocess.run([*common, names[0], "-o", driver, STUB / "driver.cpp"], check=True)
    subprocess.run(
        [*common, names[1], versions, "-Wl,-rpath,$ORIGIN", "-o", runtime]
        + [STUB / "runtime.cpp", driver],
        check=True,
    )
    return folder
