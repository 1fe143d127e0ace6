"""A compiled step as one autograd function: integer kernels forward and backward."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sqcompile import _torch_compat as compat
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
        differentiable = {_origin(port) for port in variant.signature.tangents}
        ctx.mark_non_differentiable(
            *(
                value
                for port, value in zip(variant.signature.outputs, outputs, strict=True)
                if (port.kind, port.name) not in differentiable
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
            (port.kind, port.name): grad
            for port, grad in zip(signature.outputs, grads, strict=True)
        }
        tangents = [by_output[_origin(port)] for port in signature.tangents]
        results = variant.run_backward(saved, rng, tangents)
        gradients = {
            (port.wrt, port.name): value
            for port, value in zip(signature.gradients, results, strict=True)
        }
        wanted = [gradients.get((port.kind, port.name)) for port in signature.inputs]
        return (None, None, *wanted)


def _origin(tangent: compat.Port) -> tuple[str, str]:
    """The kind and name of the result that an incoming gradient belongs to."""
    return tangent.wrt or "output", tangent.name


def call(
    variant: Variant,
    inputs: Sequence[Tensor],
    rng: Tensor,
    written: Mapping[tuple[str, str], Tensor],
) -> Any:
    """Run a variant's forward, write new values into `written` (buffers and inputs by kind and
    name) and give the outputs in the structure that the model returns."""
    if variant.signature.gradients and torch.is_grad_enabled():
        results = StepFunction.apply(variant, rng, *inputs)
    else:
        with torch.no_grad():
            results, _ = variant.run_forward(inputs, rng)
    outputs: dict[int, Any] = dict(variant.signature.constants)
    for port, value in zip(variant.signature.outputs, results, strict=True):
        if port.kind == "mutation":
            with torch.set_grad_enabled(value.requires_grad):
                written[port.wrt, port.name].copy_(value)
        else:
            outputs[int(port.name)] = value
    if passed := variant.signature.passed:  # the caller's own tensors, so that gradients reach them
        given = zip(variant.signature.inputs, inputs, strict=True)
        named = {(port.kind, port.name): tensor for port, tensor in given}
        outputs |= {position: named[source] for position, source in passed.items()}
    ordered = [outputs[position] for position in sorted(outputs)]
    return compat.tree_unflatten(ordered, variant.signature.out_spec)
