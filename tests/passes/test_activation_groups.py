"""Graphs with grouped activations, run through the references, against autograd in float64."""

import pytest
import torch
from torch import Tensor, nn

from sqcompile.capture import capture
from sqcompile.ops.quantize import quantize
from sqcompile.passes.editing import calls
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.recipe import Recipe

GROUPS, SHARE = 3, 0.75
RECIPE = Recipe(gradient_bits=8, activation_groups=GROUPS, activation_clip=SHARE, rules=())
ULP = 2.0**-24


def as_quantised(v: Tensor, axes: list[int], qmax: int, grouped: bool, share: float) -> Tensor:
    """v in float64, rounded to a grid up to its absmax over `axes`; or, grouped, to a grid up to a
    share of the largest, twice as fine for every factor two that an absmax lies below that."""
    x = v.detach().double()
    largest = x.abs().amax(axes, keepdim=True)
    step = largest / qmax
    if grouped:
        halvings = torch.log2(x.abs().max() / largest).floor().clamp(0, GROUPS - 1)
        step = x.abs().max() * share / qmax * 0.5**halvings
    return (x / step).round().clamp(-qmax, qmax) * step


class Shared(nn.Module):
    """Two convolutions of one image, one of them strided."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(6, 4, 3, padding=1)
        self.two = nn.Conv2d(6, 4, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)[:, :, ::2, ::2] + self.two(x)


IMAGE = (3, 6, 6, 8)
MODELS = {
    "linear": (lambda: nn.Linear(12, 7), (5, 12)),
    "linear-3d": (lambda: nn.Linear(12, 7), (2, 3, 12)),
    "conv": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), IMAGE),
    "conv-groups": (lambda: nn.Conv2d(6, 8, 3, groups=2, dilation=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), IMAGE),
    "shared": (Shared, IMAGE),
}


def octaves(shape: tuple[int, ...], axis: int) -> Tensor:
    """Values of both signs whose channels are below each other by factors up to 2^5."""
    generator = torch.Generator().manual_seed(1)
    factors = 2.0 ** -(torch.arange(shape[axis]) % 6)
    return torch.randn(*shape, generator=generator) * factors.view(
        [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    )


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_weight_gradients_are_those_of_the_grids(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    image = len(shape) == 4
    x = octaves(shape, 1 if image else -1)
    captured = capture(model, (x,), {})
    graph, _ = run(captured.graph, integer_training(RECIPE))
    assert len(calls(graph, quantize)) == 1

    # gradients of one magnitude lie on their grid, so that nothing is drawn
    out = next(n for n in graph.graph.find_nodes(op="placeholder") if n.name.startswith("g_"))
    tangent = torch.where(torch.rand(out.meta["val"].shape) < 0.5, -1.0, 1.0)
    values = [*dict(model.named_parameters()).values(), x, tangent, torch.tensor([7, 1, 0, 0])]
    with torch.no_grad():
        results = graph(*values)
    got = {(port.kind, port.name): v for port, v in zip(captured.outputs, results, strict=True)}

    free = [0, 2, 3] if image else list(range(x.dim() - 1))
    x64 = as_quantised(x, free, 7, True, SHARE)
    weights = {
        key: as_quantised(p, list(range(1, p.dim())), 7, False, 1.0).requires_grad_()
        for key, p in model.named_parameters()
        if p.dim() > 1
    }
    biases = {key: p.double() for key, p in model.named_parameters() if p.dim() == 1}
    y = torch.func.functional_call(model, {**weights, **biases}, (x64,))
    y.backward(tangent.double())
    magnitude = float(y.detach().abs().max())
    (output,) = [v for (kind, _), v in got.items() if kind == "output"]
    assert bool(((output - y).abs() <= 32 * ULP * magnitude).all())
    for key, w64 in weights.items():
        dw = got["grad", key]
        assert bool(((dw - w64.grad).abs() <= 32 * ULP * w64.grad.abs() + 1e-12).all()), key


def test_tokens_have_grids_of_their_own():
    torch.manual_seed(0)
    tokens, rows, features = 4, 12, 10
    model = nn.Linear(features, 6)
    # what is small in one block of tokens is large in another
    x = octaves((features, rows), 1).T.contiguous()
    x[4:8] = x[4:8].flip(1) * 2.0 ** (torch.arange(features) % 3)
    recipe = Recipe(gradient_bits=8, activation_groups=GROUPS, activation_tokens=tokens, rules=())
    captured = capture(model, (x,), {})
    graph, _ = run(captured.graph, integer_training(recipe))
    (node,) = calls(graph, quantize)
    assert node.meta["val"].shape == (rows // tokens, tokens, features)

    tangent = torch.where(torch.rand(rows, 6) < 0.5, -1.0, 1.0)
    with torch.no_grad():
        results = graph(*model.parameters(), x, tangent, torch.tensor([7, 1, 0, 0]))
    got = {(port.kind, port.name): v for port, v in zip(captured.outputs, results, strict=True)}

    blocks = x.view(-1, tokens, features)
    x64 = as_quantised(blocks, [1], 7, True, 1.0).view(rows, features)
    w64 = as_quantised(model.weight, [1], 7, False, 1.0)
    y, dw = x64 @ w64.T + model.bias.double(), tangent.double().T @ x64
    (output,) = [v for (kind, _), v in got.items() if kind == "output"]
    assert bool(((output - y).abs() <= 32 * ULP * float(y.detach().abs().max())).all())
    assert bool(((got["grad", "weight"] - dw).abs() <= 32 * ULP * dw.abs() + 1e-12).all())
