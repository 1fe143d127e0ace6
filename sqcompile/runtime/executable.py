"""A compiled module in this process, called with torch tensors.

TVM assumes, unchecked, that tensors are contiguous and of the shapes and dtypes compiled for. The
guard here copies tensors that are not contiguous and refuses others, so that nothing a caller
passes reaches a kernel unchecked. Kernels assume no alignment.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import tvm
import tvm_ffi
import tvm_ffi_orcjit
from torch import Tensor
from tvm import relax

from sqcompile.errors import InputError
from sqcompile.runtime import threads

Port = tuple[tuple[int, ...], str]
"""Shape and dtype ("float32") of a tensor."""


@dataclass(frozen=True)
class Binary:
    """A compiled module as bytes.

    vm: one line of JSON with what every function takes and gives, then VM bytecode; objects: the
    kernels' object files; sources: their LLVM IR by file name, for readers.
    """

    vm: bytes
    objects: list[bytes]
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bytecode: bytes,
        ports: Mapping[str, tuple[Sequence[Port], Sequence[Port]]],
        objects: list[bytes],
        sources: dict[str, str],
    ) -> "Binary":
        """From bytecode and, for each function, its inputs and outputs."""
        return cls(json.dumps(ports).encode() + b"\n" + bytecode, objects, sources)

    def files(self) -> dict[str, bytes]:
        """The binary as named files: vm.bin, kernels_0.o, ..., and the sources."""
        files = {"vm.bin": self.vm}
        files |= {f"kernels_{n}.o": code for n, code in enumerate(self.objects)}
        return files | {name: text.encode() for name, text in self.sources.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Binary":
        """The inverse of `files`; raises KeyError when one is missing."""
        count = sum(name.endswith(".o") for name in files)
        objects = [files[f"kernels_{n}.o"] for n in range(count)]
        sources = {name: content.decode() for name, content in files.items() if name[-3:] == ".ll"}
        return cls(files["vm.bin"], objects, sources)

    @property
    def bytecode(self) -> bytes:
        """What the VM loads."""
        return self.vm.partition(b"\n")[2]

    @cached_property
    def ports(self) -> dict[str, tuple[list[Port], list[Port]]]:
        """Inputs and outputs of every function."""

        def listed(side: list[Any]) -> list[Port]:
            return [(tuple(shape), dtype) for shape, dtype in side]

        described = json.loads(self.vm.partition(b"\n")[0])
        return {name: (listed(i), listed(o)) for name, (i, o) in described.items()}


class Executable:
    """A Binary loaded into this process, which takes milliseconds and no compiler."""

    def __init__(self, binary: Binary) -> None:
        self.binary = binary
        load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.relax.VMExecutable")
        module = load(binary.bytecode)
        if binary.objects:
            session = tvm_ffi_orcjit.default_session()
            module.import_module(session.load_module(list(binary.objects)))
        self._machine = relax.VirtualMachine(module, tvm.cpu())
        self._functions = {
            name: Function(name, self._machine[name], inputs)
            for name, (inputs, _) in binary.ports.items()
        }

    def instrument(self, hook: Any) -> None:
        """Call hook(function, symbol, before, result, *arguments) around every kernel and return
        its 0 to the VM; for this Executable's whole life, so profile one of your own."""
        self._machine.set_instrument(hook)

    def function(self, name: str) -> "Function":
        """The compiled function called `name` ("forward", "backward"); KeyError if absent."""
        return self._functions[name]


class Function:
    """A compiled function: `function(*tensors)` gives the list of its results."""

    def __init__(self, name: str, run: Any, inputs: Sequence[Port]) -> None:
        self.name = name
        self._run = run
        self._expected = [(torch.Size(shape), getattr(torch, dtype)) for shape, dtype in inputs]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run on CPU tensors of the compiled shapes and dtypes; results are fresh tensors.

        Raises InputError for a wrong number, shape, dtype or device. Tensors that are not
        contiguous are copied first. Gradients are not tracked.
        """
        if len(tensors) != len(self._expected):
            raise InputError(f"{self.name} takes {len(self._expected)} tensors, got {len(tensors)}")
        ready = [
            self._checked(index, tensor, *expected)
            for index, (tensor, expected) in enumerate(zip(tensors, self._expected, strict=True))
        ]
        threads.apply()
        return [_torch(one) for one in self._run(*ready)]

    def _checked(self, index: int, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{self.name}: argument {index} is a {type(tensor).__name__}")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise InputError(
                f"{self.name}: argument {index} is {dtype} {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise InputError(f"{self.name}: argument {index} is not a dense tensor on the CPU")
        tensor = tensor.detach().resolve_neg()
        return tensor.contiguous()


def _torch(value: Any) -> Tensor:
    """A result as a torch tensor on the same memory."""
    return value if isinstance(value, Tensor) else torch.utils.dlpack.from_dlpack(value)
