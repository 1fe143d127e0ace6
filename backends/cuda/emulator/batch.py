"""Compiling all kernels of a module at once: a C++ compiler started for each of hundreds of small
kernels would take longer than their compilation."""

import ctypes
from typing import Any

from sqcompile.backends.cuda.emulator import compiler
from sqcompile.backends.cuda.emulator.module import Loaded, Module
from sqcompile.backends.cuda.emulator.translate import translate

_INCLUDE, _ENTRY, _CONSTANTS = '#include "ptx.h"', "ptx_kernel", "collective_"


class _Part:
    """One kernel of a library of several, seen as a library of its own."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.ptx_kernel: Any = getattr(library, name)


def compile_together(module: Module) -> None:
    """Translate and compile every kernel that was not launched yet."""
    names = [name for name in module.kernels if name not in module.loaded]
    found = {
        name: translate(module.program, module.program.kernels[name], module.counted)
        for name in names
    }
    parts = [_INCLUDE]
    for number, translation in enumerate(found.values()):
        text = translation.source.replace(_INCLUDE, "")
        text = text.replace(f"{_ENTRY}(", f"{_ENTRY}_{number}(")
        parts.append(text.replace(_CONSTANTS, f"{_CONSTANTS}{number}_"))
    if not names:
        return
    library = compiler.open_library(compiler.build("\n".join(parts), compiler.KERNEL_FLAGS))
    for number, (name, translation) in enumerate(found.items()):
        module.loaded[name] = Loaded(translation, _Part(library, f"{_ENTRY}_{number}"))
