"""Property tests of this folder: the same examples on every run, no time limit for one."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("ops", deadline=None, derandomize=True, database=None)
settings.load_profile("ops")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thousands of small tensors: on a busy machine, waiting for a second thread takes longest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
