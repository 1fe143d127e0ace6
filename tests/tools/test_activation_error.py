"""The activation study: its schemes against the compiler's graphs, its errors, its report."""

import json

import activation_error
import activation_schemes
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sqcompile.capture import capture
from sqcompile.passes.pipeline import integer_training, run
from sqcompile.recipe import Precision, Recipe

PRECISION = Precision(6, 6, 6, 3, activation_groups=3)


def spread(*shape):
    """Channels octaves apart, other ones in every row or image."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    octaves = (torch.arange(shape[-1]) + torch.arange(shape[0]).view(-1, *[1] * len(shape[1:]))) % 5
    return x * 2.0**-octaves


@pytest.mark.parametrize("tokens", [0, 4])
def test_the_input_as_read_is_the_compilers(tokens):
    torch.manual_seed(0)
    model, x = nn.Linear(10, 6, bias=False), spread(12, 10)
    recipe = Recipe("r", 8, 6, 8, groups=1, activation_groups=3, activation_tokens=tokens, rules=())
    graph, _ = run(capture(model, (x,), {}).graph, integer_training(recipe))
    with torch.no_grad():
        (y, *_) = graph(model.weight, x, torch.zeros(12, 6), torch.tensor([0, 0, 0, 0]))
    read = activation_schemes.as_read(x, PRECISION, tokens)
    weight = activation_schemes.float_by_row(model.weight.detach(), Precision(8, 8, 8, 1))
    exact = read.double() @ weight.double().t()
    assert float((y - exact).abs().max()) <= 2.0**-20 * float(exact.abs().max())


def test_finer_grids_lose_less_where_channels_differ():
    errors = {
        name: float((scheme(x, PRECISION) - x).square().sum())
        for x in [spread(64, 16)]
        for name, scheme in activation_schemes.SCHEMES.items()
    }
    rolled = spread(64, 16)[::16].repeat_interleave(16, 0)  # rows of 16 that are alike
    tokens, channel = (
        float((activation_schemes.SCHEMES[name](rolled, PRECISION) - rolled).square().sum())
        for name in ("tokens", "channel")
    )
    assert tokens < 0.5 * channel
    assert errors["channel"] <= errors["one range"]


def test_images_have_exponents_for_every_channel_of_an_image():
    x = spread(3, 4, 4, 6)
    error = (activation_schemes.by_tokens(x, PRECISION) - x).abs().amax((1, 2))
    largest, each = x.abs().max(), x.abs().amax((1, 2))
    halvings = torch.log2(largest / each).floor().clamp(0, 2)
    assert bool((error <= largest / 31 * 0.5**halvings * 0.5001).all())


def test_the_report_has_every_inner_layer(tmp_path):
    path = tmp_path / "errors.json"
    arguments = ["examples/digits_resnet.py", "--recipe", "w4a4g4", "--steps", "1"]
    done = CliRunner().invoke(activation_error.main, [*arguments, "--json", str(path)])
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert "blocks.0.conv1" in found["layers"] and "stem" not in found["layers"]
    assert "head" not in found["layers"]
    for row in [*found["layers"].values(), found["mean"]]:
        assert list(row) == list(activation_schemes.SCHEMES)
        assert all(0 < value < 0.1 for value in row.values())


def test_a_model_without_inner_layers_is_refused(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def make_model(): return nn.Linear(4, 2)\n"
        "def example_inputs(): return (torch.randn(3, 4),)\n"
        "def data(): yield torch.randn(3, 4), torch.zeros(3, dtype=torch.long)\n"
        "def loss(y, t): return nn.functional.cross_entropy(y, t)\n"
    )
    done = CliRunner().invoke(activation_error.main, [str(file), "--steps", "0"])
    assert done.exit_code == 1
    assert "no Conv2d or Linear layer between the first and the last" in done.output
