"""A compiled step as one autograd function: integer kernels forward and backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sqcompile.runtime.variant import Variant


class StepFunction(torch.autograd.Function):
    """apply(variant, rng, *inputs) -> the outputs and buffer updates of the signature.

    What backward needs is handed to autograd's saved tensors, so that its hooks see it.
    """

    @staticmethod
    def forward(ctx: Any, variant: Variant, rng: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Integer kernels of forward; hands autograd what backward reads."""
        outputs, saved = variant.run_forward(inputs, rng)
        ctx.variant = variant
        ctx.save_for_backward(rng, *saved)
        differentiable = {int(port.name) for port in variant.signature.tangents}
        ctx.mark_non_differentiable(
            *(
                value
                for port, value in zip(variant.signature.outputs, outputs, strict=True)
                if port.kind != "output" or int(port.name) not in differentiable
            )
        )
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Integer kernels of backward: a gradient for every input that has one."""
        variant: Variant = ctx.variant
        signature = variant.signature
        rng, *saved = ctx.saved_tensors
        by_output = {
            port.name: grad
            for port, grad in zip(signature.outputs, grads, strict=True)
            if port.kind == "output"
        }
        tangents = [by_output[port.name] for port in signature.tangents]
        results = variant.run_backward(saved, rng, tangents)
        gradients = {
            (port.wrt, port.name): value
            for port, value in zip(signature.gradients, results, strict=True)
        }
        wanted = [gradients.get((port.kind, port.name)) for port in signature.inputs]
        return (None, None, *wanted)
