"""What the random draws depend on: step, micro-step, and resuming."""

import pytest
import torch

from sqcompile.errors import UsageError
from sqcompile.runtime.clock import Clock


def _advance(parameter):
    with torch.no_grad():
        parameter.add_(1.0)


def test_step_advances_with_the_parameters_and_micro_step_without():
    parameter, clock = torch.zeros(2), Clock(5)
    rngs = [clock.tick([parameter]).tolist() for _ in range(2)]
    _advance(parameter)
    rngs.append(clock.tick([parameter]).tolist())
    assert rngs == [[5, 0, 0, 0], [5, 0, 1, 0], [5, 1, 0, 0]]


def test_evaluation_does_not_count():
    parameter, clock = torch.zeros(2), Clock(0)
    clock.tick([parameter])
    clock.peek()
    assert clock.tick([parameter])[2] == 1


@pytest.mark.parametrize("weights_first", [True, False])
@pytest.mark.parametrize("pending", [True, False])
def test_resuming_continues_whichever_is_loaded_first(weights_first, pending):
    parameter, clock = torch.zeros(2), Clock(5)
    clock.tick([parameter])
    if pending:
        _advance(parameter)
    state = clock.state([parameter])
    expected = clock.tick([parameter]).tolist()

    resumed, restored = Clock(0), torch.zeros(2)
    if weights_first:
        _advance(restored)
    resumed.load(state)
    if not weights_first:
        _advance(restored)
    assert resumed.tick([restored]).tolist() == expected


def test_a_wide_seed_is_folded():
    assert Clock(2**40 + 3).tick([])[0] == 3 ^ 2**8


@pytest.mark.parametrize(
    "state", [{}, {"seed": 0, "step": -1, "micro_step": 0, "rank": 0}, {"seed": 0, "step": 1}]
)
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(UsageError):
        Clock(0).load(state)
