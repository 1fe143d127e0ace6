"""Wgrads with sorted groups of pixels: the reference's integers, for any geometry and lengths."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.gathered import GatheredForm
from sqcompile.backends.vta.program import Program, product_program, run
from sqcompile.backends.vta.reduction import lengths
from sqcompile.backends.vta.spec import Values
from sqcompile.errors import UsageError
from sqcompile.ops import conv
from tests.backends.vta.programs import PYNQ
from tests.backends.vta.test_any_product import check_on_some_hardware
from tests.backends.vta.test_conv_program import GEOMETRIES, conv_spec, some_window
from tests.backends.vta.test_sorted_groups import exponents

S4, U4, S8, U8 = (Values.of(bits, signed) for bits in (4, 8) for signed in (True, False))
INT4 = hw.get("pynq-int4")


def tile(chip, log_batch, log_block):
    """An accelerator with another tile, whose indices fit their fields."""
    depth = {"log_acc_buff_size": 15, "log_wgt_buff_size": 15} if log_batch == 2 else {}
    name = f"{chip.name} {log_batch},{log_block}"
    return hw.checked(replace(chip, name=name, log_batch=log_batch, log_block=log_block, **depth))


CHIPS = {
    "int4": INT4,
    "int8": PYNQ,
    "int4, 4 rows of 8": tile(INT4, 2, 3),
    "int8, 2 rows of 32": tile(hw.get("pynq-out32"), 1, 5),
}


def some_wgrad(random):
    """(spec, operands, result), most often with groups that no pixel is in."""
    channel_groups, groups = random.choice([1, 1, 2, 3]), random.randint(2, 5)
    inputs, outputs = (channel_groups * random.randint(1, 12) for _ in range(2))
    kernel, stride, padding, dilation, size = some_window(random, 3, 6)
    window = (stride, padding, dilation, channel_groups)
    image = (random.randint(1, 4), *size, inputs)
    first, second = random.choice([S4, S4, U4, S8]), random.choice([S4, U4, U4, U8])
    spec = conv_spec("wgrad", image, outputs, kernel, window, first, second, groups)
    return with_lengths(spec, random)


def with_lengths(spec, random):
    """A spec with the lengths of random exponents, its operands, and what the reference gives."""
    exponent = exponents(random, 1, spec.reduced, spec.groups)
    spec = replace(spec, counts=lengths(exponent, spec.groups))
    rng = np.random.default_rng(random.randrange(99))
    operands = [
        rng.integers(spec.first.low, spec.first.high + 1, spec.y),
        rng.integers(spec.second.low, spec.second.high + 1, spec.x),
        exponent.reshape(*spec.y[:3], 1),
    ]
    g, x, e = map(torch.from_numpy, operands)
    window = (spec.stride, spec.padding, spec.dilation, spec.channel_groups, 0)
    result = conv.conv_wgrad.reference(g, x, e, spec.groups, spec.w, *window)
    return spec, operands, result.numpy()


@pytest.mark.parametrize("chip", CHIPS)
def test_any_lengths_of_groups_of_pixels_give_the_wgrad(chip):
    for seed in range(10):
        spec, operands, expected = some_wgrad(Random(seed))
        program = product_program(CHIPS[chip], spec)
        program.check()
        assert program.form.groups is not None
        np.testing.assert_array_equal(run(program, operands, seed=seed), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_program_gives_the_wgrad_of_every_geometry(geometry):
    spec = conv_spec("wgrad", *GEOMETRIES[geometry], S4, U4, 3)
    spec, operands, expected = with_lengths(spec, Random(1))
    program = Program.from_bytes(product_program(INT4, spec).to_bytes())
    np.testing.assert_array_equal(run(program, operands), expected)


@pytest.mark.parametrize("seed", range(12))
def test_on_any_accelerator_with_and_without_double_buffering(seed):
    check_on_some_hardware(some_wgrad, seed)


def test_every_interleaving_gives_the_same_bits():
    window = ((2, 1), (1, 1), (1, 1), 2)
    spec = conv_spec("wgrad", (3, 9, 9, 20), 36, (3, 3), window, S4, U4, 4)
    spec, operands, expected = with_lengths(spec, Random(2))
    program = product_program(replace(INT4, log_inp_buff_size=9, log_acc_buff_size=12), spec)
    for seed in (None, *range(16)):
        np.testing.assert_array_equal(run(program, operands, seed), expected)


def test_a_pixel_with_an_exponent_that_finds_no_room_is_refused():
    window = ((1, 1), (1, 1), (1, 1), 1)
    spec = conv_spec("wgrad", (1, 5, 5, 4), 4, (3, 3), window, S4, S4, 2)
    program = product_program(INT4, replace(spec, counts=(9, 16)))
    assert program.form.groups.room == (16, 16)
    exponent = np.repeat(np.arange(2), (17, 8)).reshape(1, 5, 5, 1)
    with pytest.raises(ValueError, match=r"room for \(16, 16\) .* there are \(17, 8\)"):
        run(program, [np.zeros(spec.y, int), np.zeros(spec.x, int), exponent])


def test_operands_that_are_shifted_have_the_form_without_copies_of_rows():
    """The lengths decide: without, x is there once for every column of the kernel."""
    window = ((1, 1), (1, 1), (1, 1), 1)
    spec = conv_spec("wgrad", (16, 8, 8, 16), 16, (3, 3), window, S4, S4, 4)
    shifted, sorted_ = (
        product_program(INT4, one).form for one in (spec, replace(spec, counts=(1024, 0, 0, 0)))
    )
    assert not isinstance(shifted, GatheredForm) and isinstance(sorted_, GatheredForm)
    assert shifted.correlation.tile_operations == 2 * sorted_.correlation.tile_operations


@pytest.mark.parametrize("epilogue", [{"sums": True}, {"relu": True}])
def test_epilogues_that_it_cannot_have_are_refused(epilogue):
    window = ((1, 1), (1, 1), (1, 1), 1)
    spec = conv_spec("wgrad", (1, 5, 5, 4), 4, (3, 3), window, S4, U4, 2)
    with pytest.raises(UsageError, match="sums are those of an fprop|no ReLU of it"):
        product_program(INT4, replace(spec, counts=(9, 16), **epilogue))
