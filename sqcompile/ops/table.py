"""The op table: one entry per op, and everything else is derived from the entry.

An entry is a Python function whose body *is* the definition of the op (short, exact,
unoptimised), a meta function for shapes and dtypes and, where autograd sees the op, a gradient
rule. From it come the `torch.library` registration, the support report, the generated tests
and the documentation.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

Described = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""

OPS: dict[str, "Op"] = {}


def _row_major(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference with contiguous outputs, as meta functions promise: a traced graph takes
    views that a channels-last result, which torch's elementwise ops hand on, would not allow."""

    @wraps(reference)
    def compute(*args: Any, **kwargs: Any) -> Any:
        outputs = reference(*args, **kwargs)
        if isinstance(outputs, Tensor):
            return outputs.contiguous()
        return tuple(output.contiguous() for output in outputs)

    return compute


class Op:
    """One op: its name, its definition, its shapes, and the torch op made from them.

    Calling the entry calls the registered torch op, so it traces as a single node.
    """

    def __init__(self, name: str, doc: str, reference: Callable[..., Any]) -> None:
        self.name = name
        self.doc = doc
        self.reference = _row_major(reference)
        self.meta_function: Callable[..., Any] | None = None
        self._outputs: dict[str, tuple[Described, ...]] = {}
        self._definition = custom_op(name, self.reference, mutates_args=())

    @property
    def target(self) -> torch._ops.OpOverload:
        """The overload that stands in fx graphs."""
        return self._definition._opoverload

    def meta(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the function that gives the outputs' shapes and dtypes without computing."""
        self.meta_function = function
        self._definition.register_fake(function)
        return function

    def outputs(self, *args: Any) -> tuple[Described, ...]:
        """Shape and dtype of every output for these arguments, as the meta function gives them.
        Asked often for few different arguments, so answers are kept."""
        assert self.meta_function is not None
        key = _text(args)
        if key not in self._outputs:
            given = self.meta_function(*(_on_meta(argument) for argument in args))
            outputs = [given] if isinstance(given, Tensor) else given
            self._outputs[key] = tuple((tuple(one.shape), one.dtype) for one in outputs)
        return self._outputs[key]

    @property
    def several(self) -> bool:
        """Whether a call gives a tuple of tensors instead of one."""
        return len(self.target._schema.returns) > 1

    def gradient(self, setup: Callable[..., None]) -> Callable[[Callable[..., Any]], None]:
        """Register the gradient rule; `setup` saves what the decorated backward reads."""

        def register(backward: Callable[..., Any]) -> None:
            self._definition.register_autograd(backward, setup_context=setup)

        return register

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the registered torch op, so that tracing sees one node."""
        return self._definition(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Op({self.name})"


def _text(value: Any) -> str:
    """A value with every tensor in it by its shape and dtype alone; 1, 1.0 and True differ."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    return repr(value)


def _on_meta(value: Any) -> Any:
    """A value with every tensor in it on the meta device, which keeps only shapes and dtypes."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return [_on_meta(one) for one in value]
    return value


def op(name: str, *, doc: str) -> Callable[[Callable[..., Any]], Op]:
    """Enter a function into the table under `name` ("sq::something").

    Raises ValueError when the name is taken: two definitions of one op are a bug.
    """

    def enter(reference: Callable[..., Any]) -> Op:
        if name in OPS:
            raise ValueError(f"{name} is in the op table already; an op has one definition")
        entry = Op(name, doc, reference)
        OPS[name] = entry
        return entry

    return enter


def find(target: object) -> Op | None:
    """The entry behind a node's target, or None when the target is not one of ours."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "sq":
        return None
    return OPS.get(target._schema.name)
