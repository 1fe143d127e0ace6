"""The gradient study: what it records, what its schemes do, and its report."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sqcompile.recipe import Precision, Recipe

TOOLS = Path(__file__).resolve().parents[2] / "tools"

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.grouped(self.act(self.first(x)))).mean((2, 3))
        return self.head(self.act(self.twice(torch.tanh(self.twice(x)))))


def make_model():
    return Net()


def data():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(8, 2, 6, 6, generator=generator)
        yield x, torch.randint(0, 3, (8,), generator=generator)


def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return import_module("gradient_error")


@pytest.fixture
def schemes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return import_module("gradient_schemes")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return path


def spread(*shape: int) -> torch.Tensor:
    """A gradient whose channels and samples lie octaves apart."""
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    octaves = torch.arange(shape[-1]) % 4 + 0.4
    samples = (torch.arange(shape[0]) % 3).view(-1, *[1] * (len(shape) - 1))
    return g * 2.0 ** -(octaves + samples)


def test_recorded_gradients_are_autograds(tool: ModuleType) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2)
    )
    x = torch.randn(5, 2, 2, 2, requires_grad=True)
    with tool.recorded(model) as layers:
        model(x).square().sum().backward()
    assert [layers[number].path for number in sorted(layers)] == ["0", "3"]
    for layer, module in zip((layers[0], layers[1]), (model[0], model[3]), strict=True):
        dw = layer.product("dW", layer.g.double(), layer.x.double())
        assert torch.allclose(dw, module.weight.grad.double(), rtol=1e-4, atol=1e-5)
    dx = layers[0].product("dX", layers[0].g.double(), layers[0].w.double())
    assert torch.allclose(dx.permute(0, 3, 1, 2), x.grad.double(), rtol=1e-4, atol=1e-5)
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("role", ["dX", "dW"])
@pytest.mark.parametrize("shape", [(12, 8), (6, 3, 3, 8)])
def test_schemes_lose_what_their_scales_allow(
    schemes: ModuleType, shape: tuple[int, ...], role: str
) -> None:
    convolution = len(shape) == 4
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*shape[:-1], 5, generator=generator)
    w = torch.randn(8, 5, *((1, 1) if convolution else ()), generator=generator)
    window = ((1, 1), (0, 0), (1, 1), 1) if convolution else None
    layer = schemes.Layer("layer", spread(*shape), x, w, window)
    row = schemes.measure(layer, role, Precision(4, 4, 4, 4), 64)
    error = {name: errors.relative_mse for name, errors in row.schemes.items()}
    assert list(error) == schemes.schemes_of(role)
    assert error[schemes.BOUND[role]] < error["paper"] < error["per tensor"]
    assert max(error["outer + shift"], error["own draws"]) < error["paper"]
    for errors in row.schemes.values():
        assert abs(errors.bias) < 4 * (errors.relative_mse / 64) ** 0.5
        assert errors.cosine == pytest.approx((1 + errors.relative_mse) ** -0.5, abs=0.02)
    more_bits = schemes.measure(layer, role, Precision(4, 4, 8, 4), 4)
    for name, errors in more_bits.schemes.items():
        assert errors.relative_mse < error[name] / 50


def test_what_rows_carry_on_is_not_lost_in_their_sum(schemes: ModuleType) -> None:
    """An input that is positive, as after a ReLU, adds the errors of tokens up."""
    x = torch.rand(64, 5, generator=torch.Generator().manual_seed(2)) + 1
    layer = schemes.Layer("layer", spread(64, 8), x, torch.randn(8, 5), None)
    row = schemes.measure(layer, "dW", Precision(4, 4, 4, 1), 32)
    carried, own = (row.schemes[name].relative_mse for name in ("outer + shift", "own draws"))
    assert carried < own / 4


def test_one_group_and_no_outer_scale_is_per_tensor(schemes: ModuleType) -> None:
    layer = schemes.Layer("layer", spread(6, 4), torch.randn(6, 3), torch.randn(4, 3), None)
    row = schemes.measure(layer, "dX", Precision(4, 4, 4, 1), 3)
    assert row.schemes["paper"] == row.schemes["per tensor"]


def test_a_zero_gradient_is_left_out(schemes: ModuleType) -> None:
    layer = schemes.Layer("layer", torch.zeros(3, 4), torch.randn(3, 2), torch.randn(4, 2), None)
    assert schemes.measure(layer, "dX", Precision(4, 4, 4, 4), 2) is None


def test_report(tool: ModuleType, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    arguments = [str(model_file), "--steps", "2", "--batches", "2", "--draws", "2"]
    result = CliRunner().invoke(tool.main, [*arguments, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "dX: relative mse" in result.output and "grouped" in result.output
    report = json.loads(out.read_text())
    assert report["recipe"] == "w4a4g4" and report["draws"] == 2
    paths = ["first", "grouped", "twice", "head"]
    rows = [(row["role"], row["path"], row["bits"]) for row in report["layers"]]
    bits = dict(zip(paths, (8, 4, 4, 8), strict=True))
    assert rows == [(role, path, bits[path]) for path in paths for role in ("dX", "dW")]
    for role in ("dX", "dW"):
        assert report["mean"][role]["layers"] == 2
        for claim in report["mean"][role]["claims"].values():
            assert claim["mean"] in (True, False) and 0 <= claim["layers"] <= 2
    again = tmp_path / "again.json"
    CliRunner().invoke(tool.main, [*arguments, "--json", str(again)])
    assert again.read_text() == out.read_text()


def test_a_recipe_without_ordinary_layers_has_no_means(tool: ModuleType) -> None:
    assert tool.summary([], Recipe.load("w8a8g8")) == {}


@pytest.mark.parametrize(
    ("changed", "message", "code"),
    [
        ("    for _ in range(3):", "gave no batch", 2),
        ("def loss(", "does not define loss", 2),
        ("padding=1)", "zero padding", 2),
    ],
)
def test_errors_name_the_model_file(
    tool: ModuleType, model_file: Path, changed: str, message: str, code: int
) -> None:
    replacement = {
        "    for _ in range(3):": "    for _ in range(0):",
        "def loss(": "def los(",
        "padding=1)": "padding='same')",
    }[changed]
    model_file.write_text(MODEL.replace(changed, replacement, 1))
    result = CliRunner().invoke(tool.main, [str(model_file), "--steps", "1", "--draws", "1"])
    assert result.exit_code == code and message in result.output
