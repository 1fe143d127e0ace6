"""Walks against PyTorch's own strides."""

import pytest
import torch

from sqcompile.walks import Walk


def elements(walk: Walk, memory: torch.Tensor) -> torch.Tensor:
    """What lies along a walk, in its shape."""
    flat = torch.as_strided(memory, walk.extents or [1], walk.strides or [1], walk.begin)
    return flat.reshape(walk.shape)


def test_chains_of_layout_changes_lead_to_the_elements_that_torch_finds():
    x = torch.arange(2 * 6 * 24)
    walk, want = Walk.whole([2, 6, 24]), x.view(2, 6, 24)
    walk, want = walk.sliced(2, 8, 8), want[:, :, 8:16]
    assert walk is not None and torch.equal(elements(walk, x), want)
    walk, want = (
        walk.reshaped([2, 6, 4, 2]).permuted([0, 2, 1, 3]),
        want.view(2, 6, 4, 2).transpose(1, 2),
    )
    assert walk is not None and torch.equal(elements(walk, x), want)
    walk, want = walk.reshaped([8, 6, 2]), want.reshape(8, 6, 2)
    assert torch.equal(elements(walk, x), want)
    assert walk.run == 2 and not walk.in_order
    walk, want = walk.sliced(1, 1, 2, 3), want[:, 1:6:3]
    assert walk is not None and torch.equal(elements(walk, x), want)
    walk, want = walk.selected(2, 1), want.select(2, 1)
    assert walk is not None and torch.equal(elements(walk, x), want)


@pytest.mark.parametrize("shape", [[], [1, 1], [5], [1, 4, 1, 3]])
def test_permutes_that_come_back_leave_elements_in_order(shape: list[int]):
    there = list(range(len(shape)))[::-1]
    walk = Walk.whole(shape).permuted(there)
    back = walk and walk.permuted(there)
    assert back == Walk.whole(shape) and back.in_order


def test_a_view_across_what_a_permute_made_has_no_axes():
    turned = Walk.whole([6, 10]).permuted([1, 0])
    assert turned is not None
    assert turned.reshaped([12, 5]).by_axis() is None
    assert turned.reshaped([12, 5]).permuted([1, 0]) is None
