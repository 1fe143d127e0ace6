"""Packing: exact bytes, round trips of every value and of odd and empty sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqcompile.ops.pack import pack_int4, pack_mask, unpack_int4, unpack_mask

SHAPES = [(0,), (1,), (2,), (7,), (8,), (9,), (3, 5), (2, 0, 3), (2, 3, 5, 7), ()]


def test_low_nibble_comes_first() -> None:
    packed = pack_int4(torch.tensor([1, -2, 7], dtype=torch.int8))
    assert packed.dtype == torch.uint8 and packed.tolist() == [0xE1, 0x07]
    packed = pack_int4(torch.tensor([1, 14, 15], dtype=torch.uint8))
    assert packed.tolist() == [0xE1, 0x0F]


def test_first_element_is_the_lowest_bit() -> None:
    mask = torch.tensor([True, False, False, False, False, False, True, True, True])
    assert pack_mask(mask).tolist() == [0b11000001, 1]


@pytest.mark.parametrize("signed", [True, False])
def test_every_four_bit_value_survives(signed: bool) -> None:
    dtype = torch.int8 if signed else torch.uint8
    values = torch.arange(-8, 8) if signed else torch.arange(16)
    pairs = torch.cartesian_prod(values, values).to(dtype)
    got = unpack_int4(pack_int4(pairs), pairs.shape, signed)
    assert got.dtype == dtype and got.equal(pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips_of_odd_and_empty_shapes(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    packed = pack_int4(q)
    assert packed.shape == ((q.numel() + 1) // 2,)
    assert unpack_int4(packed, shape, True).equal(q)
    mask = torch.randint(0, 2, shape, generator=generator).bool()
    packed = pack_mask(mask)
    assert packed.shape == ((mask.numel() + 7) // 8,)
    assert unpack_mask(packed, shape).equal(mask)


def test_order_is_that_of_the_logical_tensor() -> None:
    q = torch.arange(-6, 6, dtype=torch.int8).view(3, 4)
    assert pack_int4(q.t()).equal(pack_int4(q.t().contiguous()))
    mask = (q > 0).t()
    assert pack_mask(mask).equal(pack_mask(mask.contiguous()))


@given(st.lists(st.booleans(), max_size=40))
def test_masks_against_python_integers(values: list[bool]) -> None:
    number = sum(int(bit) << place for place, bit in enumerate(values))
    expected = list(number.to_bytes((len(values) + 7) // 8, "little"))
    assert pack_mask(torch.tensor(values, dtype=torch.bool)).tolist() == expected


@given(st.lists(st.integers(-8, 7), max_size=40))
def test_nibbles_against_python_integers(values: list[int]) -> None:
    number = sum((value & 0xF) << (4 * place) for place, value in enumerate(values))
    expected = list(number.to_bytes((len(values) + 1) // 2, "little"))
    assert pack_int4(torch.tensor(values, dtype=torch.int8)).tolist() == expected
