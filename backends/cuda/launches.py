"""What a CUDA kernel is once TVM has split it: device functions, and how its host function launches
them.

TVM makes a device function of every launch of a kernel, and a host function which allocates the
memory between them and launches them in order. `lowered` splits kernels as compilation does and
reads the launches out of the host functions, so that a run without TVM's runtime, as in the
emulator, launches what a GPU would.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import DataType, tirx
from tvm.target import Target
from tvm.tirx.build import codegen_build, split_host_device_mods

_SYMBOL = "__tvm_ffi_"
_LAUNCH = "call_ffi_kernel"
_DYNAMIC = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Memory:
    """A pointer that a launch passes: parameter `index` of the kernel, or its workspace `index`."""

    workspace: bool
    index: int


Argument = Memory | int | float


@dataclass(frozen=True)
class Launch:
    """One launch of a device function: its name, its grid and block (x, y, z), bytes of dynamic
    shared memory, and its arguments in order."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Launches:
    """What one call of a kernel does: launches in order, on workspaces of so many bytes."""

    steps: tuple[Launch, ...]
    workspaces: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Kernels split: the device functions of all of them, and the launches of each by name."""

    device: tvm.IRModule
    target: Target
    launches: Mapping[str, Launches]

    def source(self) -> str:
        """CUDA C++ of all device functions."""
        if not self.device.functions:
            return ""
        return str(codegen_build(self.device, self.target).inspect_source())


def lowered(kernels: Mapping[str, tirx.PrimFunc], target: Target) -> Program:
    """Split kernels, by name, for a CUDA target with a host."""
    named = {name: one.with_attr("global_symbol", name) for name, one in kernels.items()}
    module = tirx.transform.BindTarget(target)(tvm.IRModule(named))
    pipeline, _, finalize = tirx.get_default_tir_pipeline(target)
    host, devices = split_host_device_mods(pipeline(module))
    device = tvm.IRModule()
    for one in devices.values():
        device.update(finalize()(one))
    found = {}
    for function in host.functions.values():
        symbol = str(function.attrs["global_symbol"]).removeprefix(_SYMBOL)
        found[symbol] = _Host(symbol, function.body).launches()
    return Program(device, target, found)


class _Host:
    """A host function: what its variables are, and the launches that it makes."""

    def __init__(self, name: str, body: Any) -> None:
        self.name = name
        self.known: dict[Any, Memory] = {}
        self.workspaces: list[int] = []
        self.parameters = 0
        self.statements = list(_statements(body))

    def launches(self) -> Launches:
        """All of them; raises NotImplementedError for a host function that decides or computes."""
        steps: list[Launch] = []
        for statement in self.statements:
            kind = type(statement).__name__
            if kind == "AllocBuffer":
                self.known[statement.buffer] = Memory(True, len(self.workspaces))
                self.workspaces.append(_bytes(statement.buffer))
            elif kind == "DeclBuffer":
                self._declare(statement)
            elif kind == "Evaluate" and _called(statement.value) == _LAUNCH:
                steps.append(self._launch(statement.value))
            elif kind in ("For", "While", "BufferStore"):
                raise NotImplementedError(f"{self.name}: the host function has a {kind}")
        return Launches(tuple(steps), tuple(self.workspaces))

    def _declare(self, statement: Any) -> None:
        """A view has the memory of what it views; others are the parameters, in order."""
        viewed = self.known.get(_buffer(statement.data))
        if viewed is None:
            viewed = Memory(False, self.parameters)
            self.parameters += 1
        self.known[statement.buffer] = viewed

    def _launch(self, call: Any) -> Launch:
        name, *given = call.args
        tags = [str(tag) for tag in call.attrs["launch_params"]]
        values = given[len(given) - len(tags) :] if tags else []
        extents = {tag: int(value) for tag, value in zip(tags, values, strict=True)}
        arguments = tuple(self._argument(one) for one in given[: len(given) - len(tags)])

        def size(part: str) -> tuple[int, int, int]:
            x, y, z = (extents.get(f"{part}.{axis}", 1) for axis in "xyz")
            return x, y, z

        dynamic = extents.get(_DYNAMIC, 0)
        return Launch(str(name.value), size("blockIdx"), size("threadIdx"), dynamic, arguments)

    def _argument(self, value: Any) -> Argument:
        memory = self.known.get(_buffer(value))
        if memory is not None:
            return memory
        number = getattr(value, "value", None)
        if isinstance(number, (int, float)):
            return number
        raise NotImplementedError(f"{self.name}: a launch takes {value}, which the host computes")


def _statements(body: Any) -> Iterator[Any]:
    """All statements of a body, in order."""
    kind = type(body).__name__
    if kind == "SeqStmt":
        for one in body.seq:
            yield from _statements(one)
        return
    yield body
    for part in ("body", "then_case", "else_case"):
        inner = getattr(body, part, None)
        if inner is not None:
            yield from _statements(inner)


def _called(value: Any) -> str:
    """The name of the op that an expression calls, without its namespace."""
    name = getattr(getattr(value, "op", None), "name", "")
    return str(name).rpartition(".")[2]


def _buffer(value: Any) -> Any:
    """The buffer whose pointer an expression is, None of another one."""
    return value.args[0] if _called(value) == "buffer_data" else None


def _bytes(buffer: Any) -> int:
    bits = DataType(str(buffer.dtype)).bits
    return prod(int(n) for n in buffer.shape) * -(-bits // 8)
