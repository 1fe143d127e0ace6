"""A step's products one by one, beside the same product in PyTorch and onnxruntime.

Ours is the bare integer product, int8 or uint8 to int32, with the shifts of its groups where the
step has them. `torch._int_mm` and onnxruntime's MatMulInteger and ConvInteger do the same job
without shifts; fp32 and bf16 multiply floats of the same shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sqcompile.bench import onnx_products
from sqcompile.bench.kernel import executable, traced
from sqcompile.bench.times import Times
from sqcompile.errors import UsageError, first_line
from sqcompile.ops.quantize import limits
from sqcompile.passes.assign_precision import Operand, ProductSpec
from sqcompile.passes.bound_accumulators import bound_accumulators

Run = Callable[[], object]
OURS, INT_MM, ORT = "sqcompile", "torch._int_mm", "onnxruntime"
SAME_JOB = (OURS, INT_MM, ORT)
"""Those that multiply integers to int32; others multiply floats."""
LEAST = 5e-4
"""Seconds that one measurement takes at least: shorter calls are repeated."""
_aten, _sq = torch.ops.aten, torch.ops.sq


@dataclass(frozen=True)
class Form:
    """A product of a step, whatever layer it is of.

    op: shift_matmul, conv_fprop, conv_dgrad or conv_wgrad; shapes: operands and result; operands:
    ("u4", "s4"); groups: of the shifts; window: stride, padding, dilation and channel groups of a
    convolution.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    operands: tuple[str, str]
    groups: int
    window: tuple[Any, ...]

    def __str__(self) -> str:
        sizes = " , ".join("x".join(map(str, shape)) for shape in self.shapes[:2])
        shifts = f" G={self.groups}" if self.groups > 1 else ""
        return f"{self.op} {sizes} {' x '.join(self.operands)}{shifts}"


def forms(products: Sequence[Mapping[str, Any]], most: int) -> list[tuple[Form, int, int]]:
    """(form, how often the step has it, its multiply-accumulates), the largest `most` by all of
    theirs, of a report's integer products."""
    found: dict[Form, list[int]] = {}
    for one in products:
        name = one["op"].removeprefix("sq.")
        for suffix in ("_sums", "_absmax", "_dequantize"):
            name = name.removesuffix(suffix)
        if one["integer"]:
            window = tuple(map(_frozen, one["window"]))
            shapes = tuple(map(tuple, one["shapes"]))
            form = Form(name, shapes, tuple(one["operands"]), one["groups"], window)
            found.setdefault(form, []).append(one["macs"])
    largest = sorted(found.items(), key=lambda item: -sum(item[1]))[:most]
    return [(form, len(macs), macs[0]) for form, macs in largest]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def measure(form: Form, *, threads: int, warmup: int, runs: int) -> dict[str, Any]:
    """{"rows": times by who computes, "skipped": why others do not}; all take turns."""
    torch.manual_seed(0)
    product = _Matmul(form) if form.op == "shift_matmul" else _Conv(form)
    found: dict[str, Run] = {OURS: product.ours()}
    skipped: dict[str, str] = {}
    for name, make in product.peers(threads).items():
        try:
            options = make()
            found[name] = _fastest(options)
        except Exception as error:  # whatever torch and onnxruntime raise is the reason
            skipped[name] = first_line(error)
    return {"rows": _in_turns(found, warmup, runs), "skipped": skipped}


def _in_turns(found: Mapping[str, Run], warmup: int, runs: int) -> dict[str, Times]:
    repeats = {name: max(1, round(LEAST / _seconds(run))) for name, run in found.items()}
    taken: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(warmup + runs):
        for name, run in found.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                run()
            spent = (perf_counter() - start) / repeats[name]
            if turn >= warmup:
                taken[name].append(spent)
    return {name: Times.of(seconds) for name, seconds in taken.items()}


def _seconds(run: Run) -> float:
    """The best of three calls, after one to warm up."""
    run()
    best = float("inf")
    for _ in range(3):
        start = perf_counter()
        run()
        best = min(best, perf_counter() - start)
    return max(best, 1e-7)


def _fastest(options: Sequence[Run]) -> Run:
    return options[0] if len(options) == 1 else min(options, key=_seconds)


def drawn(shape: Sequence[int], operand: str) -> Tensor:
    """Integers of an operand like "u4", over its whole range."""
    signed, bits = operand[0] == "s", int(operand[1:].partition("<<")[0])
    low, high = limits(bits, signed)
    return torch.randint(low, high + 1, tuple(shape), dtype=torch.int8 if signed else torch.uint8)


def _built(form: Form, call: Callable[..., Tensor], role: str, given: Sequence[Tensor]) -> Run:
    """Our kernel of `call`, whose sums are proven to fit as those of a step are."""
    kinds = {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight")}
    kind = kinds.get(role, ("gradient", "activation"))
    first, second = (
        Operand(what, int(text[1:].partition("<<")[0]), text[0] == "s")
        for what, text in zip(kind, form.operands, strict=True)
    )
    graph = traced(call, *given)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            node.meta["sq"] = ProductSpec("", role, (first, second), form.groups, True, 0)
    run = executable(bound_accumulators(graph)).machine()["main"]
    return lambda: run(*given)


def _signed(value: Tensor) -> Tensor:
    return (value.to(torch.int16) - 128).to(torch.int8) if value.dtype == torch.uint8 else value


class _Matmul:
    """A matrix product, of batches or not; which operand is transposed follows from the shapes."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.a, self.b = (
            drawn(shape, operand)
            for shape, operand in zip(form.shapes[:2], form.operands, strict=True)
        )
        self.flags = self._flags()

    def _flags(self) -> tuple[bool, bool]:
        a, b, size = *self.form.shapes[:2], prod(self.form.shapes[2])
        for flags in ((False, True), (False, False), (True, False), (True, True)):
            m, k = a[-2:] if not flags[0] else a[:-3:-1]
            left, n = b[-2:] if not flags[1] else b[:-3:-1]
            if k == left and prod(a[:-2]) * m * n == size:
                return flags
        raise ValueError(f"{self.form} is no matrix product")

    def ours(self) -> Run:
        first, second = self.flags
        shape = [1] * self.a.dim()
        shape[-2 if first else -1] = self.a.shape[-2 if first else -1]
        exponent = torch.randint(0, self.form.groups, shape, dtype=torch.int8)
        given = (self.a, self.b, *((exponent,) if self.form.groups > 1 else ()))

        def call(*tensors: Tensor) -> Tensor:
            a, b, e = (*tensors, None)[:3]
            product: Tensor = _sq.shift_matmul(a, b, e, self.form.groups, first, second, 0)
            return product

        return _built(self.form, call, "wgrad" if first else "dgrad", given)

    def _operands(self, convert: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        a, b = convert(self.a), convert(self.b)
        return (
            a.transpose(-1, -2) if self.flags[0] else a,
            b.transpose(-1, -2) if self.flags[1] else b,
        )

    def peers(self, threads: int) -> dict[str, Callable[[], Sequence[Run]]]:
        return {
            INT_MM: self._int_mm,
            ORT: lambda: [onnx_products.matmul(*self._operands(lambda x: x), threads)],
            "fp32 PyTorch": partial(self._float, torch.float32),
            "bf16 PyTorch": partial(self._float, torch.bfloat16),
        }

    def _int_mm(self) -> list[Run]:
        if self.a.dim() != 2:
            raise ValueError("it multiplies two matrices, and this product has batches")
        a, b = self._operands(_signed)
        rows, columns = a.contiguous(), b.contiguous()
        return [lambda: torch._int_mm(rows, b), lambda: torch._int_mm(rows, columns)]

    def _float(self, dtype: torch.dtype) -> list[Run]:
        a, b = self._operands(lambda x: x.to(dtype))
        columns = b.contiguous()
        return [lambda: a @ b, lambda: a @ columns]


class _Conv:
    """A convolution or one of its gradients, images channels last."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.first, self.second = (
            drawn(shape, operand)
            for shape, operand in zip(form.shapes[:2], form.operands, strict=True)
        )
        if not form.window:
            raise UsageError("report.json does not say how a convolution slides: compile again")

    def ours(self) -> Run:
        form = self.form
        *window, channels = form.window
        size, out = form.groups, list(form.shapes[2])
        kept = list(self.first.shape)
        kept = [*kept[:-1], 1] if form.op == "conv_wgrad" else [1, 1, 1, kept[-1]]
        exponent = torch.randint(0, size, kept, dtype=torch.int8)
        given = (self.first, self.second, *((exponent,) if size > 1 else ()))

        def call(*tensors: Tensor) -> Tensor:
            a, b, e = (*tensors, None)[:3]
            if form.op == "conv_fprop":
                result: Tensor = _sq.conv_fprop(a, b, *window, channels, 0, e, size)
                return result
            op = getattr(_sq, form.op)
            gradient: Tensor = op(a, b, e, size, out, *window, channels, 0)
            return gradient

        return _built(form, call, form.op.removeprefix("conv_"), given)

    def peers(self, threads: int) -> dict[str, Callable[[], Sequence[Run]]]:
        return {
            ORT: lambda: self._onnx(threads),
            "fp32 PyTorch": partial(self._float, torch.float32),
            "bf16 PyTorch": partial(self._float, torch.bfloat16),
        }

    def _onnx(self, threads: int) -> list[Run]:
        if self.form.op != "conv_fprop":
            raise ValueError("ONNX has no integer gradient of a convolution")
        image = self.first.permute(0, 3, 1, 2)
        return [onnx_products.conv(image, self.second, self.form.window, threads)]

    def _float(self, dtype: torch.dtype) -> list[Run]:
        """torch's convolution or gradient, in channels-last memory."""
        *window, channels = map(_thawed, self.form.window)
        tensors = [self._image(value, dtype) for value in (self.first, self.second)]
        if self.form.op == "conv_fprop":
            x, w = tensors
            rest = (*window, False, [0, 0], channels)
            return [lambda: _aten.convolution(x, w, None, *rest)]
        g, other = tensors
        missing = self._image(torch.zeros(self.form.shapes[2], dtype=torch.int8), dtype)
        dgrad = self.form.op == "conv_dgrad"
        x, w = (missing, other) if dgrad else (other, missing)
        rest = (*window, False, [0, 0], channels, [dgrad, not dgrad, False])
        return [lambda: _aten.convolution_backward(g, x, w, None, *rest)]

    def _image(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        weight = self.form.shapes[2 if self.form.op == "conv_wgrad" else 1]
        moved = value.to(dtype)
        moved = moved if tuple(value.shape) == weight else moved.permute(0, 3, 1, 2)
        return moved.contiguous(memory_format=torch.channels_last)


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
