"""A TIR kernel in two: the functions that run on the GPU as CUDA source, and the host function
that launches them, with a table of the launches.

The passes are TVM's own. CUDA source is taken as text: TVM's own compile step, which adds fast
math, is never reached, with a driver on the machine or without one.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from sqcompile.backends.cuda.intrinsics import completed
from sqcompile.errors import SqError

_KEEP_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"
"""Environment variable that TVM reads at each code generation: keep the source, compile nothing."""
_environment = threading.Lock()
_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_BLOCK = ("threadIdx.x", "threadIdx.y", "threadIdx.z")
_SHARED = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Launch:
    """One launch: a device function over a grid of blocks of threads with dynamic shared memory.

    arguments: for each pointer, the position of the kernel's tensor, or -1 - n for workspace n.
    """

    function: str
    arguments: tuple[int, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int = 0


@dataclass(frozen=True)
class SplitKernel:
    """A kernel after the split.

    functions: for each device function, its parameters' types and the tags of what a launch
    passes after them, as TVM's runtime wants to know. workspaces: bytes of device memory that the
    host function allocates for the launches of one call.
    """

    name: str
    host: Any
    source: str
    functions: dict[str, dict[str, Any]]
    launches: tuple[Launch, ...]
    workspaces: tuple[int, ...] = field(default=())


def split(name: str, kernel: Any, target: Any) -> SplitKernel:
    """Lower one kernel for `target` (a TVM target with a host).

    A kernel whose results are empty launches nothing, and has no source. Raises SqError for one
    whose host part does more than launch, or whose launches depend on data.
    """
    module = tirx.transform.BindTarget(target)(tvm.IRModule({name: kernel}))
    passes, finish_host, finish_device = tirx.get_default_tir_pipeline(target)
    kept: list[Any] = []
    with tvm.transform.PassContext(instruments=[_AfterSplit(kept)]):
        lowered = passes(module)
    found = _Launches(name)
    found.read(kept[0])
    host, devices = split_host_device_mods(lowered)
    if not found.launches:
        return SplitKernel(name, finish_host()(host), "", {}, ())
    ((on, device),) = devices.items()
    device = finish_device()(device)
    with _source_only():
        source = completed(str(codegen_build(device, on).inspect_source("cuda")))
    functions = {}
    for variable, function in device.functions.items():
        symbol = str(function.attrs.get("global_symbol", variable.name_hint))
        functions[symbol] = _function_info(symbol, function)
    return SplitKernel(
        name,
        finish_host()(host),
        source,
        functions,
        tuple(found.launches),
        tuple(found.workspaces),
    )


@contextmanager
def _source_only() -> Iterator[None]:
    with _environment:
        before = os.environ.get(_KEEP_SOURCE)
        os.environ[_KEEP_SOURCE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_KEEP_SOURCE]
            else:
                os.environ[_KEEP_SOURCE] = before


def _function_info(symbol: str, function: Any) -> dict[str, Any]:
    """What TVM's CUDA runtime must know to call a device function."""
    types = [
        "handle" if isinstance(parameter.ty, tvm.ir.PointerType) else str(parameter.ty.dtype)
        for parameter in function.params
    ]
    tags = [str(tag) for tag in function.attrs.get("tirx.kernel_launch_params", [])]
    return {
        "name": symbol,
        "arg_types": types,
        "launch_param_tags": tags,
        "arg_extra_tags": [0] * len(types),
    }


@tvm.instrument.pass_instrument
class _AfterSplit:
    """Keeps the module as it is when the host part is a flat list of buffers and calls: later
    passes turn it into pointer arithmetic."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def run_after_pass(self, module: Any, info: Any) -> None:
        """Called by TVM after every pass."""
        if str(info.name) == "tirx.SplitHostDevice":
            self.kept.append(module)


class _Launches:
    """Reads the launches of a host function, and what their pointers are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launches: list[Launch] = []
        self.workspaces: list[int] = []
        self._places: list[tuple[Any, int]] = []

    def read(self, module: Any) -> None:
        """Take in every statement of the host function."""
        host = module[self.name]
        self._places = [(parameter, place) for place, parameter in enumerate(host.params)]
        body = host.body
        for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
            self._read(statement)

    def _read(self, statement: Any) -> None:
        if isinstance(statement, tirx.DeclBuffer):
            self._places.append((statement.buffer, self._place(statement.data)))
        elif isinstance(statement, tirx.AllocBuffer):
            buffer = statement.buffer
            elements = 1
            for size in buffer.shape:
                elements *= int(size)
            self.workspaces.append(elements * tvm.DataType(buffer.dtype).itemsize)
            self._places.append((buffer, -len(self.workspaces)))
        elif self._is_launch(statement):
            self._launch(statement.value)
        else:
            raise SqError(
                f"kernel {self.name}: more than launches is left to the host; what it computes "
                f"must be bound to threads:\n{statement}"
            )

    @staticmethod
    def _is_launch(statement: Any) -> bool:
        call = getattr(statement, "value", None)
        operator = getattr(call, "op", None)
        return str(getattr(operator, "name", "")) == "tirx.call_ffi_kernel"

    def _launch(self, call: Any) -> None:
        tags = [str(tag) for tag in call.attrs.launch_params]
        name, *arguments = call.args
        count = len(arguments) - len(tags)
        given: dict[str, int] = {}
        for tag, value in zip(tags, arguments[count:], strict=True):
            if not isinstance(value, tirx.IntImm):
                raise SqError(f"kernel {self.name}: {tag} is not a constant: {value}")
            given[tag] = int(value.value)
        self.launches.append(
            Launch(
                str(name.value),
                tuple(self._place(one) for one in arguments[:count]),
                (given.get(_GRID[0], 1), given.get(_GRID[1], 1), given.get(_GRID[2], 1)),
                (given.get(_BLOCK[0], 1), given.get(_BLOCK[1], 1), given.get(_BLOCK[2], 1)),
                given.get(_SHARED, 0),
            )
        )

    def _place(self, data: Any) -> int:
        """The tensor or workspace behind `buffer.data`."""
        buffer = data.args[0]
        for known, place in self._places:
            if known.same_as(buffer):
                return place
        raise SqError(f"kernel {self.name}: an argument of a launch is not a tensor: {data}")
