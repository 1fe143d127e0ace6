"""A compiled module in this process, called with torch tensors.

TVM assumes, unchecked, that tensors are contiguous and 64-byte aligned: a kernel that vectorises
would crash the process on others. The guard here copies such tensors and refuses wrong shapes
and dtypes, so that nothing a caller passes reaches a kernel unchecked.
"""

from collections.abc import Sequence
from typing import Any

import torch
import tvm
import tvm_ffi
import tvm_ffi_orcjit
from torch import Tensor
from tvm import relax

from sqcompile.backends.cpu.build import Binary
from sqcompile.backends.kernels import TensorSpec
from sqcompile.errors import InputError

ALIGNMENT = 64
"""Bytes that the address of every tensor must be a multiple of."""


class Executable:
    """Loads a Binary, without a compiler and in milliseconds."""

    def __init__(self, binary: Binary) -> None:
        load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.relax.VMExecutable")
        module = load(binary.vm)
        if binary.objects:
            session = tvm_ffi_orcjit.default_session()
            module.import_module(session.load_module(list(binary.objects)))
        self._machine = relax.VirtualMachine(module, tvm.cpu())
        self._functions = {
            name: Function(name, self._machine[name], signature.inputs, signature.outputs)
            for name, signature in binary.signatures.items()
        }

    def function(self, name: str) -> "Function":
        """The compiled function called `name` ("forward", "backward"); KeyError if absent."""
        return self._functions[name]


class Function:
    """A compiled function: `function(*tensors)` gives the list of its results."""

    def __init__(
        self,
        name: str,
        run: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self.name, self.inputs, self.outputs = name, tuple(inputs), tuple(outputs)
        self._run = run
        self._expected = [(torch.Size(i.shape), getattr(torch, i.dtype)) for i in self.inputs]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run on CPU tensors of the compiled shapes and dtypes; results are fresh tensors.

        Raises InputError for a wrong number, shape, dtype or device. Tensors that are not
        contiguous or not 64-byte aligned are copied first. Gradients are not tracked.
        """
        if len(tensors) != len(self._expected):
            raise InputError(f"{self.name} takes {len(self._expected)} tensors, got {len(tensors)}")
        ready = [
            self._checked(index, tensor, *expected)
            for index, (tensor, expected) in enumerate(zip(tensors, self._expected, strict=True))
        ]
        return [_owned(one) for one in self._run(*ready)]

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
        tensor = tensor.detach()
        if tensor.is_neg() or tensor.is_conj():
            tensor = tensor.resolve_neg().resolve_conj()
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        if tensor.data_ptr() % ALIGNMENT:
            tensor = tensor.clone()
        return tensor


def _owned(value: Any) -> Tensor:
    """A result as a torch tensor on the same memory."""
    return value if isinstance(value, Tensor) else torch.from_dlpack(value)
