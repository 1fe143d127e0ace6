"""Dropout masks: the draws that they compare, their share, and streams that do not agree."""

import torch

from sqcompile.ops.dropout import dropout_mask, threshold
from sqcompile.ops.pack import unpack_mask
from sqcompile.ops.philox import draws

RNG = torch.tensor([1, 2, 3, 4])


def mask(
    shape: list[int], dropped: float, stream: int = 7, rng: torch.Tensor = RNG
) -> torch.Tensor:
    packed = dropout_mask(rng, shape, threshold(dropped), stream)
    return unpack_mask(packed, shape)


def test_an_element_is_kept_where_its_draw_is_large_enough() -> None:
    kept = mask([3, 5, 7], 0.3)
    wanted = [draw >= round(0.3 * 65536) for draw in draws(RNG, 105, 7).tolist()]
    assert kept.flatten().tolist() == wanted


def test_the_share_that_is_dropped() -> None:
    count = 1 << 16
    for dropped in (0.1, 0.5, 0.9):
        kept = int(mask([count], dropped).sum())
        deviation = (count * dropped * (1 - dropped)) ** 0.5
        assert abs(kept - count * (1 - dropped)) < 5 * deviation
    assert mask([999], 0.0).all() and not mask([999], 1.0).any()


def test_masks_differ_by_stream_step_and_micro_step() -> None:
    first = mask([4000], 0.5)
    others = [mask([4000], 0.5, stream=8)]
    for place in range(4):
        rng = RNG.clone()
        rng[place] += 1
        others.append(mask([4000], 0.5, rng=rng))
    for other in others:
        assert 0.4 < float((first == other).float().mean()) < 0.6
    assert first.equal(mask([4000], 0.5))
