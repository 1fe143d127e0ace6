"""Dynamo keeps graphs in the process: every test has its own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _graphs_of_its_own():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
