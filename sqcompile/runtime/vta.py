"""A binary of the VTA target in this process: the CPU's kernels, and programs in the simulator.

A module calls three external functions for every program; each gets the identity of its program
first, PACK and UNPACK also which part of the operands it reads (all where that is empty). Programs
are data: they are read from the binary's images, and nothing but the simulator executes them.

Where a program is written in the run, LENGTHS is called first: for how many values of each
exponent it needs room. That tensor stands behind the operands of the other calls, and says which
program is meant.
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
from sqcompile.backends.vta.written import Written
from sqcompile.errors import UsageError
from sqcompile.runtime import machines
from sqcompile.runtime.executable import Binary

INDEX = "vta.json"
"""The image that says which programs there are."""
FORMAT = 3
"""Of the index and of the programs."""
PROGRAM, PRODUCT = "program", "product"
"""How the names end of the images with programs, and with products whose programs are written."""
LENGTHS, PACK, EXECUTE, UNPACK, ADD = (
    f"sqcompile.vta.{name}" for name in ("lengths", "pack", "execute", "unpack", "add")
)
"""Exponents to the room that they need; operands into an image of DRAM; the program; results out of
DRAM; parts to their sum."""

_programs: WeakValueDictionary[str, Program | Written] = WeakValueDictionary()
"""Programs, and products whose programs are written, by identity, for as long as a machine has
them."""
_seeds: list[int | None] = [None]
"""How the modules of the accelerator interleave: the last one holds."""
executed: Counter[str] = Counter()
"""How often each program ran in this process, by identity."""
written_for: Counter[tuple[str, tuple[int, ...]]] = Counter()
"""How often a program ran that was written for such lengths, by identity and lengths."""


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
        name: Program.from_bytes(binary.images[f"{name}.{PROGRAM}"])
        for name in index_of(binary)["programs"]
    }


def written(binary: Binary) -> dict[str, Written]:
    """The products of a binary whose programs are written in the run, by identity; raises
    UsageError for an image that describes none."""
    return {
        name: Written.from_bytes(binary.images[f"{name}.{PRODUCT}"], name)
        for name in index_of(binary)["written"]
    }


def stated_rooms(binary: Binary) -> dict[str, tuple[int, ...]]:
    """The room for each group of the programs that stand for those of a run, by identity: that of
    the lengths that ask for the most planes."""
    index = index_of(binary)
    return {name: tuple(index["shifts"][name]["most"]["counts"]) for name in index["written"]}


def stated(binary: Binary) -> dict[str, Program]:
    """The programs of a binary by identity; one, with the stated room, of those that are written in
    the run."""
    rooms = stated_rooms(binary)
    own = {name: one.program(rooms[name]) for name, one in written(binary).items()}
    return programs(binary) | own


def machine(binary: Binary, index: int) -> Any:
    """A virtual machine on the CPU, whose products run in the simulator."""
    module = machines.executable_module(binary.bytecode)
    if binary.objects:
        module.import_module(machines.linked(list(binary.objects)))
    found = relax.VirtualMachine(module, tvm.cpu(index))
    own = programs(binary) | written(binary)
    found.programs = [_programs.setdefault(name, one) for name, one in own.items()]
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


def _lengths(identity: str, cut: str, *tensors: Any) -> None:
    *exponents, lengths = map(_array, tensors)
    product = _programs[identity]
    assert isinstance(product, Written)
    (exponent,) = taken(cut, exponents)
    lengths[...] = product.room(exponent)


def _pack(identity: str, cut: str, *tensors: Any) -> None:
    *operands, image = map(_array, tensors)
    program, operands = _meant(identity, operands)
    image[...] = _filled(program.image(taken(cut, operands)), program, len(image))


def _execute(identity: str, *tensors: Any) -> None:
    image, *lengths, after = map(_array, tensors)
    program, _ = _meant(identity, lengths)
    before = program.with_uops(image.tobytes())
    outcome = simulator.run(program.hardware, program.decoded, before, _seeds[-1])
    after[...] = _filled(outcome.dram, program, len(after))
    executed[identity] += 1
    if lengths:
        written_for[identity, _counts(lengths[0])] += 1


def _unpack(identity: str, cut: str, *tensors: Any) -> None:
    image, *given = map(_array, tensors)
    several = _programs[identity].has_sums
    results = [given.pop() for _ in range(1 + several)][::-1]
    program, given = _meant(identity, given)
    dram, operands = image.tobytes(), taken(cut, given)
    results[0][...] = program.result(dram, operands)
    if several:
        results[1][...] = program.sums(dram, operands)


def _meant(identity: str, tensors: list[NDArray[Any]]) -> tuple[Program, list[NDArray[Any]]]:
    """The program, and the tensors but for the lengths that it was written for."""
    found = _programs[identity]
    if isinstance(found, Program):
        return found, tensors
    *others, lengths = tensors
    return found.program(_counts(lengths)), others


def _counts(lengths: NDArray[Any]) -> tuple[int, ...]:
    return tuple(map(int, lengths))


def _filled(dram: bytes, program: Program, size: int) -> NDArray[np.uint8]:
    """DRAM in a tensor of `size` bytes. Micro-ops that are behind its end are the program's own,
    and come to it when it runs."""
    needed = program.data_end
    if needed > size:
        raise UsageError(f"the program works in {needed} bytes of DRAM, and it is given {size}")
    return np.frombuffer(dram[:size].ljust(size, b"\0"), np.uint8)


def _add(*tensors: Any) -> None:
    *parts, total = map(_array, tensors)
    total[...] = sum(part.astype(np.int64) for part in parts)


def _array(tensor: Any) -> NDArray[Any]:
    return np.from_dlpack(tensor)


_FUNCTIONS = {LENGTHS: _lengths, PACK: _pack, EXECUTE: _execute, UNPACK: _unpack, ADD: _add}
for _name, _function in _FUNCTIONS.items():
    tvm_ffi.register_global_func(_name, _function, override=True)
