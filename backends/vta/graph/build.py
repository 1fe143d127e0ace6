"""From a lowered module to a Binary: the CPU's code, and programs of the accelerator as data.

A binary holds, beside what one for the CPU has,

    NAME.program    a program with the layout of its operands (backends/vta/program.py)
    NAME.product    what a program computes that is written in the run (backends/vta/written.py)
    vta.json        the format, the accelerator, the programs by kernel, how groups are shifted and
                    what that was chosen from, and why a product has no program
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
from sqcompile.backends.vta.graph.fused import Fusions
from sqcompile.backends.vta.graph.report import accelerator
from sqcompile.runtime.executable import Binary
from sqcompile.runtime.vta import FORMAT, INDEX, PRODUCT, PROGRAM, stated, stated_rooms

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
    specs = candidates(module)
    for name, spec in specs.items():
        asked = offload.offload(spec, chosen)
        if not isinstance(asked, str):
            offloads[name] = asked
        elif spec.op in table.PRODUCTS:
            left[name] = asked
    found = partition.partitioned(module, offloads, Fusions(specs, chosen))
    kernels = {name: [one.identity for one in parts] for name, parts in found.programs.items()}
    made = {one.identity: one for parts in found.programs.values() for one in parts}
    images = {
        f"{name}.{PRODUCT if one.written_for else PROGRAM}": one.data for name, one in made.items()
    }
    index = {
        "format": FORMAT,
        "hardware": asdict(chosen),
        "kernels": kernels,
        "left": left,
        "programs": sorted(name for name, one in made.items() if not one.written_for),
        "written": sorted(name for name, one in made.items() if one.written_for),
        "shifts": {name: asdict(one.choice) for name, one in made.items() if one.choice},
    }
    images[INDEX] = json.dumps(index, indent=1).encode()
    return host.build(found.module, target, images)


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
    """The assembly of the CPU's kernels, every program as text, and the TIR of products; of those
    that are written in the run, the one with the most planes."""
    texts, rooms = host.listings(binary), stated_rooms(binary)
    for name, program in stated(binary).items():
        room = rooms.get(name)
        head = f" with room for {', '.join(map(str, room))} values of each group\n" if room else ""
        text = assembler.listing(program.hardware, program.decoded)
        texts[f"{name}.txt"] = f";{head}{text}" if room else text
        script = program.form.script()
        if script is not None:
            texts[f"{name}.tir"] = f"#{head}{script}" if room else script
    return texts


def kernel_rows(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> list[dict[str, Any]]:
    """None: what is known of programs is `accelerator`."""
    return []
