"""Winograd's convolutions give the reference's bits, and are refused where bytes are too small."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import tvm

from sqcompile.backends import targets
from sqcompile.backends.cpu import winograd, winograd_wgrad
from sqcompile.backends.cpu.build import llvm_target
from sqcompile.backends.cpu.machine import machine
from sqcompile.backends.cpu.winograd_ranges import split
from sqcompile.backends.cpu.winograd_wgrad_ranges import form
from sqcompile.backends.kernels import RANGES, KernelSpec, spec_of
from sqcompile.ops import OPS
from sqcompile.ops.conv import output_shape
from tests.backends.cases import U8, Source, call_node, tensors


@dataclass(frozen=True)
class Convolution:
    """A product of `op` with images x, `columns` output channels and ranges of its operands: of
    images or gradients, and of weights; of the gradient and images for wgrad."""

    op: str
    x: tuple[int, int, int, int]
    columns: int
    padding: int = 1
    values: tuple[int, int] = (-7, 7)
    weights: tuple[int, int] = (-7, 7)
    groups: int = 1
    k_chunk: int = 0
    epilogue: bool = False
    bias: bool = False
    sums: bool = False
    scaled: bool = False

    @property
    def name(self) -> str:
        """A test's id."""
        shape = f"{'x'.join(map(str, self.x))}-{self.columns}-{self.padding}"
        return f"{self.op}{'-sums' * self.sums}-{shape}-{self.groups}"

    @property
    def entry(self) -> Any:
        """Of the op table."""
        form = "_dequantize" * self.epilogue + "_sums" * self.sums
        return OPS[f"sq::conv_{self.op}{form}"]

    @property
    def algorithm(self) -> Any:
        """The module that computes it."""
        return winograd_wgrad if self.op == "wgrad" else winograd

    def arguments(self) -> list[Any]:
        """Arguments whose integers are the ends of their ranges every other time."""
        s = Source(self.name)
        w = (self.columns, self.x[3], 3, 3)
        geometry = [[1, 1], [self.padding] * 2, [1, 1]]
        y = output_shape(self.x, w, *geometry)
        if self.op == "fprop":
            found = [extreme(s, self.values, self.x), extreme(s, self.weights, w)]
        else:
            other, result = (self.x, w) if self.op == "wgrad" else (w, self.x)
            found = [extreme(s, self.values, y), extreme(s, self.weights, other)]
            found += [None, self.groups, list(result)]
            if self.groups > 1:
                free = (*y[:3], 1) if self.op == "wgrad" else (1, 1, 1, self.columns)
                found[2] = s.integers(0, self.groups - 1, *free)
        found += [*geometry, 1, self.k_chunk]
        if self.epilogue:
            last = {
                "fprop": (self.columns,),
                "dgrad": (self.x[3],),
                "wgrad": (self.columns, 1, 1, 1),
            }
            scale = last[self.op]
            scales = [s.uniform(1), s.uniform(*scale)]
            scales += [s.uniform(1, self.x[3], 1, 1)] if self.scaled else []
            found += [scales, s.normal(*scale) if self.bias else None]
            found += [self.bias]
        if self.op == "fprop" and self.groups > 1:
            found += [s.integers(0, self.groups - 1, 1, 1, 1, self.x[3]), self.groups]
        return found

    def spec(self) -> KernelSpec:
        """With proven ranges."""
        spec = spec_of(call_node(self.entry.target, self.arguments(), {}))[0]
        ranges = (RANGES, (self.values, self.weights))
        return replace(spec, attributes=(*spec.attributes, ranges))


def extreme(s: Source, values: tuple[int, int], shape: Any) -> torch.Tensor:
    low, high = values
    dtype = U8 if low == 0 else torch.int8
    ends = torch.where(s.mask(*shape), low, high).to(dtype)
    return torch.where(s.mask(*shape), ends, s.integers(low, high, *shape, dtype=dtype))


CASES = [
    Convolution("fprop", (2, 7, 9, 36), 64, values=(0, 15)),
    Convolution("fprop", (3, 8, 6, 130), 40, 0, (-31, 31), epilogue=True, bias=True),
    Convolution("fprop", (1, 1, 1, 3), 3, values=(0, 63), epilogue=True),
    Convolution("fprop", (2, 4, 4, 128), 128, 2, (0, 31), (-3, 3)),
    # Blocks of weights in parallel, and chunks of tile rows; groups whole and not, odd sizes.
    Convolution("fprop", (16, 8, 8, 64), 64, values=(0, 15), sums=True),
    Convolution("fprop", (4, 4, 4, 128), 128, values=(0, 15), sums=True),
    Convolution("fprop", (3, 9, 7, 36), 70, values=(0, 15), sums=True),
    Convolution("fprop", (9, 10, 6, 36), 41, values=(0, 15), sums=True),
    # Groups of activations.
    Convolution("fprop", (2, 9, 7, 36), 64, values=(0, 15), groups=4, epilogue=True),
    Convolution("fprop", (16, 8, 8, 64), 64, values=(0, 15), groups=3, sums=True),
    Convolution("fprop", (4, 4, 4, 130), 128, values=(-7, 7), groups=4),
    Convolution("dgrad", (2, 8, 8, 64), 32, groups=4),
    Convolution("dgrad", (2, 9, 6, 7), 12, 2, groups=3, values=(-15, 15)),
    Convolution("dgrad", (2, 3, 7, 32), 70, 0, weights=(-3, 3), groups=5, epilogue=True),
    Convolution("dgrad", (3, 4, 4, 128), 64, groups=4, epilogue=True),
    # Halved centres, and none; tiles that fill no quad; rows and columns left over.
    Convolution("wgrad", (2, 8, 8, 64), 64, weights=(0, 15), groups=4, epilogue=True),
    Convolution("wgrad", (3, 7, 9, 32), 48, groups=4),
    Convolution("wgrad", (2, 8, 7, 32), 32, weights=(0, 15), groups=4, epilogue=True, scaled=True),
    Convolution("wgrad", (5, 5, 6, 32), 16, 0, groups=3, epilogue=True, bias=True),
    Convolution("wgrad", (1, 3, 4, 32), 16, 2, (-31, 31), (0, 63)),
]


def byte_machine() -> bool:
    """Whether this CPU has the dot product of bytes."""
    with targets.get("cpu").compiled_for():
        return machine().dot.bytes


needs_bytes = pytest.mark.skipif(not byte_machine(), reason="Winograd needs vpdpbusd")


@cache
def functions() -> dict[Convolution, Any]:
    """All kernels, compiled at once."""
    target = targets.get("cpu")
    with target.compiled_for():
        made = {f"k{i}": case.algorithm.generate(case.spec()) for i, case in enumerate(CASES)}
    module = {name: one.with_attr("global_symbol", name) for name, one in made.items()}
    built = tvm.compile(tvm.IRModule(module), target=llvm_target(target))
    return {case: built[name] for case, name in zip(CASES, made, strict=True)}


@needs_bytes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_reference(case: Convolution) -> None:
    arguments = case.arguments()
    made = [torch.full(o.shape, 77).to(getattr(torch, o.dtype)) for o in case.spec().outputs]
    functions()[case](*tensors(arguments), *made)
    wanted = case.entry.reference(*arguments)
    for got, want in zip(made, [wanted] if len(made) == 1 else wanted, strict=True):
        assert torch.equal(got, want)


def fits(case: Convolution, mcpu: str = "") -> bool:
    with targets.get("cpu", mcpu=mcpu).compiled_for():
        return bool(case.algorithm.fits(case.spec()))


@needs_bytes
def test_fits_where_it_is_exact_and_pays() -> None:
    layer = Convolution("fprop", (4, 8, 8, 64), 64, values=(0, 15))
    assert fits(layer)
    assert not fits(layer, "x86-64-v3")
    assert not fits(replace(layer, weights=(-15, 15)))
    assert fits(replace(layer, groups=4))
    assert not fits(replace(layer, groups=5))
    assert not fits(replace(layer, values=(0, 127)))
    assert not fits(replace(layer, columns=16))
    assert not fits(replace(layer, x=(1, 4, 4, 64)))
    backward = Convolution("dgrad", (4, 8, 8, 64), 64, groups=4)
    assert fits(backward)
    assert not fits(replace(backward, groups=5))


@needs_bytes
def test_gradients_of_weights_fit_where_it_is_exact_and_pays() -> None:
    layer = Convolution("wgrad", (16, 8, 8, 64), 64, weights=(0, 15), groups=4, epilogue=True)
    assert fits(layer)
    assert not fits(layer, "x86-64-v3")
    assert not fits(replace(layer, groups=5))
    assert not fits(replace(layer, values=(-15, 15)))
    assert not fits(replace(layer, weights=(0, 127)))
    assert not fits(replace(layer, x=(16, 8, 8, 48)))
    assert not fits(replace(layer, columns=24))
    assert not fits(replace(layer, k_chunk=4, epilogue=False))
    assert not fits(replace(layer, x=(3, 8, 8, 64)))
    assert not fits(replace(layer, x=(16, 64, 64, 64)))


@pytest.mark.parametrize(
    ("values", "weights", "groups", "bits"),
    [
        ((0, 15), (-7, 7), 1, (0, 0)),
        ((0, 63), (-7, 7), 1, (0, 0)),
        ((0, 15), (-7, 7), 3, (2, 0)),
        ((0, 15), (-7, 7), 4, (2, 1)),
        ((0, 15), (-7, 7), 5, None),
        ((-7, 7), (-7, 7), 4, (2, 1)),
        ((-3, 3), (-3, 3), 4, (3, 0)),
        ((-15, 15), (-7, 7), 3, (1, 1)),
        ((-7, 7), (-7, 7), 5, None),
        ((-15, 15), (-7, 7), 4, None),
        ((-63, 63), (-7, 7), 1, None),
        ((0, 15), (-15, 15), 1, None),
    ],
)
def test_split_of_shifts(
    values: tuple[int, int], weights: tuple[int, int], groups: int, bits: tuple[int, int] | None
) -> None:
    found = split(values, weights, groups, depth=512)
    assert (found and (found.input_bits, found.weight_bits)) == bits


def test_a_long_reduction_has_no_split() -> None:
    assert split((0, 15), (-7, 7), 1, depth=512)
    assert split((0, 15), (-7, 7), 1, depth=1 << 20) is None


@pytest.mark.parametrize(
    ("given", "seen", "groups", "halved"),
    [
        ((-7, 7), (0, 15), 1, False),
        ((-7, 7), (0, 15), 3, False),
        ((-7, 7), (0, 15), 4, True),
        ((-7, 7), (-7, 7), 4, True),
        ((-31, 31), (0, 63), 1, False),
        ((-63, 63), (0, 15), 1, True),
        ((-7, 7), (0, 15), 5, None),
        ((-31, 31), (0, 15), 3, None),
        ((-7, 7), (0, 127), 1, None),
    ],
)
def test_form_of_a_gradient(
    given: tuple[int, int], seen: tuple[int, int], groups: int, halved: bool | None
) -> None:
    found = form(given, seen, groups, tiles=4096)
    assert (found and found.halved) == halved


def test_a_gradient_of_many_tiles_has_no_form() -> None:
    assert form((-7, 7), (0, 15), 4, tiles=1 << 14)
    assert form((-7, 7), (0, 15), 4, tiles=1 << 16) is None
