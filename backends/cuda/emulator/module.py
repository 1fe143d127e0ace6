"""A PTX module that can be launched."""

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sqcompile.backends.cuda.emulator import compiler, layout
from sqcompile.backends.cuda.emulator.faults import KINDS, Fault, LaunchError, PtxError
from sqcompile.backends.cuda.emulator.hints import HINTS
from sqcompile.backends.cuda.emulator.memory import Memory
from sqcompile.backends.cuda.emulator.parse import parse
from sqcompile.backends.cuda.emulator.program import BYTES, Program, Variable
from sqcompile.backends.cuda.emulator.translate import (
    INCLUDE,
    Translation,
    contractible,
    translate,
    unsupported,
)

Sizes = Sequence[int] | int
_BRANCHES = 1 << 30
_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_LARGEST_BLOCK = (1024, 1024, 64)
"""Of every architecture."""


@dataclass
class Loaded:
    """A compiled kernel: its C++ function, of a library that stays open."""

    translation: Translation
    function: Any


@dataclass(frozen=True)
class Checks:
    """What is watched besides bounds, alignment, deadlocks and collectives, which always are.

    shared: races and unwritten bytes in shared memory, copies not waited for; unwritten: reads of
    allocated bytes that nobody wrote; blocks: global memory that two blocks use and one writes.
    """

    shared: bool = True
    unwritten: bool = True
    blocks: bool = False


ALL = Checks(blocks=True)
NONE = Checks(shared=False, unwritten=False)


@dataclass
class Module:
    """The kernels of a PTX text, with the memory that their variables are in."""

    program: Program
    lines: list[str]
    memory: Memory
    symbols: dict[str, int] = field(default_factory=dict)
    counted: bool = False
    executed: Counter[str] = field(default_factory=Counter)
    loaded: dict[str, Loaded] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the kernels."""
        return tuple(self.program.kernels)

    @property
    def contractible(self) -> list[str]:
        """Float operations that an assembler may fuse: their bits are not settled by the PTX."""
        return contractible(self.program)

    def compile(self, name: str) -> Translation:
        """Translate and compile a kernel, which its first launch does otherwise."""
        return self._kernel(name).translation

    def _kernel(self, name: str) -> Loaded:
        if name not in self.loaded:
            if name not in self.program.kernels:
                raise LaunchError(f"there is no kernel {name}; there are {', '.join(self.kernels)}")
            translation = translate(self.program, self.program.kernels[name], self.counted)
            source = INCLUDE + translation.function()
            library = compiler.open_library(compiler.build(source, compiler.KERNEL_FLAGS))
            self.loaded[name] = Loaded(translation, library.ptx_kernel)
        return self.loaded[name]

    def launch(
        self,
        name: str,
        grid: Sizes,
        block: Sizes,
        arguments: Sequence[Any],
        shared: int = 0,
        checks: bool | Checks = True,
        workers: int = 1,
        branches: int = _BRANCHES,
    ) -> None:
        """Run a kernel to its end.

        `arguments`, one a parameter: arrays (contiguous; passed by address and changed in place),
        integers (also addresses of `memory`) and floats (by the parameter's type), bytes (a
        struct). `shared`: bytes of dynamic shared memory. `workers`: blocks at once, in threads.
        `branches`: how often a thread may branch backwards before it counts as endless.

        Raises a Fault for what the kernel did wrong, LaunchError for arguments that do not fit.
        """
        kernel = self._kernel(name)
        chosen = checks if isinstance(checks, Checks) else (Checks() if checks else NONE)
        registered: list[int] = []
        try:
            params = self._parameters(kernel.translation, arguments, registered)
            launch = self._launch(name, kernel, grid, block, params, shared, chosen)
            launch.workers = 1 if chosen.blocks or self.counted else workers
            launch.branches = branches
            self._run(name, kernel.translation, launch, chosen)
        finally:
            for address in registered:
                self.memory.free(address)

    def _parameters(
        self, translation: Translation, arguments: Sequence[Any], registered: list[int]
    ) -> ctypes.Array[ctypes.c_char]:
        parameters = translation.parameters
        if len(arguments) != len(parameters):
            raise LaunchError(f"{len(arguments)} arguments for {len(parameters)} parameters")
        content = bytearray(translation.parameter_bytes)
        for number, ((variable, at), value) in enumerate(zip(parameters, arguments, strict=True)):
            if isinstance(value, np.ndarray):
                value = self._address(value, f"argument {number}", registered)
            data = _as_bytes(variable, value, number)
            content[at : at + len(data)] = data
        return ctypes.create_string_buffer(bytes(content), max(len(content), 1))

    def _address(self, array: np.ndarray[Any, Any], name: str, registered: list[int]) -> int:
        if not array.flags.writeable:
            raise LaunchError(f"{name} is not writeable: pass a copy")
        registered.append(self.memory.register(array, name))
        return registered[-1]

    def _launch(
        self,
        name: str,
        kernel: Loaded,
        grid: Sizes,
        block: Sizes,
        params: ctypes.Array[ctypes.c_char],
        shared: int,
        checks: Checks,
    ) -> layout.Launch:
        translation = kernel.translation
        launch = layout.Launch()
        launch.kernel = ctypes.cast(kernel.function, ctypes.c_void_p)
        launch.params = ctypes.cast(params, ctypes.c_void_p)
        launch.grid[:] = _three(grid, "grid", _LARGEST_GRID)
        launch.block[:] = _three(block, "block", _LARGEST_BLOCK)
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        limit = self.program.kernels[name].max_threads or 1024
        if threads > min(limit, 1024):
            raise LaunchError(f"{name}: {threads} threads in a block, at most {limit} are allowed")
        if shared and not translation.dynamic_shared:
            raise LaunchError(f"{name} has no dynamic shared memory")
        launch.static_shared, launch.dynamic_shared = translation.shared_bytes, shared
        launch.checks = layout.CHECK_SHARED * checks.shared
        launch.checks |= layout.CHECK_GLOBAL * (checks.unwritten or checks.blocks)
        launch.stack_bytes = translation.stack_bytes
        return launch

    def _run(
        self, name: str, translation: Translation, launch: layout.Launch, checks: Checks
    ) -> None:
        table, launch.slots = self.memory.table(checks.blocks)
        launch.allocations = ctypes.cast(table, ctypes.c_void_p)
        addresses = [self.symbols[symbol] for symbol in translation.symbols]
        symbols = (ctypes.c_uint64 * max(len(addresses), 1))(*addresses)
        launch.symbols = ctypes.cast(symbols, ctypes.c_void_p)
        counts = (ctypes.c_uint64 * max(len(translation.blocks), 1))()
        launch.counts = ctypes.cast(counts, ctypes.c_void_p)
        report = layout.Report()
        kind = compiler.runtime().ptx_launch(ctypes.byref(launch), ctypes.byref(report))
        for times, opcodes in zip(counts, translation.blocks, strict=False):
            for opcode in opcodes:
                self.executed[opcode] += times
        if kind:
            raise self._fault(name, report)

    def _fault(self, name: str, report: layout.Report) -> Fault:
        kind = KINDS[report.kind - 1]
        hint = HINTS[kind]
        source = self.lines[report.line - 1].strip() if report.line else ""
        return kind(
            hint.what.format(
                where=self._where(report.address, report.bytes),
                text=report.text.decode(),
                bytes=report.bytes,
            ),
            kernel=name,
            block=tuple(report.block),
            thread=tuple(report.thread),
            line=report.line,
            source=source,
            hint=hint.look_at,
        )

    def _where(self, address: int, size: int) -> str:
        """In words, where an address lies."""
        for space, window in (("shared", layout.SHARED_WINDOW), ("local", layout.LOCAL_WINDOW)):
            if address >> 32 == window >> 32:
                return f"byte {address - window} of {space} memory"
        return self.memory.describe(address, size)


def _three(sizes: Sizes, name: str, largest: tuple[int, int, int]) -> tuple[int, int, int]:
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not 1 <= len(given) <= 3 or min(given) < 1:
        raise LaunchError(f"{name} is one to three sizes of at least 1, not {sizes}")
    x, y, z = (*given, 1, 1)[:3]
    if x > largest[0] or y > largest[1] or z > largest[2]:
        raise LaunchError(f"{name} is at most {largest}, not {sizes}")
    return x, y, z


def _as_bytes(variable: Variable, value: Any, number: int) -> bytes:
    """The bytes of an argument for a parameter."""
    size, kind = variable.size or 0, variable.type
    if isinstance(value, bytes):
        data = value
    elif size != BYTES[kind]:
        raise LaunchError(f"argument {number} is a struct of {size} bytes: pass bytes")
    elif isinstance(value, float | np.floating) and size in (4, 8) and kind[0] in "fb":
        data = np.dtype(f"f{size}").type(value).tobytes()
    elif isinstance(value, int | np.integer) and kind[0] != "f":
        data = (int(value) % (1 << 8 * size)).to_bytes(size, "little")
    else:
        raise LaunchError(f"argument {number} is a .{kind}, which {value!r} does not fit")
    if len(data) != size:
        raise LaunchError(f"argument {number} has {len(data)} bytes for {size}")
    return data


def emulate(text: str, memory: Memory | None = None, counted: bool = False) -> Module:
    """The module of a PTX text, as NVRTC emits it for sm_75 and newer.

    `memory`: where its global variables go, and whose addresses kernels may use. `counted`: sum
    executed instructions by opcode in `executed`. Raises PtxError with all instructions that are
    not supported.
    """
    program = parse(text)
    wrong = unsupported(program)
    if wrong:
        raise PtxError("unsupported PTX:\n" + "\n".join(wrong))
    memory = Memory() if memory is None else memory
    module = Module(program, text.splitlines(), memory, counted=counted)
    module.symbols = _placed(program, memory)
    return module


def _placed(program: Program, memory: Memory) -> dict[str, int]:
    """The addresses of the module's variables, with their initial values."""
    everything = [*program.variables, *(v for k in program.kernels.values() for v in k.variables)]
    variables = [v for v in everything if v.space in ("global", "const") and v.size is not None]
    contents = {v.name: np.zeros(v.size or 0, np.uint8) for v in variables}
    addresses = {
        v.name: memory.register(contents[v.name], v.name, constant=v.space == "const")
        for v in variables
    }
    for variable in variables:
        content = contents[variable.name]
        content[: len(variable.content)] = np.frombuffer(variable.content, np.uint8)
        for at, symbol in variable.addresses:
            value = addresses[symbol.name] + symbol.offset
            content[at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), np.uint8)
    return addresses
