"""The gradient of a lookup, added by several threads."""

import torch

from sqcompile import get_num_threads, set_num_threads
from sqcompile.ops import OPS
from tests.backends.cases import Case
from tests.backends.conftest import compile_cases

COUNT, ROWS, INNER = 30_000, 4, 96
"""Many additions to few rows: tasks are long, and blocks of columns are more than one."""


def test_tasks_have_columns_of_their_own():
    """Blocks of columns that overlap clear what another thread adds to: a few of a thousand runs
    have wrong sums then."""
    index = torch.arange(COUNT) % ROWS
    g = torch.ones(COUNT, INNER)
    op = OPS["sq::take_backward"]
    case = Case("take", op.target, op.reference, lambda _: [g, index, 0, ROWS, -1])
    run = compile_cases([case], "").functions["take"]
    threads, wrong = get_num_threads(), 0
    set_num_threads(2)
    try:
        for _ in range(1000):
            out = torch.full((ROWS, INNER), float("nan"))
            run(g, index, out)
            wrong += not torch.equal(out, torch.full((ROWS, INNER), COUNT / ROWS))
    finally:
        set_num_threads(threads)
    assert wrong == 0
