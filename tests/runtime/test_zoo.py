"""Kinds of networks, bit for bit against their reference graphs, with one thread and with two."""

import pytest

import sqcompile
from tests.models import make
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_bit_of_a_step_is_the_references(name: str) -> None:
    model, inputs = make(name, models=ZOO)
    step = sqcompile.compile(model, inputs)
    before = sqcompile.get_num_threads()
    try:
        for threads in (1, 2):
            sqcompile.set_num_threads(threads)
            result = sqcompile.verify(step, inputs, seed=threads)
            assert result.equal, [row for row in result.rows if not row.equal]
    finally:
        sqcompile.set_num_threads(before)
    gradients = [row.name for row in result.rows if row.kind == "gradient"]
    assert gradients == [parameter for parameter, _ in model.named_parameters()]
