"""Compiling all kernels of a module at once: a C++ compiler started for each of hundreds of small
kernels would take longer than their compilation."""

from sqcompile.backends.cuda.emulator import compiler
from sqcompile.backends.cuda.emulator.module import Loaded, Module
from sqcompile.backends.cuda.emulator.translate import INCLUDE, translate


def compile_together(module: Module) -> None:
    """Translate and compile every kernel that was not launched yet."""
    translations = {
        name: translate(module.program, module.program.kernels[name], module.counted)
        for name in module.kernels
        if name not in module.loaded
    }
    if not translations:
        return
    functions = [one.function(f"ptx_kernel_{n}") for n, one in enumerate(translations.values())]
    source = INCLUDE + "\n".join(functions)
    library = compiler.open_library(compiler.build(source, compiler.KERNEL_FLAGS))
    for number, (name, translation) in enumerate(translations.items()):
        module.loaded[name] = Loaded(translation, getattr(library, f"ptx_kernel_{number}"))
