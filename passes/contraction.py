"""Which axes of a product's operands are reduced, and where the free ones go in the result."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from torch.fx import Node

from sqcompile.ops import conv, product, product_float
from sqcompile.passes.editing import arguments, shape, target_of


@dataclass(frozen=True)
class Contraction:
    """One operand of a product: axes that are summed over, and free axes with the axis of the
    result each becomes. A scale on a free axis multiplies the result, one on a reduced axis must
    be a power of two. Axes in neither list (space of a convolution's input) take no scale."""

    inner: tuple[int, ...]
    outer: tuple[tuple[int, int], ...]

    @property
    def outer_axes(self) -> tuple[int, ...]:
        """The free axes."""
        return tuple(axis for axis, _ in self.outer)


def _matmul(node: Node, position: int) -> Contraction:
    given = arguments(node)
    rank = len(shape(given["b" if position else "a"]))
    transposed = given["transpose_b" if position else "transpose_a"]
    rows, columns = rank - 2, rank - 1
    batch = ((0, 0),) if rank == 3 else ()
    if position == 0:
        inner, free, result = (rows, columns, rows) if transposed else (columns, rows, rows)
    else:
        inner, free, result = (columns, rows, columns) if transposed else (rows, columns, columns)
    return Contraction((inner,), (*batch, (free, result)))


_CONV = (Contraction((3,), ()), Contraction((1, 2, 3), ((0, 3),)))
_INPUT_GRAD = (Contraction((3,), ((0, 0),)), Contraction((0,), ()))
_WEIGHT_GRAD = (Contraction((0, 1, 2), ((3, 0),)), Contraction((0,), ()))

FLOAT_PRODUCTS = (
    product_float.matmul,
    product_float.conv,
    product_float.conv_input_grad,
    product_float.conv_weight_grad,
)

_RULES: dict[object, Callable[[Node, int], Contraction]] = {
    target_of(product_float.matmul): _matmul,
    target_of(product_float.conv): lambda _, position: _CONV[position],
    target_of(product_float.conv_input_grad): lambda _, position: _INPUT_GRAD[position],
    target_of(product_float.conv_weight_grad): lambda _, position: _WEIGHT_GRAD[position],
}


def contraction(node: Node, position: int) -> Contraction:
    """Axes of operand `position` (0 or 1) of a float product."""
    return _RULES[node.target](node, position)


def _matmul_length(node: Node) -> int:
    given = arguments(node)
    sizes = shape(given["a"])
    return sizes[-2] if given["transpose_a"] else sizes[-1]


def _per_output_weight(node: Node) -> int:
    return prod(shape(arguments(node)["w"])[1:])


def _per_input_weight(node: Node) -> int:
    sizes = shape(arguments(node)["w"])
    return sizes[0] // arguments(node)["groups"] * prod(sizes[2:])


def _per_pixel(node: Node) -> int:
    sizes = shape(arguments(node)["g"])
    return prod(sizes[:3])


@dataclass(frozen=True)
class Reduction:
    """How long a product's reduction is, and how many products one unit of `k_chunk` holds."""

    length: Callable[[Node], int]
    unit: Callable[[Node], int]


def _kernel_size(node: Node) -> int:
    return prod(shape(arguments(node)["w"])[2:])


_MATMUL = Reduction(_matmul_length, lambda _: 1)
_FPROP = Reduction(_per_output_weight, _kernel_size)
_DGRAD = Reduction(_per_input_weight, _kernel_size)
_WGRAD = Reduction(_per_pixel, lambda node: shape(arguments(node)["g"])[2])

REDUCTIONS: dict[object, Reduction] = {
    target_of(product.shift_matmul): _MATMUL,
    target_of(product.shift_matmul_dequantize): _MATMUL,
    target_of(product.shift_matmul_dequantize_absmax): _MATMUL,
    target_of(conv.conv_fprop): _FPROP,
    target_of(conv.conv_fprop_dequantize): _FPROP,
    target_of(conv.conv_fprop_sums): _FPROP,
    target_of(conv.conv_dgrad): _DGRAD,
    target_of(conv.conv_dgrad_dequantize): _DGRAD,
    target_of(conv.conv_wgrad): _WGRAD,
    target_of(conv.conv_wgrad_dequantize): _WGRAD,
}
