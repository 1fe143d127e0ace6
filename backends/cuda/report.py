"""What is known of every kernel and architecture without a GPU: code, occupancy, an estimate.

Registers, shared memory and spills are ptxas's words, instructions the disassembler's. Bytes and
time are computed, not measured: every tensor is read or written once, in the GPU's memory, and the
time is the longer of moving them and of multiplying, at the peaks that NVIDIA publishes for one
device. A real kernel takes longer; small ones much longer, as launching alone takes microseconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any, NamedTuple

from sqcompile.backends.cuda import sass
from sqcompile.backends.cuda.architectures import Architecture, get
from sqcompile.backends.cuda.nvrtc import Usage, usages
from sqcompile.backends.cuda.occupancy import occupancy
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.lower import KernelRecord
from sqcompile.runtime.cuda import INDEX
from sqcompile.runtime.executable import Binary

Row = dict[str, Any]
_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int32": 4, "float32": 4, "int64": 8}
_PRODUCTS = ("shift_matmul", "conv_fprop", "conv_dgrad", "conv_wgrad")
_DOT = "IDP"


def kernel_rows(
    binary: Binary, records: Sequence[KernelRecord], macs: Mapping[str, int]
) -> list[Row]:
    """A row for every kernel and architecture of a binary, in order.

    records: the kernels as they were lowered; macs: multiply-accumulates of one call, by the name
    of a node that calls a kernel ("forward/mm_1"). Raises TargetUnavailableError without nvdisasm.
    """
    index = json.loads(binary.images[INDEX])["architectures"]
    rows = []
    for name, kernels in index.items():
        architecture = get(name)
        codes = {
            kernel: binary.images[f"{name}/{kernel}.cubin"]
            for kernel, told in kernels.items()
            if told["launches"]
        }
        texts = sass.disassemble(codes, name)
        for record in records:
            if record.name in codes:
                stem = f"{name}/{record.name}"
                source, log = (binary.sources[f"{stem}.{kind}"] for kind in ("cu", "log"))
                ptx = binary.images[f"{stem}.ptx"].decode()
                code = Code(source, ptx, usages(log), sass.instructions(texts[record.name]))
                count = max((macs.get(node, 0) for node in record.nodes), default=0)
                rows.append(kernel_row(architecture, record, kernels[record.name], code, count))
    return rows


class Code(NamedTuple):
    """One kernel for one architecture: its source, its PTX, what its functions use, and their
    instructions."""

    source: str
    ptx: str
    usage: Mapping[str, Usage]
    instructions: Mapping[str, Mapping[str, int]]


def kernel_row(
    architecture: Architecture, record: KernelRecord, told: Row, files: Code, macs: int = 0
) -> Row:
    """The row of one kernel; told: its launches and workspaces, as device.json has them."""
    functions = [_function(architecture, launch, files) for launch in told["launches"]]
    instructions = [files.instructions[one["function"]] for one in functions]
    tensor = any(sass.uses_tensor_cores(found) for found in instructions)
    moved = bytes_moved(record.spec, told["workspaces"])
    faults = _faults(record.spec, functions, tensor)
    for found in instructions:
        faults += sass.rounding_faults(files.source, files.ptx, found)
    return {
        "kernel": record.name,
        "op": record.op,
        "architecture": architecture.name,
        "functions": functions,
        "tensor_cores": tensor,
        "dot_products": any(name.startswith(_DOT) for one in instructions for name in one),
        "macs": macs,
        "bytes": moved,
        "estimate": estimate(architecture, moved, macs if tensor else 0),
        "faults": list(dict.fromkeys(faults)),
    }


def _function(architecture: Architecture, launch: Row, files: Code) -> Row:
    """One launch of a kernel: what its function uses, and how many of its blocks an SM holds."""
    usage: Usage = files.usage[launch["function"]]
    shared = usage.shared + launch["shared"]
    threads = prod(launch["block"])
    held = occupancy(architecture.limits, threads=threads, registers=usage.registers, shared=shared)
    return {
        "function": launch["function"],
        "grid": launch["grid"],
        "block": launch["block"],
        "registers": usage.registers,
        "shared": shared,
        "stack": usage.stack,
        "spill_bytes": usage.spill_stores + usage.spill_loads,
        "occupancy": asdict(held),
        "instructions": sass.mix(files.instructions[launch["function"]]),
    }


def bytes_moved(spec: KernelSpec, workspaces: Sequence[int] = ()) -> int:
    """Bytes of all tensors that a kernel reads and writes, each once; workspaces are written and
    read."""
    tensors = [tensor for _, tensor in spec.tensors()] + list(spec.outputs)
    return sum(_size(tensor) for tensor in tensors) + 2 * sum(workspaces)


def _size(tensor: TensorSpec) -> int:
    return tensor.size * _BYTES[tensor.dtype]


def estimate(architecture: Architecture, moved: int, macs: int) -> Row:
    """Microseconds at the peaks of one device: of its memory for `moved` bytes, and of its tensor
    cores for `macs` multiply-accumulates of int8 (0: not counted)."""
    peaks = architecture.peaks
    memory, compute = moved / peaks.bandwidth * 1e6, 2 * macs / peaks.int8 * 1e6
    return {
        "device": peaks.device,
        "memory_us": memory,
        "compute_us": compute,
        "us": max(memory, compute),
        "bound": "compute" if compute > memory else "memory",
        "sources": peaks.source,
    }


def _faults(spec: KernelSpec, functions: Sequence[Row], tensor: bool) -> list[str]:
    found = []
    for one in functions:
        if one["spill_bytes"]:
            found.append(f"{one['spill_bytes']} bytes of registers spilled in {one['function']}")
        if not one["occupancy"]["blocks"]:
            limit = one["occupancy"]["limited_by"]
            found.append(f"a block of {one['function']} does not fit an SM: {limit}")
    if needs_tensor_cores(spec) and not tensor:
        found.append("a product without an instruction of the tensor cores")
    return found


def needs_tensor_cores(spec: KernelSpec) -> bool:
    """Whether a kernel is a product of integers that tensor cores are for: all but convolutions
    of several groups, which multiply few channels at a time."""
    if not is_product(spec):
        return False
    return spec.short_name.startswith("shift_matmul") or int(spec.get("groups", 1)) == 1


def is_product(spec: KernelSpec) -> bool:
    """Whether a kernel multiplies integers: a matrix product or a convolution."""
    return spec.short_name.startswith(_PRODUCTS)
