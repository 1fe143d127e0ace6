"""Readers of ops with weights, which become torch's layers, and of pooling."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from sqcompile.onnx.import_shapes import shape_of
from sqcompile.onnx.importer import Importer, OnnxNode, Read, reads

_SAME = ("SAME_UPPER", "SAME_LOWER")


def weights(importer: Importer, node: OnnxNode, *places: int) -> list[Tensor | None] | None:
    """The constants at these inputs, None for one that is left out; None where one is computed, or
    is a matrix that other nodes read too. Vectors that several nodes read become each one's own:
    exporters merge equal ones, as are all scales of 1 of new norms."""
    found: list[Tensor | None] = []
    for place in places:
        name = node.inputs[place] if place < len(node.inputs) else ""
        tensor = importer.initialisers.get(name)
        if name and tensor is None:
            value = importer.value(name)
            tensor = value if isinstance(value, Tensor) else None
        if name and (tensor is None or (tensor.dim() > 1 and not importer.alone(name))):
            return None
        found.append(tensor)
    return found


def filled(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A layer with these parameters and buffers."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                getattr(module, name).copy_(tensor)
    return module


def _pads(node: OnnxNode, size: list[int], kernel: list[int]) -> tuple[list[int], list[int]]:
    """Rows and columns before and behind an image, dilation included."""
    rank = len(kernel)
    auto = node.get("auto_pad", "NOTSET")
    if auto in _SAME:
        stride, dilation = _strides(node, rank), list(node.get("dilations", [1] * rank))
        needed = [
            max(
                (-(-size[i] // stride[i]) - 1) * stride[i]
                + (kernel[i] - 1) * dilation[i]
                + 1
                - size[i],
                0,
            )
            for i in range(rank)
        ]
        before = [(one + (auto == "SAME_LOWER")) // 2 for one in needed]
        return before, [n - b for n, b in zip(needed, before, strict=True)]
    pads = [0] * (2 * rank) if auto == "VALID" else list(node.get("pads", [0] * (2 * rank)))
    return pads[:rank], pads[rank:]


def _strides(node: OnnxNode, rank: int) -> list[int]:
    return list(node.get("strides", [1] * rank))


def _padded(
    importer: Importer, x: Read, before: list[int], after: list[int]
) -> tuple[Read, list[int]]:
    """(x padded where both sides differ, what is left to pad on both)."""
    if before == after:
        return x, before
    return _surrounded(importer, x, before, after), [0] * len(before)


def _surrounded(
    importer: Importer, x: Read, before: list[int], after: list[int], value: float = 0.0
) -> Read:
    both = [count for pair in zip(before[::-1], after[::-1], strict=True) for count in pair]
    return importer.call(F.pad, x, tuple(both), value=value)


def _ends(
    size: list[int], before: list[int], after: list[int], reach: list[int], stride: Sequence[int]
) -> list[int]:
    """What to pad behind an image so that windows are as many as with ceil_mode: the last one may
    reach beyond the padding, and begins before it."""
    ends = []
    for s, b, a, r, step in zip(size, before, after, reach, stride, strict=True):
        last = -(-(s + b + a - r) // step) * step
        last -= step if last >= s + b else 0
        ends.append(last + r - s - b)
    return ends


@reads("Conv")
def _(importer: Importer, node: OnnxNode) -> Any:
    """A layer with its weights; a function where another node shares or computes them."""
    x = importer.value(node.inputs[0])
    kernel = (
        shape_of(importer.value(node.inputs[1]))[2:]
        if _computed(importer, node)
        else list(importer.initialisers[node.inputs[1]].shape[2:])
    )
    rank = len(kernel)
    if rank not in (1, 2):
        raise node.refuse(f"a convolution over {rank} axes")
    before, after = _pads(node, shape_of(x)[2:], kernel)
    x, padding = _padded(importer, x, before, after)
    window = {
        "stride": tuple(_strides(node, rank)),
        "padding": tuple(padding),
        "dilation": tuple(node.get("dilations", [1] * rank)),
        "groups": node.get("group", 1),
    }
    own = weights(importer, node, 1, 2)
    if own is None or own[0] is None:
        function = F.conv2d if rank == 2 else F.conv1d
        return importer.call(function, x, *importer.inputs(node)[1:], **window)
    weight, bias = own[0], own[1]
    kind: Any = nn.Conv2d if rank == 2 else nn.Conv1d
    channels = weight.shape[1] * window["groups"]
    layer = kind(channels, weight.shape[0], tuple(kernel), bias=bias is not None, **window)
    return importer.layer(node, filled(layer, weight=weight, bias=bias), node.inputs[1], x)


def _computed(importer: Importer, node: OnnxNode) -> bool:
    return node.inputs[1] not in importer.initialisers


@reads("Gemm")
def _(importer: Importer, node: OnnxNode) -> Any:
    """A linear layer where it is one."""
    plain = node.get("alpha", 1.0) == node.get("beta", 1.0) == 1.0 and not node.get("transA", 0)
    own = weights(importer, node, 1, 2)
    if plain and own is not None and own[0] is not None and (own[1] is None or own[1].dim() == 1):
        weight = own[0] if node.get("transB", 0) else own[0].t()
        return _linear(importer, node, weight, own[1], importer.value(node.inputs[0]))
    a, b, *rest = importer.inputs(node)
    a = importer.method("t", a) if node.get("transA", 0) else a
    b = importer.method("t", b) if node.get("transB", 0) else b
    product = importer.call(torch.matmul, a, b)
    if node.get("alpha", 1.0) != 1.0:
        product = importer.call(torch.mul, product, node["alpha"])
    if not rest or rest[0] is None:
        return product
    bias = rest[0]
    if node.get("beta", 1.0) != 1.0:
        bias = importer.call(torch.mul, bias, node["beta"])
    return importer.call(torch.add, product, bias)


def _linear(
    importer: Importer, node: OnnxNode, weight: Tensor, bias: Tensor | None, x: Read
) -> Node:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return importer.layer(node, filled(layer, weight=weight, bias=bias), node.inputs[1], x)


@reads("MatMul")
def _(importer: Importer, node: OnnxNode) -> Any:
    """By a weight matrix: a linear layer, with the bias that an Add behind it adds."""
    own = weights(importer, node, 1)
    x = importer.value(node.inputs[0])
    matrix = own[0] if own is not None else None
    plain = matrix is not None and matrix.dim() == 2 and matrix.is_floating_point()
    if matrix is None or not plain or not isinstance(x, Node):
        return importer.call(torch.matmul, *importer.inputs(node))
    weight = matrix.t()
    bias, behind = _bias_behind(importer, node, weight.shape[0])
    result = _linear(importer, node, weight, bias, x)
    if behind is not None:
        importer.values[behind] = result
    return result


def _bias_behind(
    importer: Importer, node: OnnxNode, width: int
) -> tuple[Tensor | None, str | None]:
    """(a bias that only an Add adds to the node's result, the Add's result)."""
    add = importer.reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None, None
    other = [name for name in add.input if name != node.outputs[0]]
    bias = importer.initialisers.get(other[0]) if len(other) == 1 else None
    if bias is None or tuple(bias.shape) != (width,):
        return None, None
    return bias, str(add.output[0])


@reads("BatchNormalization")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    own = weights(importer, node, 1, 2, 3, 4)
    if own is None:
        raise node.refuse("weights or statistics that are not its own initialisers")
    rank = len(shape_of(x))
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(rank)
    if kind is None or own[0] is None:
        raise node.refuse(f"a tensor of {rank} axes")
    momentum = 1.0 - node.get("momentum", 0.9)
    layer = kind(own[0].numel(), eps=node.get("epsilon", 1e-5), momentum=momentum)
    names = ("weight", "bias", "running_mean", "running_var")
    filled(layer, **dict(zip(names, own, strict=True)))
    return importer.layer(node, layer, node.inputs[1], x)


@reads("LayerNormalization")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    shape = shape_of(x)
    size = shape[node.get("axis", -1) % len(shape) :]
    own = weights(importer, node, 1, 2)
    if own is None or own[0] is None:
        raise node.refuse("weights that are not its own initialisers")
    layer = nn.LayerNorm(size, node.get("epsilon", 1e-5), bias=own[1] is not None)
    return importer.layer(node, filled(layer, weight=own[0], bias=own[1]), node.inputs[1], x)


@reads("RMSNormalization")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    shape = shape_of(x)
    own = weights(importer, node, 1)
    if own is None:
        raise node.refuse("a weight that is not its own initialiser")
    layer = nn.RMSNorm(shape[node.get("axis", -1) % len(shape) :], node.get("epsilon", 1e-5))
    return importer.layer(node, filled(layer, weight=own[0]), node.inputs[1], x)


@reads("GroupNormalization", "InstanceNormalization")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    own = weights(importer, node, 1, 2)
    if own is None or own[0] is None:
        raise node.refuse("weights that are not its own initialisers")
    channels = shape_of(x)[1]
    if own[0].numel() != channels:
        raise node.refuse("a weight for every group, as before opset 21")
    groups, eps = node.get("num_groups", channels), node.get("epsilon", 1e-5)
    if node.inputs[1] not in importer.initialisers and _idle(own):
        return importer.layer(node, nn.GroupNorm(groups, channels, eps, affine=False), "", x)
    layer = filled(nn.GroupNorm(groups, channels, eps), weight=own[0], bias=own[1])
    return importer.layer(node, layer, node.inputs[1], x)


def _idle(own: list[Tensor | None]) -> bool:
    """Whether a scale and a shift are 1 and 0, as exporters write a group norm's."""
    scale, shift = own
    return all(
        one is None or bool((one == number).all()) for one, number in ((scale, 1), (shift, 0))
    )


@reads("MaxPool", "AveragePool")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    kernel = list(node["kernel_shape"])
    if len(kernel) != 2:
        raise node.refuse(f"pooling over {len(kernel)} axes")
    before, after = _pads(node, shape_of(x)[2:], kernel)
    ceil, stride = bool(node.get("ceil_mode", 0)), tuple(_strides(node, 2))
    if node.op == "MaxPool":
        dilation = tuple(node.get("dilations", [1, 1]))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if before != after or any(2 * b > r for b, r in zip(before, reach, strict=True)):
            after = _ends(shape_of(x)[2:], before, after, reach, stride) if ceil else after
            x, before, ceil = _surrounded(importer, x, before, after, float("-inf")), [0, 0], False
        return importer.call(F.max_pool2d, x, tuple(kernel), stride, tuple(before), dilation, ceil)
    counted = bool(node.get("count_include_pad", 0))
    if before != after:
        raise node.refuse("padding that differs by side")
    if any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        raise node.refuse("padding of more than half a window")
    if any(one != 1 for one in node.get("dilations", [1, 1])):
        raise node.refuse("dilation")
    return importer.call(F.avg_pool2d, x, tuple(kernel), stride, tuple(before), ceil, counted)


@reads("GlobalAveragePool")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    axes = tuple(range(2, len(shape_of(x))))
    return importer.call(torch.mean, x, dim=axes, keepdim=True)


@reads("GlobalMaxPool")
def _(importer: Importer, node: OnnxNode) -> Any:
    x = importer.value(node.inputs[0])
    window = shape_of(x)[2:]
    if len(window) == 2:
        return importer.call(F.max_pool2d, x, tuple(window))
    return importer.call(torch.amax, x, dim=tuple(range(2, 2 + len(window))), keepdim=True)


_MODES = {"nearest": "nearest", "linear": "bilinear"}


@reads("Resize")
def _(importer: Importer, node: OnnxNode) -> Any:
    """Of images, to nearest rounded down or bilinear, as torch's interpolate."""
    x = importer.value(node.inputs[0])
    scales, sizes = ([importer.constant(name) for name in node.inputs[2:]] + [None, None])[:2]
    mode = _MODES.get(node.get("mode", "nearest"))
    where = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    shape = shape_of(x)
    if mode is None or len(shape) != 4:
        raise node.refuse(f"mode {node.get('mode')} of {len(shape)} axes")
    known = {"nearest": where == "asymmetric" and rounding == "floor"}
    if not known.get(mode, where in ("half_pixel", "pytorch_half_pixel", "align_corners")):
        raise node.refuse(f"{mode} with {where}, {rounding}")
    corners = None if mode == "nearest" else where == "align_corners"
    if node.get("antialias", 0):
        raise node.refuse("antialias")
    if sizes is not None and node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse(f"keep_aspect_ratio_policy {node.get('keep_aspect_ratio_policy')}")
    if sizes is None and scales is None:
        raise node.refuse("sizes that depend on the input's values")
    how: dict[str, Any] = {"mode": mode, "align_corners": corners}
    if sizes is not None:
        size = how["size"] = _of_images(node, sizes, shape)
    else:
        factor = how["scale_factor"] = _of_images(node, scales, [1.0] * 4)
        size = tuple(int(old * new) for old, new in zip(shape[2:], factor, strict=True))
    if where == "pytorch_half_pixel" and 1 in size and size != tuple(shape[2:]):
        raise node.refuse("pytorch_half_pixel to one row or column")
    return importer.call(F.interpolate, x, **how)


def _of_images(node: OnnxNode, given: Any, kept: Sequence[float]) -> tuple[Any, ...]:
    """Sizes or scales of the last two axes; those of the others must be as `kept` has them."""
    every, rank = list(kept), len(kept)
    axes = [axis % rank for axis in node.get("axes", range(rank))]
    for axis, number in zip(axes, given.tolist(), strict=True):
        every[axis] = number
    if every[:2] != list(kept[:2]):
        raise node.refuse("other axes than the last two")
    return tuple(every[2:])
