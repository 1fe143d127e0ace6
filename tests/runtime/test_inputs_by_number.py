"""Row numbers that a table does not have are an error at the user's line, before anything runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sqcompile
from sqcompile.errors import InputError
from sqcompile.runtime.step import CompiledStep


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.extra = nn.Parameter(torch.randn(6, 8))
        self.last = nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor([[0, 5]]))

    def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
        h = self.words(tokens)  # the line of the words
        return self.last(h + self.extra[rows] + self.words(self.order))


TOKENS, ROWS = torch.tensor([[1, 9], [0, 3]]), torch.tensor([[5, -6], [-1, 0]])


@pytest.fixture(scope="module")
def step() -> CompiledStep:
    torch.manual_seed(0)
    return sqcompile.compile(Rows(), (TOKENS, ROWS))


def test_numbers_inside_are_taken(step: CompiledStep) -> None:
    assert sqcompile.verify(step, (TOKENS, ROWS)).equal
    model = step.model
    assert torch.allclose(step(TOKENS, ROWS), model(TOKENS, ROWS), atol=0.2)


@pytest.mark.parametrize("number", [10, -1])
def test_a_word_outside_of_the_table(step: CompiledStep, number: int) -> None:
    tokens = torch.tensor([[1, number], [0, 3]])
    with pytest.raises(InputError, match=f"input 0 holds the row number {number}") as caught:
        step(tokens, ROWS)
    assert "the line of the words" in str(caught.value) and "0 .. 9" in str(caught.value)


@pytest.mark.parametrize("number", [6, -7])
def test_an_index_outside_of_a_parameter(step: CompiledStep, number: int) -> None:
    with pytest.raises(InputError, match=f"input 1 holds the row number {number}"):
        step(TOKENS, torch.tensor([[0, 0], [0, number]]))


def test_a_buffer_and_a_loaded_step_are_checked_too(step: CompiledStep, tmp_path: Path) -> None:
    step.save(str(tmp_path / "run"))
    loaded = sqcompile.load(str(tmp_path / "run"))
    assert loaded(TOKENS, ROWS).shape == (2, 2, 3)
    with torch.no_grad():
        loaded.get_buffer("order")[0, 0] = 12
    with pytest.raises(InputError, match="buffer order holds the row number 12"):
        loaded(TOKENS, ROWS)
