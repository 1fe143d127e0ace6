"""What `examine` says of a model: by the user's own calls, and with a way out that works."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sqcompile import api, modelfile
from sqcompile.nearest import _NEAREST
from tests.models import make

FILE = """\
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)))
        self.register_buffer("wave", torch.linspace(0, 1, 8).sin())
        self.head = nn.Linear(8, 8)
{modules}

    def forward(self, x, image, series, video, tokens):
        outputs = [self.head(x)]
{lines}
        return outputs

def make_model():
    return Net()

def example_inputs():
    image = torch.randn(2, 4, 8, 8)
    series, video = torch.randn(2, 4, 8), torch.randn(2, 4, 2, 6, 6)
    return torch.randn(6, 8), image, series, video, torch.zeros(2, 2, dtype=torch.long)
"""
FRAMES = "video.transpose(1, 2).flatten(0, 1)"
WAYS_OUT = [
    ("nn.Conv1d(4, 4, 3)(series)", ["nn.Conv2d(4, 4, (1, 3))(series.unsqueeze(2)).squeeze(2)"]),
    ("nn.Conv3d(4, 4, 3, padding=1)(video)", [f"nn.Conv2d(4, 4, 3)({FRAMES})"]),
    (
        "nn.ConvTranspose2d(4, 4, 2, 2)(image)",
        ["nn.Conv2d(4, 4, 3)(F.interpolate(image, scale_factor=2))"],
    ),
    (
        'nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")(image)',
        ['nn.Conv2d(4, 4, 3, padding=1, padding_mode="zeros")(image)'],
    ),
    ("nn.Mish()(x)", ["nn.SiLU()(x)", "nn.GELU()(x)"]),
    ("nn.Softplus()(x)", ["nn.ELU()(x)", "nn.ReLU()(x)"]),
    ("nn.LogSigmoid()(x)", ["torch.log(torch.sigmoid(x))"]),
    ("nn.GLU()(x)", ["x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1])"]),
    ("nn.RReLU()(x)", ["nn.LeakyReLU()(x)"]),
    ("nn.Threshold(0.1, 0.0)(x)", ["torch.where(x > 0.1, x, 0.0)"]),
    ("nn.MaxPool3d(2)(video)", [f"nn.MaxPool2d(2)({FRAMES})"]),
    ("nn.AvgPool3d(2)(video)", [f"nn.AvgPool2d(2)({FRAMES})"]),
    ("nn.FractionalMaxPool2d(2, output_size=3)(image)", ["nn.MaxPool2d(2)(image)"]),
    ("F.adaptive_max_pool2d(image, (3, 3))", ["nn.MaxPool2d(3, 2)(image)"]),
    (
        'F.interpolate(image, (5, 5), mode="bicubic")',
        ['F.interpolate(image, (5, 5), mode="bilinear")'],
    ),
    (
        'F.interpolate(image, (5, 6), mode="bilinear", antialias=True)',
        ['F.interpolate(image, (5, 6), mode="bilinear", antialias=False)'],
    ),
    ("F.unfold(image, 3)", ["nn.Conv2d(4, 6, 3)(image)"]),
    ("x + torch.rand_like(x)", ["nn.Dropout(0.1)(x)"]),
    ("x + torch.randn_like(x)", ["nn.Dropout(0.2)(x)"]),
    ("torch.log1p(x * x)", ["torch.log(1 + x * x)"]),
    ("torch.sin(x)", ["x * self.wave"]),
    ("torch.sinh(x)", ["(torch.exp(x) - torch.exp(-x)) / 2"]),
    ("torch.cosh(x)", ["(torch.exp(x) + torch.exp(-x)) / 2"]),
    ("x.abs() ** 1.5", ["torch.sqrt(x * x)", "torch.exp(1.5 * torch.log(x.abs()))"]),
    ("torch.maximum(x, 2 * x)", ["torch.where(x > 2 * x, x, 2 * x)"]),
    ("torch.minimum(x, 2 * x)", ["torch.where(x < 2 * x, x, 2 * x)"]),
    ("x.max(1)[0]", ["x.amax(1)"]),
    ("x.amin(1)", ["-(-x).amax(1)"]),
    ("x.min(1)[0]", ["-(-x).amax(1)"]),
    ("x.var(1)", ["((x - x.mean(1, keepdim=True)) ** 2).sum(1) / (8 - 1)"]),
    ("x.norm(dim=1)", ["torch.sqrt((x * x).sum(1))"]),
    (
        "x.logsumexp(1)",
        [
            "x.amax(1, keepdim=True)"
            " + torch.log(torch.exp(x - x.amax(1, keepdim=True)).sum(1, keepdim=True))"
        ],
    ),
    ("image.tril()", ["image * self.mask"]),
    (
        "x.gather(1, torch.zeros(6, 1, dtype=torch.long))",
        ["x.index_select(1, torch.tensor([0, 2]))"],
    ),
    ("x.half().float()", ["x.float()"]),
    ("x.bfloat16() + 1", ["x + 1"]),
    ("x.to(torch.float64).float()", ["x.to(torch.float32)"]),
    ("x.to(torch.int32)", ["tokens.to(torch.int32)"]),
    ("nn.Embedding(9, 4, sparse=True)(tokens)", ["nn.Embedding(9, 4)(tokens)"]),
    ('nn.EmbeddingBag(9, 4, mode="max")(tokens)', ['nn.EmbeddingBag(9, 4, mode="mean")(tokens)']),
    (
        "torch.cdist(x, 2 * x)",
        ["torch.sqrt((x * x).sum(-1, keepdim=True) + (x * x).sum(-1) - 2 * x @ x.T)"],
    ),
    ("F.binary_cross_entropy_with_logits(x, x.detach().sigmoid())", []),
]


def rows_of(calls, folder, **options):
    """What examine says of a model that makes these calls, one a line; those of nn in modules."""
    modules, lines = [], []
    for number, call in enumerate(calls):
        if call.startswith("nn."):
            end = call.index(")(") + 1
            modules.append(f"        self.m{number} = {call[:end]}")
            call = f"self.m{number}{call[end:]}"
        lines.append(f"        outputs.append({call})")
    source = FILE.format(modules="\n".join(modules), lines="\n".join(lines))
    (folder / "calls.py").write_text(source)
    file = modelfile.load(str(folder / "calls.py"))
    return api.examine(file.make_model().train(), file.example_inputs(), **options), lines


def test_every_refusal_names_a_way_out_that_runs(tmp_path):
    rows, lines = rows_of([call for call, _ in WAYS_OUT], tmp_path, targets=["cpu"])
    told = {
        place.line.partition("  ")[2]: row.nearest
        for row in rows
        if not row.supported
        for place in row.places
    }
    assert [line for line in lines if not told.get(line.strip())] == []
    names = {text for row in told.values() for text in row.split("; ")}
    assert names >= {text for text in _NEAREST.values() if isinstance(text, str)}


def test_a_conversion_is_refused_for_what_it_is(tmp_path):
    """Half and double are no integers: each with its own reason, line and way out."""
    calls = {
        "x.half()": "a conversion from float32 to float16",
        "x.to(torch.bfloat16)": "a conversion from float32 to bfloat16",
        "x.double()": "a conversion from float32 to float64",
        "x.long()": "float to integer conversion",
    }
    rows, _ = rows_of(list(calls), tmp_path)
    found = {
        place.line.partition("  ")[2]: (verdict.reasons[0].partition(";")[0], row.nearest)
        for row in rows
        for verdict in row.verdicts.values()
        if verdict.reasons
        for place in row.places
    }
    assert {line: reason for line, (reason, _) in found.items()} == {
        f"outputs.append({call})": f"aten._to_copy: {reason}" for call, reason in calls.items()
    }
    halves = [near for line, (_, near) in found.items() if "long" not in line]
    assert all(near.startswith("float32 throughout: without .half()") for near in halves)


def test_the_ways_out_run(tmp_path):
    calls = [call for _, ways in WAYS_OUT for call in ways]
    rows, _ = rows_of(calls, tmp_path)
    assert [row.op for row in rows if not row.supported] == []


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Mish())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.first(x)).mean((2, 3))
        return self.head(h + h)


def test_ops_are_those_of_the_user():
    rows = {row.op: row for row in api.examine(Small(), (torch.randn(2, 3, 6, 6),))}
    names = {"nn.Conv2d", "nn.BatchNorm2d", "nn.Mish", "F.relu", "Tensor.mean", "nn.Linear", "+"}
    assert set(rows) == names
    mish = rows["nn.Mish"]
    assert [place.module for place in mish.places] == ["first.2"]
    assert "h = F.relu(self.first(x)).mean((2, 3))" in mish.places[0].line
    assert mish.becomes == ("aten.mish", "aten.mish_backward")
    for target in ("cpu", "cuda", "vta"):
        reason = f"aten.mish, aten.mish_backward: no kernel for target '{target}'"
        assert mish.verdicts[target].reasons == (reason,)
    assert {name: rows["nn.Conv2d"].verdicts[name].runs_on for name in ("cpu", "cuda", "vta")} == {
        "cpu": "cpu",
        "cuda": "cuda",
        "vta": "vta",
    }
    assert rows["F.relu"].verdicts["vta"].runs_on == "cpu"
    assert not rows["nn.Mish"].supported and rows["nn.Conv2d"].supported


def test_examine_builds_nothing(monkeypatch):
    monkeypatch.setattr(api, "cached_build", None)
    model, inputs = make("resnet")
    rows = api.examine(model, inputs, targets=["cpu"])
    assert rows and all(row.supported for row in rows)
    assert "sq.conv_fprop_sums" in next(row for row in rows if row.op == "nn.Conv2d").becomes


@pytest.mark.parametrize("source", [torch.exp, F.max_pool2d, "view", torch.add, nn.Conv2d])
def test_names(source):
    from sqcompile.examination import called

    names = {"view": "Tensor.view", nn.Conv2d: "nn.Conv2d", F.max_pool2d: "F.max_pool2d"}
    names |= {torch.exp: "torch.exp", torch.add: "torch.add"}
    assert called(source) == names[source]
