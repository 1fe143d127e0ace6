"""From a lowered module to a Binary: the CPU's code, and programs of the accelerator as data.

A binary holds, beside what one for the CPU has,

    NAME.program    a program with the layout of its operands (backends/vta/program.py)
    vta.json        the format, the accelerator, the programs by kernel, and why a product has none
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import tvm
from tvm import tirx

from sqcompile.backends.cpu import build as host
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.lower import KernelRecord
from sqcompile.backends.targets import Target
from sqcompile.backends.vta import assembler, hardware
from sqcompile.backends.vta.graph import offload, partition, table
from sqcompile.backends.vta.graph.report import accelerator
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.vta import FORMAT, INDEX, programs

__all__ = [
    "accelerator",
    "build",
    "identity",
    "kernel_rows",
    "left_to_cpu",
    "listings",
    "machines",
]


def machines(target: Target) -> list[Target]:
    """One; raises UsageError for an accelerator that does not exist."""
    hardware.get(target.hw)
    return [target]


def identity(target: Target) -> str:
    """What of the target's options decides the code: the accelerator, its clock and bus too (cycles
    choose between programs), and the CPU."""
    return json.dumps([asdict(hardware.get(target.hw)), host.identity(target)])


def build(module: tvm.IRModule, target: Target) -> Binary:
    """Programs for what the accelerator takes, the CPU's code for the rest."""
    chosen = hardware.get(target.hw)
    offloads: dict[str, list[offload.Offload]] = {}
    left: dict[str, str] = {}
    for name, spec in candidates(module).items():
        made = offload.offload(spec, chosen)
        if not isinstance(made, str):
            offloads[name] = made
        elif spec.op in table.PRODUCTS:
            left[name] = made
    kernels = {name: [one.identity for one in parts] for name, parts in offloads.items()}
    images = {f"{one.identity}.program": one.data for parts in offloads.values() for one in parts}
    index = {
        "format": FORMAT,
        "hardware": asdict(chosen),
        "kernels": kernels,
        "left": left,
        "programs": sorted({name for parts in kernels.values() for name in parts}),
    }
    images[INDEX] = json.dumps(index, indent=1).encode()
    return host.build(partition.partitioned(module, offloads), target, images)


@lru_cache(maxsize=1024)
def left_to_cpu(spec: KernelSpec, target: Target) -> str | None:
    """Why there is no program for a product, "" when there is one; None for what is no product."""
    if spec.op not in table.PRODUCTS:
        return None
    made = offload.offload(spec, hardware.get(target.hw))
    return made if isinstance(made, str) else ""


def candidates(module: tvm.IRModule) -> dict[str, KernelSpec]:
    """The specs of a lowered module's kernels that may become programs, by name."""
    return {
        variable.name_hint: table.spec_from(function.attrs[table.SPEC])
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc) and table.SPEC in function.attrs
    }


def listings(binary: Binary) -> dict[str, str]:
    """The assembly of the CPU's kernels, every program as text, and the TIR of products."""
    texts = host.listings(binary)
    for name, program in programs(binary).items():
        texts[f"{name}.txt"] = assembler.listing(program.hardware, program.decoded)
        script = program.form.script()
        if script is not None:
            texts[f"{name}.tir"] = script
    return texts


def kernel_rows(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> list[dict[str, Any]]:
    """None: what is known of programs is `accelerator`."""
    return []
