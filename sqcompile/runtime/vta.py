"""A binary of the VTA target in this process: the CPU's kernels, and programs in the simulator.

A module calls three external functions for every program; each gets the identity of its program
first, PACK and UNPACK also which part of the operands it reads (all where that is empty). Programs
are data: they are read from the binary's images, and nothing but the simulator executes them.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax

from sqcompile.backends.vta.program import Program
from sqcompile.backends.vta.simulator import machine as simulator
from sqcompile.errors import UsageError
from sqcompile.runtime import machines
from sqcompile.runtime.executable import Binary

INDEX = "vta.json"
"""The image that says which programs there are."""
FORMAT = 3
"""Of the index and of the programs."""
PACK, EXECUTE, UNPACK, ADD = (
    f"sqcompile.vta.{name}" for name in ("pack", "execute", "unpack", "add")
)
"""Operands into an image of DRAM; the program; results out of DRAM; parts to their sum."""

_programs: WeakValueDictionary[str, Program] = WeakValueDictionary()
"""Programs by identity, for as long as a machine has them."""
_seeds: list[int | None] = [None]
"""How the modules of the accelerator interleave: the last one holds."""
executed: Counter[str] = Counter()
"""How often each program ran in this process, by identity."""


@contextmanager
def interleaving(seed: int | None) -> Iterator[None]:
    """Programs that run inside interleave their modules at random; None: as early as possible."""
    _seeds.append(seed)
    try:
        yield
    finally:
        _seeds.pop()


def index_of(binary: Binary) -> dict[str, Any]:
    """The index of a binary; raises UsageError for one that this version does not read."""
    found: dict[str, Any] = json.loads(binary.images[INDEX])
    if found["format"] != FORMAT:
        raise UsageError(
            f"the programs have format {found['format']}, this version reads {FORMAT}; "
            "compile the model again"
        )
    return found


def programs(binary: Binary) -> dict[str, Program]:
    """The programs of a binary by identity."""
    return {
        name: Program.from_bytes(binary.images[f"{name}.program"])
        for name in index_of(binary)["programs"]
    }


def machine(binary: Binary, index: int) -> Any:
    """A virtual machine on the CPU, whose products run in the simulator."""
    module = machines.executable_module(binary.bytecode)
    if binary.objects:
        module.import_module(machines.linked(list(binary.objects)))
    found = relax.VirtualMachine(module, tvm.cpu(index))
    found.programs = [_programs.setdefault(name, one) for name, one in programs(binary).items()]
    return found


def taken(cut: str, operands: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """What a part reads of its product's operands."""
    if not cut:
        return list(operands)
    places = json.loads(cut)
    return [
        one if place is None else one[(slice(None),) * place[0] + (slice(place[1], place[2]),)]
        for one, place in zip(operands, places, strict=True)
    ]


def _pack(identity: str, cut: str, *tensors: Any) -> None:
    *operands, image = map(_array, tensors)
    image[...] = np.frombuffer(_programs[identity].image(taken(cut, operands)), np.uint8)


def _execute(identity: str, *tensors: Any) -> None:
    image, after = map(_array, tensors)
    program = _programs[identity]
    outcome = simulator.run(program.hardware, program.decoded, image.tobytes(), _seeds[-1])
    after[...] = np.frombuffer(outcome.dram, np.uint8)
    executed[identity] += 1


def _unpack(identity: str, cut: str, *tensors: Any) -> None:
    program = _programs[identity]
    image, *given = map(_array, tensors)
    results = [given.pop() for _ in range(1 + program.has_sums)][::-1]
    dram, operands = image.tobytes(), taken(cut, given)
    results[0][...] = program.result(dram, operands)
    if program.has_sums:
        results[1][...] = program.sums(dram, operands)


def _add(*tensors: Any) -> None:
    *parts, total = map(_array, tensors)
    total[...] = sum(part.astype(np.int64) for part in parts)


def _array(tensor: Any) -> NDArray[Any]:
    return np.from_dlpack(tensor)


for _name, _function in {PACK: _pack, EXECUTE: _execute, UNPACK: _unpack, ADD: _add}.items():
    tvm_ffi.register_global_func(_name, _function, override=True)
