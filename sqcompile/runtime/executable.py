"""A compiled module in this process, called with torch tensors.

TVM assumes, unchecked, that tensors are contiguous and of the shapes and dtypes compiled for. The
guard here copies tensors that are not contiguous and refuses others, so that nothing a caller
passes reaches a kernel unchecked. The CPU's kernels assume no alignment; a GPU's load vectors, and
get a copy of a tensor that begins inside of one. How code becomes a virtual machine on a device is
the target's (`sqcompile.runtime.machines`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from sqcompile.errors import InputError, TargetUnavailableError
from sqcompile.runtime import cpu_flags, machines, threads

_ALIGNMENT = {"cpu": 1, "cuda": 16}
"""What the address of a tensor must be a multiple of, by torch's name of the device."""
Port = tuple[tuple[int, ...], str]
"""Shape and dtype ("float32") of a tensor."""
_OBJECT = re.compile(r"kernels_\d+\.o")
_SOURCES = (".ll", ".cu", ".log")
"""How the names of files that only people read end."""


@dataclass(frozen=True)
class Binary:
    """A compiled module as bytes.

    vm: one line of JSON with the target, what every function takes and gives and the vector
    instructions of the CPU that it is for, then VM bytecode;
    objects: the kernels' object files for the CPU; sources: what they were made from by file name,
    for readers; images: what another device loads, by file name.
    """

    vm: bytes
    objects: list[bytes]
    sources: dict[str, str] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        bytecode: bytes,
        ports: Mapping[str, tuple[Sequence[Port], Sequence[Port]]],
        objects: list[bytes],
        sources: dict[str, str],
        images: dict[str, bytes] | None = None,
        target: str = "cpu",
        needs: Sequence[str] = (),
    ) -> "Binary":
        """From bytecode and, for each function, its inputs and outputs."""
        head = json.dumps({"target": target, "ports": ports, "needs": needs}).encode()
        return cls(head + b"\n" + bytecode, objects, sources, images or {})

    def files(self) -> dict[str, bytes]:
        """The binary as named files: vm.bin, kernels_0.o, ..., the sources and the images."""
        files = {"vm.bin": self.vm}
        files |= {f"kernels_{n}.o": code for n, code in enumerate(self.objects)}
        files |= {name: text.encode() for name, text in self.sources.items()}
        return files | self.images

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Binary":
        """The inverse of `files`; raises KeyError when one is missing."""
        objects = {name for name in files if _OBJECT.fullmatch(name)}
        sources = {name for name in files if name.endswith(_SOURCES)}
        images = set(files) - objects - sources - {"vm.bin"}
        return cls(
            files["vm.bin"],
            [files[f"kernels_{n}.o"] for n in range(len(objects))],
            {name: files[name].decode() for name in sorted(sources)},
            {name: files[name] for name in sorted(images)},
        )

    @property
    def bytecode(self) -> bytes:
        """What the VM loads."""
        return self.vm.partition(b"\n")[2]

    @cached_property
    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = json.loads(self.vm.partition(b"\n")[0])
        return head

    @property
    def target(self) -> str:
        """The name of the target that it runs on."""
        return str(self._head["target"])

    def require_cpu(self) -> None:
        """Raise TargetUnavailableError when this machine lacks instructions of the CPU that the
        code is for, which would end the process."""
        if lacking := cpu_flags.missing(self._head["needs"]):
            raise TargetUnavailableError(
                f"this code is for a CPU with {', '.join(lacking)}, which this machine does not "
                "have\n  compile the model here, or with --mcpu x86-64-v3 for most machines."
            )

    @cached_property
    def ports(self) -> dict[str, tuple[list[Port], list[Port]]]:
        """Inputs and outputs of every function."""

        def listed(side: list[Any]) -> list[Port]:
            return [(tuple(shape), dtype) for shape, dtype in side]

        return {name: (listed(i), listed(o)) for name, (i, o) in self._head["ports"].items()}


class Executable:
    """A Binary that runs in this process; loading takes milliseconds and no compiler.

    Code for the CPU is loaded at once, code for another device when it first runs there: it is
    compiled on machines that do not have the device.
    """

    def __init__(self, binary: Binary) -> None:
        self.binary = binary
        self.device = machines.device_type(binary.target)
        self._machines: dict[int, Any] = {}
        self.running = RLock()
        """Held while a function runs: the VM has one stack of frames, and calls release the GIL."""
        if self.device == "cpu":
            self.machine()
        self._functions = {
            name: Function(self, name, inputs) for name, (inputs, _) in binary.ports.items()
        }

    def machine(self, index: int = 0) -> Any:
        """The virtual machine on device number `index`; `machine()[name]` is a function of it that
        takes what TVM takes, unchecked.

        Raises TargetUnavailableError when there is no such device.
        """
        if index not in self._machines:
            self._machines[index] = machines.load(self.binary, index)
        return self._machines[index]

    def emulate(self, part: str | None = None) -> None:
        """Run on the CPU from now on, the kernels in the target's emulator: those of the
        architecture `part`, or the newest."""
        self._machines = {0: machines.load_emulated(self.binary, part)}
        self.device = "cpu"
        for function in self._functions.values():
            function.reset()

    def instrument(self, hook: Any) -> None:
        """Call hook(function, symbol, before, result, *arguments) around every kernel and return
        its 0 to the VM; for this Executable's whole life, so profile one of your own."""
        self.machine().set_instrument(hook)

    def function(self, name: str) -> "Function":
        """The compiled function called `name` ("forward", "backward"); KeyError if absent."""
        return self._functions[name]


class Function:
    """A compiled function: `function(*tensors)` gives the list of its results."""

    def __init__(self, executable: Executable, name: str, inputs: Sequence[Port]) -> None:
        self.name = name
        self._executable = executable
        self.reset()
        self._expected = [(torch.Size(shape), getattr(torch, dtype)) for shape, dtype in inputs]

    def reset(self) -> None:
        """Forget where it ran before: its executable runs elsewhere now."""
        self._device = self._executable.device
        self._run: dict[int, Any] = {}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run on tensors of the compiled shapes and dtypes; results are fresh tensors.

        They are on the CPU, or all on one GPU, where the kernels go to torch's current stream and
        nothing waits for them. Raises InputError for a wrong number, shape, dtype or device.
        Tensors that are not contiguous are copied first. Gradients are not tracked.
        """
        if len(tensors) != len(self._expected):
            raise InputError(f"{self.name} takes {len(self._expected)} tensors, got {len(tensors)}")
        ready = [
            self._checked(index, tensor, *expected)
            for index, (tensor, expected) in enumerate(zip(tensors, self._expected, strict=True))
        ]
        index = self._index(ready)
        threads.apply()
        with self._executable.running, machines.on_current_stream(self._device, index):
            if index not in self._run:  # what loading copies to a GPU goes to the stream, too
                self._executable.binary.require_cpu()
                self._run[index] = self._executable.machine(index)[self.name]
            return [_torch(one) for one in self._run[index](*ready)]

    def _index(self, tensors: Sequence[Tensor]) -> int:
        """The number of the device that all tensors are on."""
        found = {tensor.device.index or 0 for tensor in tensors}
        if len(found) > 1:
            raise InputError(f"{self.name}: the arguments are on {len(found)} GPUs")
        return found.pop() if found else 0

    def _checked(self, index: int, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise InputError(f"{self.name}: argument {index} is a {type(tensor).__name__}")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise InputError(
                f"{self.name}: argument {index} is {dtype} {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
        if tensor.device.type != self._device or tensor.layout != torch.strided:
            machines.require(self._device)
            where = "the CPU" if self._device == "cpu" else "a GPU"
            raise InputError(
                f"{self.name}: argument {index} is on {tensor.device}, not a dense tensor on "
                f"{where}; move the step and its inputs with .to('{self._device}')"
            )
        return aligned(tensor.detach().resolve_neg().contiguous(), self._device)


def aligned(tensor: Tensor, device: str) -> Tensor:
    """A tensor as kernels on a device may read it: a copy of one that begins inside of a vector."""
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT[device] else tensor


def _torch(value: Any) -> Tensor:
    """A result as a torch tensor on the same memory."""
    return value if isinstance(value, Tensor) else torch.utils.dlpack.from_dlpack(value)
