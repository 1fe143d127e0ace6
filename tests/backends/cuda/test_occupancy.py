"""Occupancy, against NVIDIA's own calculation compiled from cuda_occupancy.h."""

import random
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from sqcompile.backends.cuda.architectures import ARCHITECTURES, get
from sqcompile.backends.cuda.occupancy import Occupancy, occupancy
from tests.conftest import require_tool

_PROGRAM = """#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, threads, registers, shared, sm[6];
  while (std::scanf("%d %d %d %d %d", &major, &minor, &threads, &registers, &shared) == 5 &&
         std::scanf("%d %d %d %d %d %d", sm, sm + 1, sm + 2, sm + 3, sm + 4, sm + 5) == 6) {
    cudaOccDeviceProp device;
    device.computeMajor = major; device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = sm[0];
    device.regsPerBlock = 65536; device.regsPerMultiprocessor = 65536; device.warpSize = 32;
    device.sharedMemPerBlock = 49152; device.sharedMemPerMultiprocessor = sm[1];
    device.numSms = 1; device.sharedMemPerBlockOptin = sm[2];
    device.reservedSharedMemPerBlock = sm[3];
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = 1024; function.numRegs = registers;
    function.sharedSizeBytes = 0; function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = shared; function.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads,
                                                shared))
      result.activeBlocksPerMultiprocessor = -1;
    std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def _headers() -> Path | None:
    try:
        place = distribution("nvidia-cuda-runtime").locate_file("nvidia/cu13/include")
    except PackageNotFoundError:
        return None
    return Path(str(place))


def test_blocks_are_those_of_nvidias_calculation(tmp_path: Path) -> None:
    compiler, headers = require_tool("g++"), _headers()
    if headers is None:
        pytest.skip("no nvidia-cuda-runtime with its cuda_occupancy.h")
    (tmp_path / "blocks.cpp").write_text(_PROGRAM)
    program = tmp_path / "blocks"
    subprocess.run(
        [compiler, f"-I{headers}", "-w", "-o", program, tmp_path / "blocks.cpp"], check=True
    )
    draw = random.Random(5)
    cases = [
        (
            architecture,
            draw.choice((1, 24, 32, 64, 96, 128, 256, 416, 512, 1024)),
            draw.randint(8, 255),
            draw.choice((0, draw.randint(1, 49152), draw.randint(1, 230000))),
        )
        for architecture in ARCHITECTURES.values()
        for _ in range(200)
    ]
    lines = [
        f"{a.number // 10} {a.number % 10} {threads} {registers} {shared} {a.limits.threads_sm} "
        f"{a.limits.shared_sm} {a.limits.shared_block} {a.limits.shared_reserved} 0 0"
        for a, threads, registers, shared in cases
    ]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.split()]
    found = [
        occupancy(a.limits, threads=threads, registers=registers, shared=shared).blocks
        for a, threads, registers, shared in cases
    ]
    wrong = [(*case, f, e) for case, f, e in zip(cases, found, expected, strict=True) if f != e]
    assert not wrong, wrong[:3]


def test_the_limit_is_named() -> None:
    limits = get("sm_80").limits
    assert occupancy(limits, threads=256, registers=64, shared=0) == Occupancy(
        4, 32, 0.5, "registers"
    )
    assert occupancy(limits, threads=256, registers=16, shared=50000).limited_by == "shared memory"
    assert occupancy(limits, threads=512, registers=32, shared=0).share == 1.0
    assert occupancy(limits, threads=32, registers=16, shared=0).limited_by == "blocks"
    assert occupancy(limits, threads=256, registers=16, shared=200000).blocks == 0
