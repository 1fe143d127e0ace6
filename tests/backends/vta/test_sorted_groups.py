"""Programs by Horner over sorted groups, for any lengths: numpy's and the references' integers."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.program import product_program, run
from sqcompile.backends.vta.reduction import SortedGroups, lengths
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.ops import conv
from tests.backends.vta.test_conv_program import conv_spec, some_window

S4, U4 = Values.of(4, True), Values.of(4, False)
INT4 = hw.get("pynq-int4")
CHIPS = {
    "int4": INT4,
    "int4, out32": hw.get("pynq-int4-out32"),
    "2 rows of 32": hw.checked(replace(INT4, name="2x32", log_batch=1, log_block=5)),
}


def exponents(random, sorts, k, groups):
    """(sorts, k), most often with groups that have no member."""
    found = []
    for _ in range(sorts):
        weights = [random.choice([0, 1, 9]) for _ in range(groups)]
        weights[random.randrange(groups)] += 1
        found.append(random.choices(range(groups), weights, k=k))
    return np.array(found, np.int8)


def some_gemm(random):
    """(spec, operands, product), each batch with groups of its own."""
    batch = random.choice([None, None, 1, 3])
    m, n, k = random.randint(1, 40), random.randint(1, 40), random.randint(1, 150)
    groups, sorts = random.randint(2, 5), batch or 1
    exponent = exponents(random, sorts, k, groups)
    a, b = random.choice([S4, U4]), random.choice([S4, U4])
    flags = [random.random() < 0.5 for _ in range(2)]
    spec = GemmSpec(m, n, k, a, b, batch, *flags, groups, lengths(exponent, groups))
    rng = np.random.default_rng(random.randrange(99))
    first = rng.integers(a.low, a.high + 1, (sorts, m, k))
    second = rng.integers(b.low, b.high + 1, (sorts, k, n))
    shift = exponent[:, None]
    product = (first << (groups - 1 - shift.astype(int))) @ second
    operands = [first, second, shift]
    if spec.transpose_a:
        operands[0], operands[2] = first.swapaxes(1, 2), shift.swapaxes(1, 2)
    if spec.transpose_b:
        operands[1] = second.swapaxes(1, 2)
    if batch is None:
        operands, product = [one[0] for one in operands], product[0]
    return spec, operands, product


def some_conv(random):
    """(spec, operands, result) of a fprop or dgrad, each channel group with groups of its own."""
    kind, groups = random.choice(["fprop", "dgrad"]), random.randint(2, 4)
    channel_groups = random.choice([1, 1, 2])
    inputs, outputs = (channel_groups * random.randint(8, 80) for _ in range(2))
    kernel, stride, padding, dilation, size = some_window(random, 2, 5)
    image = (random.randint(1, 3), *size, inputs)
    window = (stride, padding, dilation, channel_groups)
    first = S4 if kind == "dgrad" else random.choice([S4, U4])
    spec = conv_spec(kind, image, outputs, kernel, window, first, S4, groups)
    exponent = exponents(random, channel_groups, spec.reduced, groups)
    spec = replace(spec, counts=lengths(exponent, groups))
    rng = np.random.default_rng(random.randrange(99))
    shape = spec.x if kind == "fprop" else spec.y
    operands = [
        rng.integers(first.low, first.high + 1, shape),
        rng.integers(S4.low, S4.high + 1, spec.w),
        exponent.reshape(1, 1, 1, -1),
    ]
    a, b, e = map(torch.from_numpy, operands)
    if kind == "fprop":
        result = conv.conv_fprop.reference(a, b, *window, 0, e, groups)
    else:
        result = conv.conv_dgrad.reference(a, b, e, groups, spec.x, *window, 0)
    return spec, operands, result.numpy()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("make", [some_gemm, some_conv])
def test_any_lengths_of_groups_give_the_product(chip, make):
    ordered = 0
    for seed in range(20):
        spec, operands, expected = make(Random(seed))
        program = product_program(CHIPS[chip], spec)
        program.check()
        np.testing.assert_array_equal(run(program, operands, seed=seed), expected)
        ordered += program.form.groups is not None
    assert ordered >= 6  # the others have so many short groups that digits multiply less


def test_a_program_is_right_for_all_exponents_that_find_room():
    spec = GemmSpec(9, 5, 80, U4, S4, groups=3, counts=(16, 40, 32))
    program = product_program(INT4, spec)
    assert program.form.groups == SortedGroups((1, 3, 2), 16)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 16, (9, 80)), rng.integers(-7, 8, (80, 5))
    for counts in ((16, 48, 16), (0, 48, 32), (16, 32, 32), (7, 43, 30)):
        exponent = rng.permutation(np.repeat(np.arange(3), counts))
        found = run(program, [a, b, exponent[None]])
        np.testing.assert_array_equal(found, (a << (2 - exponent)) @ b)
    with pytest.raises(ValueError, match=r"room for \(16, 48, 32\) .* there are \(17, 47, 16\)"):
        run(program, [a, b, np.repeat(np.arange(3), (17, 47, 16))[None]])


def test_sums_of_few_large_groups_leave_in_fewer_slices():
    """23 bits where all of k might shift by 4, 19 where the groups say that none does."""
    spec = GemmSpec(8, 8, 5000, S4, S4, groups=5)
    low = replace(spec, counts=(0, 0, 0, 0, 5000))
    bits = [product_program(INT4, one).form.result_bits for one in (spec, low)]
    assert bits == [23, 19]
