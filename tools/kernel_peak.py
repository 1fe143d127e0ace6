"""The measured peak of this CPU's integer dot product: what a product kernel could reach."""

from dataclasses import dataclass

import torch
import tvm
from kernel_timing import best_times
from tvm import tirx

from sqcompile.backends import targets
from sqcompile.backends.cpu import nest
from sqcompile.backends.cpu.machine import Machine, machine
from sqcompile.backends.kernels import KernelSpec, TensorSpec

ACCUMULATORS = 12
"""Independent sums: more than the latency of the instruction times its throughput."""
STEPS = 20_000


@dataclass(frozen=True)
class Peak:
    """Giga-operations (a product and a sum are two) a second of one thread."""

    gops: float
    machine: Machine

    def __str__(self) -> str:
        return f"{self.machine.mcpu}: {self.machine.dot.name} at {self.gops:.0f} GOP/s a thread"


def dot_peak() -> Peak:
    """Time a loop of dot products that reads no memory; the best of several rounds."""
    target = targets.get("cpu").compiled_for()
    with target:
        cpu = machine()
        kernel = _loop(cpu).with_attr("global_symbol", "peak")
    run = tvm.compile(kernel, target=target)["peak"]
    dot = cpu.dot
    words = torch.randint(0, 100, (2, dot.lanes * dot.depth)).to(getattr(torch, dot.left))
    right = words[1].to(getattr(torch, dot.right))
    out = torch.zeros(dot.lanes, dtype=torch.int32)
    best = best_times({"peak": lambda: run(words[0], right, out)})["peak"]
    operations = 2.0 * ACCUMULATORS * STEPS * dot.lanes * dot.depth
    return Peak(operations / best / 1e6, cpu)


def _loop(cpu: Machine) -> object:
    dot = cpu.dot
    size = dot.lanes * dot.depth
    spec = KernelSpec(
        "peak",
        (("left", TensorSpec((size,), dot.left)), ("right", TensorSpec((size,), dot.right))),
        (),
        (TensorSpec((dot.lanes,), "int32"),),
    )
    lanes = nest.ramp(0, dot.lanes)
    with nest.function(spec) as f:
        (out,) = f.outputs
        sums = [nest.scratch(dot.lanes, "int32") for _ in range(ACCUMULATORS)]
        for index, one in enumerate(sums):
            one.store(lanes, nest.splat(nest.const(index, "int32"), dot.lanes))
        left, right = dot.loaded(f["left"], 0), dot.loaded(f["right"], 0)
        with nest.serial(STEPS, "step"):
            for one in sums:
                one.store(lanes, dot.add(one[lanes], left, right))
        total = nest.splat(nest.const(0, "int32"), dot.lanes)
        for one in sums:
            total = tirx.bitwise_xor(total, one[lanes])
        out.store(lanes, total)
    return f.result
