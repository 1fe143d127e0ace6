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


def test_an_assertion_about_inputs_is_refused_at_its_line():
    model = Applied(lambda x: F.one_hot(x, 5).float())
    with pytest.raises(CaptureError, match=r"test_single_layers\.py:\d+  .*one_hot"):
        sqcompile.compile(model, (torch.randint(5, (4,)),))
