"""Row numbers and classes that a model computes are refused like those of its inputs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sqcompile
from sqcompile import api
from sqcompile.errors import InputError
from sqcompile.ops.index_range import index_range
from sqcompile.runtime import cache
from sqcompile.runtime.step import CompiledStep


class Computed(nn.Module):
    """Ten words, six rows of a parameter, five classes; 9 is a class that does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.extra = nn.Parameter(torch.randn(6, 8))
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 5)

    def forward(self, tokens: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        h = self.words(tokens[:, 0] + 1)  # the line of the words
        h = h + self.extra[rows * 2] + self.words(tokens[:, 1].clamp(0, 9))
        target = torch.where(classes == 9, -100, classes - 1)
        return functional.cross_entropy(self.last(self.norm(h)), target)


TOKENS = torch.tensor([[-1, 99], [8, -5], [0, 3]])
ROWS, CLASSES = torch.tensor([2, -3, 0]), torch.tensor([1, 9, 5])
WRONG = {
    "word-high": (0, 9, r"the row number 10 \(module: words\)\n  there are 10 rows: 0 \.\. 9\."),
    "word-low": (0, -2, r"the row number -1 \(module: words\)"),
    "row-high": (1, 3, r"the row number 6\n  there are 6 rows: -6 \.\. 5\."),
    "row-low": (1, -4, r"the row number -8\n"),
    "class-high": (2, 6, r"the class number 5\n  there are 5 classes: 0 \.\. 4\."),
    "class-low": (2, 0, r"the class number -1\n"),
}


def inputs(place: int | None = None, number: int = 0) -> tuple[Tensor, ...]:
    """The inputs, with a number of one of them at the first place of the first row."""
    given = [TOKENS.clone(), ROWS.clone(), CLASSES.clone()]
    if place is not None:
        given[place].view(-1)[0] = number
    return tuple(given)


def model() -> Computed:
    torch.manual_seed(0)
    return Computed()


@pytest.fixture(scope="module")
def step() -> CompiledStep:
    return sqcompile.compile(model(), inputs())


def test_numbers_inside_are_taken(step: CompiledStep) -> None:
    assert sqcompile.verify(step, inputs()).equal
    assert torch.allclose(step(*inputs()), step.model(*inputs()), atol=0.2)


@pytest.mark.parametrize("case", WRONG)
def test_where_pytorch_refuses_a_number_so_do_we(step: CompiledStep, case: str) -> None:
    place, number, text = WRONG[case]
    with pytest.raises(IndexError):
        step.model(*inputs(place, number))
    with pytest.raises(InputError, match=f"the model computes {text}") as caught:
        step(*inputs(place, number))
    assert "test_computed_rows.py:" in str(caught.value)
    assert ("the line of the words" in str(caught.value)) == (place == 0)


def test_nothing_has_changed_when_a_number_is_refused(step: CompiledStep) -> None:
    step.zero_grad()
    before = {name: value.clone() for name, value in step.state_dict().items()}
    with pytest.raises(InputError, match="there are 10 rows"):
        step(*inputs(0, 9)).backward()
    assert all(torch.equal(value, before[name]) for name, value in step.state_dict().items())
    assert all(parameter.grad is None for parameter in step.parameters())


def test_one_range_for_what_is_not_proven_and_none_elsewhere(step: CompiledStep) -> None:
    assert [limit.rows for limit in step.variants[0].signature.range_limits] == [10, 6, 5]
    given = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 3))
    (variant,) = sqcompile.compile(given, (torch.tensor([[1, 9]]),)).variants
    assert not variant.signature.range_limits
    assert index_range.name not in [kernel.op for kernel in variant.kernels]


def test_evaluation_and_a_loaded_step_refuse_it_too(step: CompiledStep, tmp_path: Path) -> None:
    step.eval()
    try:
        with torch.no_grad():
            step(*inputs())
            with pytest.raises(InputError, match="the model computes the row number 10"):
                step(*inputs(0, 9))
    finally:
        step.train()
    step.save(str(tmp_path / "run"))
    loaded = sqcompile.load(str(tmp_path / "run"))
    loaded(*inputs()).backward()
    for place, number, text in (WRONG["word-high"], WRONG["class-low"]):
        with pytest.raises(InputError, match=f"the model computes {text}"):
            loaded(*inputs(place, number))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(10, 8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.words(tokens + 1))


INSIDE, OUTSIDE = torch.tensor([8, -1]), torch.tensor([8, 9])


def test_a_variant_found_in_the_cache_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setenv(cache.DIRECTORY, str(tmp_path))
    sqcompile.compile(Shifted(), (INSIDE,), check_finite=True)
    monkeypatch.setattr(api, "lower", forbidden)
    found = sqcompile.compile(Shifted(), (INSIDE,), check_finite=True)
    found(INSIDE).sum().backward()
    with pytest.raises(InputError, match="the model computes the row number 10"):
        found(OUTSIDE)


def test_a_graph_of_torch_compile_refuses_it() -> None:
    torch._dynamo.reset()
    module = torch.compile(Shifted(), backend="sqcompile")
    module(INSIDE).sum().backward()
    with pytest.raises(InputError, match=r"the row number 10 \(module: words\)"):
        module(OUTSIDE)
    torch._dynamo.reset()


class Tables(nn.Module):
    """Columns of one input that number the rows of two tables; targets that are an input."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Embedding(3, 8), nn.Embedding(50, 8)
        self.fixed = nn.Parameter(torch.randn(4, 8))
        self.last = nn.Linear(8, 5)

    def forward(self, columns: Tensor, target: Tensor) -> Tensor:
        h = self.small(columns[:, 0]) + self.large(columns[:, 1])
        h = h + self.fixed[torch.tensor([3, -4, 0])]
        return functional.cross_entropy(self.last(h), target, ignore_index=-1)


def test_columns_are_judged_by_their_own_table_and_given_classes_before_forward() -> None:
    columns, target = torch.tensor([[2, 49], [0, 7], [1, 3]]), torch.tensor([4, -1, 0])
    step = sqcompile.compile(Tables(), (columns, target))
    assert sqcompile.verify(step, (columns, target)).equal
    assert [limit.rows for limit in step.variants[0].signature.range_limits] == [3, 50]
    with pytest.raises(InputError, match=r"computes the row number 49 \(module: small\)"):
        step(columns.flip(1), target)
    for number in (5, -2):
        with pytest.raises(InputError, match=f"input 1 holds the class number {number}"):
            step(columns, torch.tensor([0, number, 1]))


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(4, 8))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.extra[torch.tensor([0, 4])])


def test_a_constant_outside_is_refused_when_it_is_run() -> None:
    step = sqcompile.compile(Constant(), (torch.randn(2, 8),))
    with pytest.raises(InputError, match="the model computes the row number 4"):
        step(torch.randn(2, 8))
