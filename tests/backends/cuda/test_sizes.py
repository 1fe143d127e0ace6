"""Tensors whose elements int32 does not count: products of them lowered to an error of TVM's, and
others to kernels in which a row's first element overflowed."""

import pytest
import torch

from sqcompile.backends import targets
from sqcompile.backends.cuda import KERNELS, grid
from sqcompile.backends.kernels import KernelSpec, TensorSpec
from sqcompile.backends.lower import unsupported
from sqcompile.errors import UnsupportedOpError
from sqcompile.ops import OPS
from tests.backends.graphs import written

LOGITS = (65536, 50264)
"""Of 64 texts of 1024 tokens: 3.3e9 elements, 13 GB, which a GPU holds."""
aten = torch.ops.aten


def test_a_tensor_that_int32_does_not_count_is_refused_with_the_users_line() -> None:
    """So is a view of one: what is computed of it would be read from it."""
    graph = written(
        lambda call, x: [
            call(OPS["sq::softmax"].target, x),
            call(aten.slice.Tensor, call(aten.view.default, x, [-1]), 0, 0, 8),
            call(aten.slice.Tensor, x, 0, 0, 8),
        ],
        torch.empty(LOGITS, device="meta"),
    )
    found = unsupported(graph, targets.get("cuda"))
    assert len(found) == 4
    assert f"float32[65536, 50264] has {65536 * 50264} elements" in found[0].reason
    assert "smaller batch" in found[0].reason and "model.py" in found[0].stack_trace


@pytest.mark.parametrize("size, refused", [(2**31 - 2**20, False), (2**31 - 2**20 + 1, True)])
def test_the_largest_tensor(size: int, refused: bool) -> None:
    x = TensorSpec((size,), "int8")
    assert bool(KERNELS.limit(KernelSpec("aten::neg.default", (("self", x),), (), (x,)))) == refused


def test_a_workspace_that_int32_does_not_count_is_refused() -> None:
    """What a product packs may be larger than what it reads."""
    with pytest.raises(UnsupportedOpError, match="workspace of int8 has 2147483648 elements"):
        grid.workspace(2**31, "int8")
