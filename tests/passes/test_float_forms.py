"""Before anything is quantised, the rewritten graph computes what the model computes, forward and
backward, in float: each form by itself, between two layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqcompile.capture import capture
from sqcompile.passes.canonicalize import canonicalize
from sqcompile.passes.channels_last import channels_last
from sqcompile.passes.fold_constants import fold_constants

Form = Callable[[Tensor], Tensor]
ORDER = torch.tensor([0, 2, 2, 5])


class Image(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first, self.form, self.last = nn.Conv2d(3, 4, 3, padding=1), form, nn.LazyConv2d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.form(self.first(x)))


class Tokens(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.first, self.form, self.last = nn.Linear(5, 8), form, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.form(self.first(x)))


class Words(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.form = nn.Embedding(9, 8, padding_idx=1), form
        self.last = nn.Linear(8, 9)
        self.last.weight = self.table.weight
        self.register_buffer("again", torch.tensor([[1, 3], [3, 8]]))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens) + self.table(self.again).mean((0, 1))
        return self.last(self.form(self.table.weight, tokens) + h.mean(1))


def assigned(x: Tensor) -> Tensor:
    """What stands in some places is replaced."""
    y = x.clone()
    y[:, 1] = 0.5
    y[..., 2:5] = x[..., :3]
    return y


IMAGES: dict[str, Form] = {
    "max-pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average-no-padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average-ceil": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True),
    "average-divisor": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive-even": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive-max": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, (5, 13), mode="bilinear"),
    "corners": lambda x: F.interpolate(x, (7, 13), mode="bilinear", align_corners=True),
    "area": lambda x: F.interpolate(x, (5, 3), mode="area"),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "chunk": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.chunk(3, 1))], 1),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "strided-slice": lambda x: x[:, :, ::2, 1::3],
    "pixel-shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel-unshuffle": lambda x: F.pixel_unshuffle(x[..., :8, :], 2),
    "index": lambda x: x[:, :, torch.tensor([[0, 3], [8, 3]])].flatten(2, 3),
    "channel-shuffle": nn.ChannelShuffle(2),
    "prelu": nn.PReLU(),
    "prelu-channels": nn.PReLU(4),
    "relu6": F.relu6,
}
TOKENS: dict[str, Form] = {
    "select": lambda x: x[:, -1],
    "unbind": lambda x: torch.stack([part.relu() for part in x.unbind(1)], 2),
    "expand": lambda x: x[:, :1].expand(-1, 6, -1) + x,
    "repeat": lambda x: x.repeat(2, 1, 3),
    "repeat-interleave": lambda x: x.repeat_interleave(2, 1),
    "assigned": assigned,
    "one-hot": lambda x: x * F.one_hot(torch.arange(6) % 3, 8),
    "roll-flat": lambda x: x.roll(7),
    "index-select": lambda x: x.index_select(1, ORDER),
    "index": lambda x: x[:, [0, 2, 2, -1]],
    "einsum": lambda x: torch.einsum("bic,bjc->bij", x, x),
    "causal": lambda x: torch.einsum("bic,bjc->bij", x, x) * torch.tril(torch.ones(6, 6)),
    "masked": lambda x: x.masked_fill(torch.arange(6).view(6, 1) > 2, 0.0),
    "counted": lambda x: x / (x > 0).sum(-1, keepdim=True).clamp(min=1),
    "constant-product": lambda x: x.movedim(1, 2) @ torch.ones(6, 4).tril(),
    "linear": lambda x: F.interpolate(x, 5, mode="linear"),
    "zeros": lambda x: torch.cat([torch.zeros_like(x), x, x.new_ones(2, 1, 8)], 1),
}
WORDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bag-mean": lambda w, t: F.embedding_bag(t, w),
    "bag-sum": lambda w, t: F.embedding_bag(t, w, mode="sum"),
    "index": lambda w, t: w[t].sum(1),
}
CASES = [
    *(pytest.param(Image, f, (2, 3, 9, 8), id=f"image-{n}") for n, f in IMAGES.items()),
    *(pytest.param(Tokens, f, (2, 6, 5), id=f"tokens-{n}") for n, f in TOKENS.items()),
    *(pytest.param(Words, f, None, id=f"words-{n}") for n, f in WORDS.items()),
]


@pytest.mark.parametrize(("kind", "form", "sizes"), CASES)
def test_the_float_graph_computes_what_the_model_does(
    kind: Callable[[Form], nn.Module], form: Form, sizes: tuple[int, ...] | None
) -> None:
    torch.manual_seed(1)
    model = kind(form)
    x = torch.randint(0, 9, (2, 6)) if sizes is None else torch.randn(sizes)
    want = model(x)
    captured = capture(model, (x,), {})
    graph = captured.graph
    for run in (fold_constants, canonicalize, channels_last, fold_constants):
        graph = run(graph)
    left = {str(n.target) for n in graph.graph.nodes if "backward" in str(n.target)}
    assert all(name.startswith("sq.") for name in left), left
    g = torch.randn(want.shape)
    sources = {
        "param": dict(model.named_parameters(remove_duplicate=False)),
        "buffer": dict(model.named_buffers()),
        "input": {"0": x},
        "tangent": {"0": g},
    }
    with torch.no_grad():
        rng = torch.zeros(4, dtype=torch.int64)
        values = [sources[port.kind][port.name] for port in captured.inputs]
        results = graph(*values, rng)
    want.backward(g)
    for port, result in zip(captured.outputs, results, strict=True):
        wanted = want if port.kind == "output" else sources["param"][port.name].grad
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
