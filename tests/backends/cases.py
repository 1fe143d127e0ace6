"""Inputs on which every kernel must give the reference's bits: shapes, bits, groups and edges.

A case is an op and its arguments. Values come from a generator seeded with the case's name, so a
case is the same alone and among others.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from sqcompile.backends.kernels import KernelSpec, spec_of
from sqcompile.ops import OPS
from sqcompile.ops.conv import output_shape
from sqcompile.ops.norm import fraction_bits

aten = torch.ops.aten
F32, I8, U8, I32, I64 = torch.float32, torch.int8, torch.uint8, torch.int32, torch.int64


class Source:
    """Random tensors of one case."""

    def __init__(self, name: str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = I8) -> Tensor:
        """Uniform in [low, high]."""
        return torch.randint(low, high + 1, shape, generator=self.generator, dtype=dtype)

    def grid(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Any 8-bit quantised value."""
        low, high = (-127, 127) if dtype == I8 else (0, 255)
        return self.integers(low, high, *shape, dtype=dtype)

    def mask(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) > 0.5

    def edges(self, *shape: int) -> Tensor:
        """Normal values among zeros of both signs, denormals, tiny and huge numbers."""
        x = self.normal(*shape)
        special = torch.tensor([0.0, -0.0, 1e-40, -3e-42, 2.0**-101, -(2.0**-99), 3e38, -1e30])
        place = torch.randint(0, 24, shape, generator=self.generator)
        return torch.where(place < 8, special[place.clamp(max=7)], x)


@dataclass(frozen=True)
class Case:
    """One op on one set of arguments."""

    name: str
    target: torch._ops.OpOverload
    reference: Callable[..., Any]
    make: Callable[[Source], list[Any]]

    def arguments(self) -> list[Any]:
        """Fresh arguments, always the same."""
        return self.make(Source(self.name))

    def expected(self, arguments: list[Any]) -> list[Tensor]:
        """What the reference gives."""
        result = self.reference(*arguments)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def spec(self) -> KernelSpec:
        """The kernel that a graph with this call asks for."""
        return spec_of(call_node(self.target, self.arguments()))[0]


def call_node(target: torch._ops.OpOverload, arguments: list[Any]) -> fx.Node:
    """A node that calls `target`, with metadata as capture leaves it."""
    graph, mode = fx.Graph(), FakeTensorMode()

    def lifted(value: Any) -> Any:
        if isinstance(value, Tensor):
            node = graph.placeholder(f"arg{len(graph.nodes)}")
            node.meta["val"] = mode.from_tensor(value)
            return node
        if isinstance(value, list):
            return [lifted(one) for one in value]
        return value

    def fake(value: Any) -> Any:
        if isinstance(value, list):
            return [fake(one) for one in value]
        return value.meta["val"] if isinstance(value, fx.Node) else value

    nodes = [lifted(value) for value in arguments]
    call = graph.call_function(target, tuple(nodes))
    with mode:
        call.meta["val"] = target(*[fake(node) for node in nodes])
    return call


def tensors(arguments: list[Any]) -> list[Tensor]:
    """The tensors among arguments, lists flattened, as kernels take them."""
    found = []
    for value in arguments:
        if isinstance(value, Tensor):
            found.append(value.contiguous())
        elif isinstance(value, list):
            found += tensors(value)
    return found


def all_cases() -> list[Case]:
    """Every case, by unique name."""
    cases: list[Case] = []
    for family in (_quantizers, _products, _convolutions, _norms, _packs, _reductions, _pools):
        for op, label, make in family():
            entry = OPS[f"sq::{op}"]
            cases.append(Case(f"{op}-{label}", entry.target, entry.reference, make))
    for target, label, make in _aten():
        reference = EXACT.get(target, target)
        name = f"{target._schema.name[6:]}.{target._overloadname}-{label}"
        cases.append(Case(name, target, reference, make))
    assert len({case.name for case in cases}) == len(cases)
    return cases


EXACT = {aten.sqrt.default: lambda x: x.double().sqrt().float()}
"""Torch ops whose float32 result is not the rounded exact one everywhere (a vector library)."""

SHAPES = [(8, 16, 16, 16), (3, 5, 7, 7), (2, 3, 4, 4), (1, 1, 1, 1), (33, 10), (130, 64)]

Made = Iterator[tuple[str, str, Callable[[Source], list[Any]]]]


def _label(shape: Any) -> str:
    return "x".join(map(str, shape))


def _quantizers() -> Made:
    rng = torch.tensor([0x9ABCDEF0, 7, 3, 1])
    yield "draws", "1000", lambda s: [rng, 1000, 0xDEADBEEF]
    yield "draws", "1", lambda s: [torch.tensor([-1, 2**40 + 5, 0, 0]), 1, 0]
    for shape in SHAPES:
        name, rank = _label(shape), len(shape)
        inner, outer = [1] * rank, [1] * rank
        inner[1], outer[0] = shape[1], shape[0]
        for bits, signed in ((2, True), (4, True), (8, True), (3, False), (8, False)):

            def make(s: Source, shape=shape, bits=bits, signed=signed) -> list[Any]:
                x = s.normal(*shape)
                return [x, x.abs().amax().reshape([1] * len(shape)), bits, signed]

            yield "quantize", f"{name}-{'s' if signed else 'u'}{bits}", make

        def channels(s: Source, shape=shape, inner=inner) -> list[Any]:
            r = s.uniform(*inner)
            r.view(-1)[::3] = 0.0
            return [s.edges(*shape), r, 4, True]

        yield "quantize", f"{name}-channels-edges", channels

        def ties(s: Source, shape=shape) -> list[Any]:
            return [s.integers(-15, 15, *shape).float() / 2, torch.full([1], 7.0), 4, True]

        yield "quantize", f"{name}-ties", ties
        yield "quant_scale", name, lambda s, i=inner: [s.edges(*i).abs(), 4, True, 4]
        yield "outer_scale", name, lambda s, i=inner: [s.edges(*i).abs()]
        for groups in (1, 2, 4, 8):
            yield (
                "group_exponent",
                f"{name}-{groups}",
                lambda s, i=inner, g=groups: [s.uniform(*i) ** 6, g],
            )

        def shifted(s: Source, shape=shape, inner=inner, outer=outer) -> list[Any]:
            m, e = s.uniform(*outer), s.integers(0, 3, *inner)
            m.view(-1)[::4] = 0.0
            return [s.normal(*shape), s.uniform(*[1] * len(shape)), m, e, rng, 4, 0xFEEDBEEF]

        yield "quantize_stochastic", f"{name}-shifted", shifted
        yield (
            "quantize_stochastic",
            f"{name}-plain",
            lambda s, sh=shape: [s.edges(*sh), torch.ones([1] * len(sh)), None, None, rng, 8, 1],
        )
        yield (
            "quantize_stochastic",
            f"{name}-per-channel",
            lambda s, sh=shape, i=inner: [s.normal(*sh), s.uniform(*i), None, None, rng, 2, 9],
        )
        yield (
            "quantize_stochastic",
            f"{name}-zero",
            lambda s, sh=shape: [
                torch.zeros(sh),
                torch.zeros([1] * len(sh)),
                None,
                None,
                rng,
                4,
                1,
            ],
        )


def _products() -> Made:
    sizes = [(37, 33, 45), (1, 1, 1), (1, 100, 17), (64, 10, 32), (10, 1, 130)]
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            for batch, (m, n, k), kinds, chunk in (
                ((), sizes[0], (I8, U8), 0),
                ((3,), sizes[0], (U8, I8), 7),
                ((), sizes[1], (I8, I8), 0),
                ((), sizes[2], (I8, I8), 30),
                ((2,), sizes[3], (I8, I8), 0),
                ((), sizes[4], (U8, U8), 1),
            ):

                def operands(
                    s: Source, ta=transpose_a, tb=transpose_b, b=batch, m=m, n=n, k=k, kinds=kinds
                ) -> list[Any]:
                    limits = {I8: (-127, 127), U8: (0, 255)}
                    a = s.integers(
                        *limits[kinds[0]], *b, *((k, m) if ta else (m, k)), dtype=kinds[0]
                    )
                    c = s.integers(
                        *limits[kinds[1]], *b, *((n, k) if tb else (k, n)), dtype=kinds[1]
                    )
                    exponent = [1] * (len(b) + 2)
                    exponent[-2 if ta else -1] = k
                    return [a, c, s.integers(0, 3, *exponent), 4, ta, tb]

                name = (
                    f"{_label((*batch, m, n, k))}-{'t' * transpose_a}n{'t' * transpose_b}-{chunk}"
                )
                yield "shift_matmul", name, lambda s, o=operands, c=chunk: [*o(s), c]

                def fused(s: Source, o=operands, c=chunk, m=m, n=n) -> list[Any]:
                    a, b, exponent, *rest = o(s)
                    scales = [s.uniform(n), s.uniform(m, 1)]
                    return [a, b, None, 1, *rest[1:], c, scales, s.normal(n), True]

                yield "shift_matmul_dequantize", name, fused
    yield (
        "shift_matmul_dequantize",
        "no-epilogue",
        lambda s: (
            [s.integers(-7, 7, 5, 9), s.integers(-7, 7, 9, 6), None, 1, False, False, 0]
            + [[s.uniform(1)], None, False]
        ),
    )
    for label, dtype, high in (("int32", I32, 2**31 - 1), ("int64", I64, 2**40)):
        for bias in (False, True):
            yield (
                "dequantize",
                f"{label}-{bias}",
                lambda s, d=dtype, h=high, b=bias: [
                    s.integers(-h, h, 4, 5, 7, 9, dtype=d),
                    [s.uniform(1, 5, 1, 1), s.uniform(1)],
                    s.normal(1, 5, 1, 1) if b else None,
                ],
            )
    yield (
        "dequantize",
        "no-scale",
        lambda s: [s.integers(-9, 9, 3, 40, dtype=I32), [], s.normal(40)],
    )


def _convolutions() -> Made:
    """x shape, output channels, kernel, stride, padding, dilation, groups, k_chunk."""
    geometries = [
        ((2, 3, 9, 7), 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
        ((2, 4, 9, 7), 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, 3),
        ((3, 6, 8, 8), 6, (3, 3), (2, 2), (1, 1), (1, 1), 6, 0),
        ((1, 1, 5, 5), 1, (5, 5), (1, 1), (2, 2), (1, 1), 1, 1),
        ((2, 8, 6, 6), 4, (1, 1), (2, 2), (0, 0), (1, 1), 1, 0),
        ((2, 2, 4, 40), 3, (3, 7), (3, 2), (4, 5), (2, 3), 1, 2),
        ((2, 3, 1, 1), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
        ((2, 3, 7, 7), 3, (2, 2), (2, 2), (0, 0), (1, 1), 1, 5),
        ((5, 17, 6, 5), 18, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
    ]
    for x, out, kernel, stride, padding, dilation, groups, chunk in geometries:
        w = (out, x[1] // groups, *kernel)
        y = tuple(output_shape(x, w, stride, padding, dilation))
        rest = [list(stride), list(padding), list(dilation), groups, chunk]
        name = f"{_label(x)}-{_label(w)}-{_label(stride)}"

        def fprop(s: Source, x=x, w=w, rest=rest) -> list[Any]:
            return [s.integers(0, 255, *x, dtype=U8), s.integers(-127, 127, *w), *rest]

        def dgrad(s: Source, x=x, w=w, y=y, rest=rest) -> list[Any]:
            e = s.integers(0, 3, 1, y[1], 1, 1)
            return [s.integers(-127, 127, *y), s.integers(-7, 7, *w), e, 4, list(x), *rest]

        def wgrad(s: Source, x=x, w=w, y=y, rest=rest) -> list[Any]:
            e = s.integers(0, 7, y[0], 1, *y[2:])
            return [s.integers(-127, 127, *y), s.integers(-127, 127, *x), e, 8, list(w), *rest]

        for op, make, scale in (
            ("conv_fprop", fprop, (1, out, 1, 1)),
            ("conv_dgrad", dgrad, (x[0], 1, 1, 1)),
            ("conv_wgrad", wgrad, (out, 1, 1, 1)),
        ):
            yield op, name, make
            yield (
                f"{op}_dequantize",
                name,
                lambda s, m=make, sc=scale: [*m(s), [s.uniform(1), s.uniform(*sc)], None, False],
            )
        yield (
            "conv_fprop_dequantize",
            f"{name}-bias-relu",
            lambda s, m=fprop, o=out: [*m(s), [s.uniform(1)], s.normal(1, o, 1, 1), True],
        )


def _norms() -> Made:
    for shape, dtype, limit in (
        ((8, 16, 8, 8), I32, 200000),
        ((4, 5, 7, 3), I64, 2**34),
        ((1, 3, 1, 1), I8, 127),
        ((16, 10), I8, 127),
        ((2, 2, 17, 9), I32, 5),
        ((2, 3, 200, 100), I32, 1000),
    ):
        channels, bits = shape[1], fraction_bits(torch.Size(shape).numel() // shape[1], limit)
        for affine, eps in ((True, 1e-5), (False, 0.0)):

            def forward(
                s: Source, sh=shape, d=dtype, li=limit, c=channels, f=bits, a=affine, e=eps
            ) -> list[Any]:
                x = s.integers(-li, li, *sh, dtype=d)
                x[:, 0] = 3  # a constant channel: no spread
                vectors = [s.normal(c) if a else None for _ in range(3)]
                return [x, s.uniform(c) * 1e-3, *vectors, e, f, 4, 0.3352]

            yield "l1_batch_norm", f"{_label(shape)}-{affine}", forward

            def backward(s: Source, sh=shape, c=channels, a=affine) -> list[Any]:
                g, xhat = s.integers(-127, 127, *sh), s.integers(-8, 7, *sh)
                return [g, s.uniform(c), xhat, s.uniform(c), s.normal(c) if a else None, 0.3352]

            yield "l1_batch_norm_backward", f"{_label(shape)}-{affine}", backward
    for rows, features in ((64, 128), (3, 33), (1, 1), (7, 16), (300, 70)):
        label = f"{rows}x{features}"
        for gamma in (True, False):
            for beta in (True, False):

                def layer(s: Source, m=rows, d=features, ga=gamma, be=beta) -> list[Any]:
                    x = s.integers(-127, 127, m, d)
                    x[0] = 5
                    vectors = [s.normal(d) if given else None for given in (ga, be)]
                    return [x, s.uniform(m, 1), *vectors, 1e-5, 16, 8, 0.05]

                yield "l1_layer_norm", f"{label}-{gamma}-{beta}", layer
        yield (
            "l1_layer_norm_backward",
            label,
            lambda s, m=rows, d=features: [
                s.integers(-127, 127, m, d),
                s.uniform(m, 1),
                s.integers(-128, 127, m, d),
                s.uniform(m, 1),
                0.05,
            ],
        )
        yield (
            "l1_layer_norm_affine_backward",
            label,
            lambda s, m=rows, d=features: [
                s.integers(-127, 127, m, d),
                s.uniform(1, d),
                s.integers(-128, 127, m, d),
                0.05,
            ],
        )
    for momentum in (0.1, 0.0, 1.0):
        yield "ema", f"{momentum}", lambda s, m=momentum: [s.edges(37), s.normal(37), m]


def _packs() -> Made:
    for shape in ((3, 5), (4, 32, 33), (1,), (8, 16)):
        size = torch.Size(shape).numel()
        yield "pack_int4", f"{_label(shape)}-s", lambda s, sh=shape: [s.integers(-8, 7, *sh)]
        yield (
            "pack_int4",
            f"{_label(shape)}-u",
            lambda s, sh=shape: [s.integers(0, 15, *sh, dtype=U8)],
        )
        for signed in (True, False):
            yield (
                "unpack_int4",
                f"{_label(shape)}-{signed}",
                lambda s, sh=shape, n=size, k=signed: [
                    s.integers(0, 255, (n + 1) // 2, dtype=U8),
                    list(sh),
                    k,
                ],
            )
        yield "pack_mask", _label(shape), lambda s, sh=shape: [s.mask(*sh)]
        yield (
            "unpack_mask",
            _label(shape),
            lambda s, sh=shape, n=size: [s.integers(0, 255, (n + 7) // 8, dtype=U8), list(sh)],
        )


def _reductions() -> Made:
    for shape in ((8, 16, 8, 8), (3, 5, 7, 9), (1, 1, 1, 1), (300, 3, 4, 4)):
        for axes in ([0, 1, 2, 3], [0, 2, 3], [1, 2, 3], [0], [3], [1], [0, 2]):
            label = f"{_label(shape)}-{_label(axes)}"
            kept = [shape[0], 1, 1, 1]
            yield "absmax", label, lambda s, sh=shape, a=axes: [s.edges(*sh), None, a]
            yield (
                "absmax",
                f"{label}-outer",
                lambda s, sh=shape, a=axes, k=kept: [s.normal(*sh), s.edges(*k).abs(), a],
            )
            yield (
                "ordered_sum",
                label,
                lambda s, sh=shape, a=axes: [s.normal(*sh), a, len(a) % 2 == 0],
            )
    for shape in ((512, 70), (3000, 1), (5, 2049)):
        for axes in ([0], [1], [0, 1]):
            label = f"{_label(shape)}-{_label(axes)}"
            yield "absmax", label, lambda s, sh=shape, a=axes: [s.normal(*sh), None, a]
            yield "ordered_sum", label, lambda s, sh=shape, a=axes: [s.normal(*sh), a, False]


def _pools() -> Made:
    """x shape, kernel, stride, padding, dilation, ceil_mode."""
    for shape, kernel, stride, padding, dilation, ceil in (
        ((2, 3, 8, 8), [2, 2], [2, 2], [0, 0], [1, 1], False),
        ((2, 3, 9, 7), [3, 3], [2, 2], [1, 1], [1, 1], False),
        ((1, 2, 9, 8), [3, 2], [2, 3], [1, 1], [1, 2], True),
        ((2, 4, 6, 5), [6, 5], [6, 5], [0, 0], [1, 1], False),
    ):
        label = f"{_label(shape)}-{_label(kernel)}-{_label(stride)}"
        call = [kernel, stride, padding]

        def most(s: Source, sh=shape, c=call, d=dilation, e=ceil) -> list[Any]:
            return [s.edges(*sh), *c, d, e]

        def most_backward(s: Source, sh=shape, c=call, d=dilation, e=ceil) -> list[Any]:
            y, tap = OPS["sq::max_pool2d"].reference(s.normal(*sh), *c, d, e)
            return [s.normal(*y.shape), tap, list(sh), *c, d]

        yield "max_pool2d", label, most
        yield "max_pool2d_backward", label, most_backward
        if dilation == [1, 1] and not ceil:

            def mean_backward(s: Source, sh=shape, c=call) -> list[Any]:
                y = OPS["sq::avg_pool2d"].reference(s.normal(*sh), *c)
                return [s.normal(*y.shape), list(sh), *c]

            yield "avg_pool2d", label, lambda s, sh=shape, c=call: [s.normal(*sh), *c]
            yield "avg_pool2d_backward", label, mean_backward


def _aten() -> Iterator[tuple[Any, str, Callable[[Source], list[Any]]]]:
    shape = (3, 5, 7)

    def pair(s: Source) -> list[Any]:
        return [s.edges(*shape), s.normal(5, 1)]

    for target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        yield target, "broadcast", pair
        yield target, "scalar", lambda s: [s.edges(*shape), 0.3]
        yield target, "zero", lambda s: [s.edges(*shape), 0.0]
    for target in (aten.mul.Scalar, aten.div.Scalar, aten.add.Scalar, aten.sub.Scalar):
        yield target, "scalar", lambda s: [s.edges(*shape), 1.7]
    yield aten.add.Tensor, "counter", lambda s: [torch.tensor(2**40), 1]
    yield aten.mul.Tensor, "mask", lambda s: [s.edges(*shape), s.mask(*shape)]
    yield aten.add.Tensor, "large", lambda s: [s.normal(130, 1000), s.normal(1000)]
    for name in ("gt", "ge", "lt", "le", "eq", "ne"):
        packet = getattr(aten, name)
        yield packet.Tensor, "broadcast", pair
        yield packet.Scalar, "zero", lambda s: [s.edges(*shape), 0]
        yield packet.Scalar, "int64", lambda s: [s.integers(0, 3, 9, dtype=I64), 2]
    for target in (aten.neg.default, aten.abs.default, aten.relu.default, aten.clone.default):
        yield target, "edges", lambda s: [s.edges(*shape)]
    yield aten.neg.default, "int64", lambda s: [s.integers(-5, 5, 9, dtype=I64)]
    yield aten.abs.default, "int64", lambda s: [s.integers(-5, 5, 9, dtype=I64)]
    yield aten.sqrt.default, "many", lambda s: [s.uniform(1000)]
    yield aten.reciprocal.default, "many", lambda s: [s.normal(1000)]
    for target in (aten.logical_and.default, aten.logical_or.default):
        yield target, "masks", lambda s: [s.mask(*shape), s.mask(*shape)]
        yield target, "floats", lambda s: [s.edges(*shape), s.edges(*shape)]
    yield aten.logical_not.default, "mask", lambda s: [s.mask(*shape)]
    yield aten.logical_not.default, "floats", lambda s: [s.edges(*shape)]
    backward = (aten.threshold_backward.default, aten.hardtanh_backward.default)
    for target, rest in zip(backward, ([0], [-0.5, 0.5]), strict=True):
        yield (
            target,
            "edges",
            lambda s, r=rest: [s.normal(*shape), s.edges(*shape), *r],
        )
    yield aten.leaky_relu.default, "edges", lambda s: [s.edges(*shape), 0.01]
    yield (
        aten.leaky_relu_backward.default,
        "edges",
        lambda s: [s.normal(*shape), s.edges(*shape), 0.01, False],
    )
    yield aten.hardtanh.default, "six", lambda s: [s.edges(*shape) * 9, 0, 6]
    yield aten.clamp.default, "low", lambda s: [s.edges(*shape), -0.5]
    yield aten.clamp.default, "high", lambda s: [s.edges(*shape), None, 0.0]
    yield aten.where.self, "broadcast", lambda s: [s.mask(*shape), s.normal(*shape), s.normal(7)]
    yield aten.where.self, "scalar", lambda s: [s.mask(*shape), s.normal(*shape), torch.tensor(0.0)]
    yield aten.where.ScalarOther, "zero", lambda s: [s.mask(*shape), s.normal(*shape), 0.0]
    yield aten.permute.default, "rotate", lambda s: [s.normal(*shape), [2, 0, -2]]
    yield aten.transpose.int, "ends", lambda s: [s.normal(*shape), -1, 0]
    yield aten.t.default, "matrix", lambda s: [s.normal(70, 33)]
    yield aten.expand.default, "rows", lambda s: [s.normal(5, 1), [3, -1, 7]]
    yield aten.slice.Tensor, "step", lambda s: [s.normal(*shape), 1, 1, -1, 2]
    yield aten.slice.Tensor, "tail", lambda s: [s.normal(*shape), -1, 2]
    yield aten.select.int, "last", lambda s: [s.normal(*shape), 1, -1]
    yield (
        aten.cat.default,
        "columns",
        lambda s: [[s.normal(3, 4), s.normal(3, 1), s.normal(3, 9)], -1],
    )
    yield aten.constant_pad_nd.default, "pad", lambda s: [s.normal(*shape), [1, 2, 0, 3], 1.5]
    yield aten.constant_pad_nd.default, "crop", lambda s: [s.normal(*shape), [-1, 2, -2, -1]]
    yield aten.full.default, "seven", lambda s: [[3, 7], 7.0]
