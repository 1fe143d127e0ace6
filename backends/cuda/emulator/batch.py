"""Compiling all kernels of modules at once: a C++ compiler started for each of hundreds of small
kernels would take longer than their compilation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sqcompile.backends.cuda.emulator import compiler
from sqcompile.backends.cuda.emulator.module import Loaded, Module
from sqcompile.backends.cuda.emulator.translate import INCLUDE, Translation, translate

_Job = tuple[Module, str, Translation]


def compile_together(*modules: Module, threads: int = 1) -> None:
    """Translate and compile every kernel that was not launched yet, by so many compilers."""
    jobs = [
        (module, name, translate(module.program, module.program.kernels[name], module.counted))
        for module in modules
        for name in module.kernels
        if name not in module.loaded
    ]
    parts = [part for n in range(threads) if (part := jobs[n::threads])]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_compile, parts))


def _compile(jobs: Sequence[_Job]) -> None:
    functions = [one.function(f"ptx_kernel_{n}") for n, (_, _, one) in enumerate(jobs)]
    source = INCLUDE + "\n".join(functions)
    library = compiler.open_library(compiler.build(source, compiler.KERNEL_FLAGS))
    for number, (module, name, translation) in enumerate(jobs):
        module.loaded[name] = Loaded(translation, getattr(library, f"ptx_kernel_{number}"))
