"""L1 norms beside the float norms that they replace, forward and backward.

Batch norm: int32 accumulators in; ReLU, 4-bit integers, packed xhat and mask out; then an int8
gradient in, float32 dx, dgamma and dbeta out. The peer does no ReLU and no quantisation.
Layer norm: int8 rows and gradients in, float32 out; "layer_norm_from_float" also quantises rows
and gradients, as a transformer step does. Group norm: the same from floats, its quantisers ops
of their own as in a step, per sample and group.
"""

from collections.abc import Callable, Iterator

import torch
from kernel_timing import Comparison, Run, compiled, traced
from torch import Tensor, nn

from sqcompile.ops import norm, norm_fused, pack, quantize
from sqcompile.ops.norm import fraction_bits

BATCH_NORMS = (
    (128, 16, 32, 32),
    (128, 32, 16, 16),
    (128, 64, 8, 8),
    (16, 64, 32, 32),
    (16, 256, 8, 8),
    (16, 512, 4, 4),
)
"""(N, C, H, W)."""
LAYER_NORMS = ((512, 512), (2048, 192), (1024, 1024), (4096, 256))
"""(rows, features)."""
GROUP_NORMS = ((16, 64, 32, 32, 8), (16, 256, 8, 8, 32))
"""(N, C, H, W, groups)."""
BITS, STEP, EPS = 4, 0.3352, 1e-5
STREAMS = (1, 2)


def comparisons(family: str) -> Iterator[Comparison]:
    """The comparisons of "l1_batch_norm", "l1_layer_norm" or "l1_group_norm"."""
    if family == "l1_group_norm":
        for shape in GROUP_NORMS:
            yield _group_norm(*shape)
        return
    if family == "l1_batch_norm":
        for shape in BATCH_NORMS:
            yield _batch_norm(*shape)
        return
    for make in (_layer_norm, _layer_norm_from_float):
        for rows, features in LAYER_NORMS:
            yield make(rows, features)


def _step(module: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, *parameters: Tensor) -> Run:
    """One forward and backward of a float norm."""
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(module(x), [x, *parameters], g)


def _batch_norm(n: int, c: int, h: int, w: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    shape = (n, h, w, c)
    x = (torch.randn(shape, generator=generator) * 2000).to(torch.int32)
    g = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    scale, bias, gamma, beta, g_scale = (torch.rand(c, generator=generator) for _ in range(5))
    bits = fraction_bits(n * h * w, 2**16)

    def forward(x: Tensor, scale: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> object:
        return norm_fused.l1_batch_norm_relu_quantize(
            x, scale, bias, gamma, beta, EPS, bits, BITS, STEP, True, 4, False
        )

    given = (x, scale * 1e-3, bias, gamma, beta)
    run_forward = compiled(traced(forward, *given))
    _, _, xhat, _, coefficient, _, _ = run_forward(*given)

    def backward(g: Tensor, g_scale: Tensor, xhat: Tensor, c: Tensor, gamma: Tensor) -> object:
        return norm_fused.l1_batch_norm_packed_backward(g, g_scale, xhat, c, gamma, STEP)

    back = (g, g_scale, xhat, coefficient, gamma)
    run_backward = compiled(traced(backward, *back))

    def ours() -> None:
        run_forward(*given)
        run_backward(*back)

    peers = {"BatchNorm2d": _image_peers(nn.BatchNorm2d(c), x, g)}
    return Comparison("l1_batch_norm", f"{n}x{c}x{h}x{w}", ours, peers)


def _image_peers(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Run]:
    """A norm of images and its gradients, in both memory formats; x and g are (N, H, W, C)."""
    images = [t.permute(0, 3, 1, 2).float() for t in (x, g)]
    peers = {}
    for form, layout in (
        ("channels_last", torch.channels_last),
        ("contiguous", torch.contiguous_format),
    ):
        tensors = [t.contiguous(memory_format=layout) for t in images]
        peers[form] = _step(module, *tensors, *module.parameters())
    return peers


def _layer_norm_peers(x: Tensor, g: Tensor) -> dict[str, dict[str, Run]]:
    module = nn.LayerNorm(x.shape[1])
    fused = torch.compile(module)
    parameters = (module.weight, module.bias)
    forms = {"eager": _step(module, x, g, *parameters), "compiled": _step(fused, x, g, *parameters)}
    return {"LayerNorm": forms}


def _layer_norm(rows: int, features: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, features)
    x, h, g = (
        torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8) for _ in range(3)
    )
    scale, h_scale = (torch.rand(rows, 1, generator=generator) for _ in range(2))
    gamma, beta = (torch.rand(features, generator=generator) for _ in range(2))
    g_scale = torch.rand(1, features, generator=generator)
    bits = fraction_bits(features, 127)

    def forward(x: Tensor, scale: Tensor, gamma: Tensor, beta: Tensor) -> object:
        y, xhat, coefficient = norm.l1_layer_norm(x, scale, gamma, beta, EPS, bits, BITS, STEP)
        return y, pack.pack_int4(xhat), coefficient

    given = (x, scale, gamma, beta)
    run_forward = compiled(traced(forward, *given))
    _, packed, coefficient = run_forward(*given)

    def backward(
        h: Tensor, h_scale: Tensor, g: Tensor, g_scale: Tensor, packed: Tensor, c: Tensor
    ) -> object:
        dx = norm_fused.l1_layer_norm_packed_backward(h, h_scale, packed, c, STEP)
        return dx, norm_fused.l1_layer_norm_affine_packed_backward(g, g_scale, packed, STEP)

    back = (h, h_scale, g, g_scale, packed, coefficient)
    run_backward = compiled(traced(backward, *back))

    def ours() -> None:
        run_forward(*given)
        run_backward(*back)

    peers = _layer_norm_peers(x.float(), g.float())
    return Comparison("l1_layer_norm", f"{rows}x{features}", ours, peers)


def _layer_norm_from_float(rows: int, features: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, features)
    x, g = (torch.randn(shape, generator=generator) for _ in range(2))
    gamma, beta = (torch.rand(features, generator=generator) for _ in range(2))
    rng = torch.tensor([1, 2, 3, 4])
    bits = fraction_bits(features, 127)

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> object:
        return norm_fused.quantize_l1_layer_norm(x, 8, gamma, beta, EPS, bits, BITS, STEP)

    given = (x, gamma, beta)
    run_forward = compiled(traced(forward, *given))
    _, packed, coefficient, _ = run_forward(*given)

    def backward(g: Tensor, gamma: Tensor, rng: Tensor, packed: Tensor, c: Tensor) -> object:
        dx, _ = norm_fused.quantize_l1_layer_norm_backward(
            g, gamma, rng, 8, STREAMS[1], packed, c, STEP
        )
        r = quantize.absmax(g, None, [0])
        q = quantize.quantize_stochastic(g, r, None, None, rng, 8, STREAMS[0])
        scale = quantize.quant_scale(r, 8, True, 1)
        return dx, norm_fused.l1_layer_norm_affine_packed_backward(q, scale, packed, STEP)

    back = (g, gamma, rng, packed, coefficient)
    run_backward = compiled(traced(backward, *back))

    def ours() -> None:
        run_forward(*given)
        run_backward(*back)

    return Comparison("layer_norm_from_float", f"{rows}x{features}", ours, _layer_norm_peers(x, g))


def _group_norm(n: int, c: int, h: int, w: int, groups: int) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    pixels, width = h * w, c // groups
    x, g = (torch.randn((n, h, w, c), generator=generator) for _ in range(2))
    gamma, beta = (torch.rand(groups, width, generator=generator) for _ in range(2))
    rng = torch.tensor([1, 2, 3, 4])
    bits = fraction_bits(pixels * width, 127)
    grouped, rows = (n, pixels, groups, width), (n, pixels, c)

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> object:
        x = x.view(grouped)
        r = quantize.absmax(x, None, norm.GROUP_AXES)
        q, scale = quantize.quantize(x, r, 8, True), quantize.quant_scale(r, 8, True, 1)
        y, xhat, coefficient = norm.l1_group_norm(q, scale, gamma, beta, EPS, bits, BITS, STEP)
        return y, pack.pack_int4(xhat), coefficient

    given = (x, gamma, beta)
    run_forward = compiled(traced(forward, *given))
    _, packed, coefficient = run_forward(*given)

    def backward(g: Tensor, gamma: Tensor, rng: Tensor, packed: Tensor, c: Tensor) -> object:
        h = g.view(grouped) * gamma
        r = quantize.absmax(h, None, norm.GROUP_AXES)
        largest = r.expand(n, 1, groups, width).reshape(n, 1, groups * width)
        q = quantize.quantize_stochastic(h.view(rows), largest, None, None, rng, 8, STREAMS[0])
        scale = quantize.quant_scale(r, 8, True, 1)
        dx = norm_fused.l1_group_norm_packed_backward(q.view(grouped), scale, packed, c, STEP)
        flat = g.view(n * pixels, groups * width)
        r = quantize.absmax(flat, None, [0])
        q = quantize.quantize_stochastic(flat, r, None, None, rng, 8, STREAMS[1])
        scale = quantize.quant_scale(r, 8, True, 1)
        return dx, norm_fused.l1_layer_norm_affine_packed_backward(q, scale, packed, STEP)

    back = (g, gamma, rng, packed, coefficient)
    run_backward = compiled(traced(backward, *back))

    def ours() -> None:
        run_forward(*given)
        run_backward(*back)

    peers = {"GroupNorm": _image_peers(nn.GroupNorm(groups, c), x, g)}
    return Comparison("l1_group_norm", f"{n}x{c}x{h}x{w}/{groups}", ours, peers)
