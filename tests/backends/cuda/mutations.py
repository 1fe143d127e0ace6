"""Wrong kernels in one module beside the right one: slips in the PTX, or in the generator."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from sqcompile.backends.cuda import architectures
from sqcompile.backends.cuda.emulator import Fault, Module, emulate
from sqcompile.backends.cuda.emulator.batch import compile_together
from sqcompile.backends.cuda.nvrtc import ptx_of
from sqcompile.backends.cuda.split import SplitKernel
from tests.backends.cases import Case, tensors
from tests.backends.cuda.emulated import Emulated, joined, split_kernels, wrong

Edit = Callable[[str], str]
FIRST = slice(0, 1)


def change(pattern: str, to: Callable[[re.Match[str]], str], of: slice = slice(None)) -> Edit:
    """Rewrite those of the matches that `of` takes: the loop over tiles may be unrolled."""

    def edit(text: str) -> str:
        for found in reversed(list(re.finditer(pattern, text))[of]):
            text = text[: found.start()] + to(found) + text[found.end() :]
        return text

    return edit


def drop(pattern: str, of: slice = slice(None)) -> Edit:
    """Leave out instructions."""
    return change(pattern, lambda _: "", of)


@dataclass(frozen=True)
class Patch:
    """Another attribute in a module or class of the generator."""

    of: Any
    name: str
    value: Any


def _entry(ptx: str, name: str) -> str:
    start = ptx.index(f".visible .entry {name}(")
    return ptx[start : ptx.index("\n}\n", start) + 3]


@dataclass
class Mutants:
    """The kernel of a case, and wrong ones, in one module."""

    case: Case
    kernels: dict[str, SplitKernel]
    module: Module

    @classmethod
    def of(
        cls,
        case: Case,
        arch: str,
        in_ptx: Mapping[str, Edit],
        in_generator: Mapping[str, Patch],
        int4: bool = False,
    ) -> "Mutants":
        """Edits of the last launch's PTX, and kernels that a patched generator makes."""
        specs = {"right": case.spec()}
        kernels = {"right": split_kernels(specs, arch, int4=int4)["right"]}
        for number, (name, patch) in enumerate(in_generator.items()):
            with pytest.MonkeyPatch.context() as changed:
                changed.setattr(patch.of, patch.name, patch.value)
                kernels[name] = split_kernels(specs, arch, f"g{number}_", int4)["right"]
        sources = [one.source for one in kernels.values()]
        code = ptx_of(joined(sources), architectures.get(arch))
        *before, product = kernels["right"].launches
        body = _entry(code, product.function)
        for number, (name, edit) in enumerate(in_ptx.items()):
            mutated = edit(body)
            assert mutated != body
            function = f"m{number}"
            code += mutated.replace(f"{product.function}(", f"{function}(").replace(
                f"{product.function}_param", f"{function}_param"
            )
            launches = (*before, replace(product, function=function))
            kernels[name] = replace(kernels["right"], launches=launches)
        module = emulate(code)
        compile_together(module)
        return cls(case, kernels, module)

    def right(self, name: str) -> bool:
        """Whether a kernel runs without a fault, and gives the reference's bits."""
        arguments = self.case.arguments()
        wanted = self.case.expected(arguments)
        outputs = [torch.full(want.shape, 77, dtype=want.dtype) for want in wanted]
        try:
            Emulated(self.kernels, self.module).run(
                name, [*(one.clone() for one in tensors(arguments)), *outputs]
            )
        except Fault:
            return False
        return not any(wrong(*pair).any() for pair in zip(outputs, wanted, strict=True))
