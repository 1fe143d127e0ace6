"""Models of one layer: it is the first and the last, so that the model's own layout and a gradient
from outside meet it at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sqcompile
from sqcompile.errors import CaptureError


class Applied(nn.Module):
    """A function as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


LAYERS = {
    "nearest": lambda: Applied(lambda x: F.interpolate(x, scale_factor=2)),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_image_layer_alone_is_bit_exact(name):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    step = sqcompile.compile(LAYERS[name](), (x,))
    found = sqcompile.verify(step, (x,))
    assert found.equal and len(found.rows) >= 2


class Factored(nn.Module):
    """A weight that is a product: its gradient is a product's result, which another one reads."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(4, 16))

    def forward(self, x):
        return x @ (self.u @ self.v)


def test_the_factors_of_a_weight_have_their_gradients():
    torch.manual_seed(0)
    model, x = Factored(), torch.randn(8, 16)
    step = sqcompile.compile(model, (x,), recipe="w8a8g8")
    assert sqcompile.verify(step, (x,)).equal
    step(x).square().sum().backward()
    found = [model.u.grad.clone(), model.v.grad.clone()]
    model.zero_grad()
    model(x).square().sum().backward()
    for ours, theirs in zip(found, [model.u.grad, model.v.grad], strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()  # 8 bits, three products


def test_an_assertion_about_inputs_is_refused_at_its_line():
    model = Applied(lambda x: F.one_hot(x, 5).float())
    with pytest.raises(CaptureError, match=r"test_single_layers\.py:\d+  .*one_hot"):
        sqcompile.compile(model, (torch.randint(5, (4,)),))
