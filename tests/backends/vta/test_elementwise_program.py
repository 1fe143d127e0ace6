"""Elementwise programs and sums on the simulator: numpy's integers."""

from dataclasses import replace

import numpy as np
import pytest

from sqcompile.backends.vta import hardware as hw
from sqcompile.backends.vta.program import Program, elementwise_program, run
from sqcompile.backends.vta.spec import ElementwiseSpec, Step, Values, relu, requantize
from sqcompile.errors import UsageError
from tests.backends.vta.programs import PYNQ, SHAPES

WIDE = Values(-(1 << 30), (1 << 30) - 1)
HALF = Values(-(1 << 29), (1 << 29) - 1)
OPERATIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "shr": np.right_shift}
RESIDUAL = Step("add", "tensor", 1)


def numpy_steps(spec, tensors, vectors):
    x = tensors[0].astype(np.int64)
    for step in spec.steps:
        y = {"tensor": tensors, "vector": vectors}.get(step.by, {step.value: step.value})[
            step.value
        ]
        x = {"add": np.add, "min": np.minimum, "max": np.maximum, "shr": np.right_shift}[step.op](
            x, y
        )
    return x.sum(0) if spec.sums else x


def operands_of(spec, seed=0):
    rng = np.random.default_rng(seed)

    def draw(values, shape):
        return rng.integers(values.low, values.high + 1, shape)

    tensors = [draw(values, (spec.rows, spec.channels)) for values in spec.tensors]
    return tensors, [draw(values, spec.channels) for values in spec.vectors]


SPECS = {
    "ReLU": ElementwiseSpec(5, 20, (WIDE,), (), relu()),
    "residual, ReLU, 8 bits": ElementwiseSpec(
        37, 17, (HALF, HALF), (), (RESIDUAL, *relu(), *requantize(15, 0, 255))
    ),
    "a bias and a clip by channel": ElementwiseSpec(
        9, 40, (WIDE,), (WIDE, WIDE), (Step("add", "vector", 0), Step("min", "vector", 1))
    ),
    "nothing": ElementwiseSpec(3, 3, (Values(-9, 9),), (), ()),
    "sums": ElementwiseSpec(22, 18, (WIDE,), (), (), sums=True),
    "sums of what exceeds a vector": ElementwiseSpec(
        33, 5, (Values(-999, 999),), (Values(5, 99),), (Step("max", "vector", 0),), sums=True
    ),
    "a sum of one row": ElementwiseSpec(1, 5, (WIDE,), (), (), sums=True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPECS)
def test_a_program_gives_what_its_steps_say(shape, name):
    spec = SPECS[name]
    tensors, vectors = operands_of(spec)
    program = Program.from_bytes(elementwise_program(SHAPES[shape], spec).to_bytes())
    program.check()
    found = run(program, [*tensors, *vectors], seed=1)
    assert found.dtype == (np.int64 if spec.sums else np.int32)
    np.testing.assert_array_equal(found, numpy_steps(spec, tensors, vectors))


def test_blocks_of_a_sum_are_no_longer_than_int32_can_add():
    spec = SPECS["sums"]
    program = elementwise_program(PYNQ, spec)
    assert program.form.result_shape == (2, 22)  # 2^30 twice is 2^31
    assert elementwise_program(PYNQ, replace(spec, tensors=(Values(-7, 7),))).form.result_shape == (
        2,
        1,
    )
    full = [np.full((22, 18), WIDE.low)]
    np.testing.assert_array_equal(run(program, full), [22 * WIDE.low] * 18)


def test_blocks_that_take_turns_in_acc_wait_for_its_stores():
    small = hw.checked(replace(PYNQ, log_acc_buff_size=10))  # 16 tiles: blocks reuse them
    spec = SPECS["residual, ReLU, 8 bits"]
    tensors, _ = operands_of(spec)
    program = elementwise_program(small, spec)
    program.check()
    np.testing.assert_array_equal(run(program, tensors), numpy_steps(spec, tensors, []))


def test_an_l1_norm_s_deviations_from_sums_alone():
    """sum |x - t| = 2 sum max(x, t) - sum x - n t: what a machine without subtraction can add."""
    x = np.random.default_rng(0).integers(-500, 500, (60, 20))
    t = x.sum(0) // 60
    plain = ElementwiseSpec(60, 20, (Values(-500, 500),), (), (), sums=True)
    above = replace(plain, vectors=plain.tensors, steps=(Step("max", "vector", 0),))
    total = run(elementwise_program(PYNQ, plain), [x])
    larger = run(elementwise_program(PYNQ, above), [x, t])
    np.testing.assert_array_equal(2 * larger - total - 60 * t, np.abs(x - t).sum(0))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (RESIDUAL, "may leave 32 bits"),
        (Step("add", "immediate", 1 << 15), "immediate outside"),
        (Step("shr", "immediate", 16), "immediate outside 0..15"),
        (Step("shr", "tensor", 1), "shifts are by immediates"),
    ],
)
def test_a_step_that_the_accelerator_cannot_do_exactly_is_refused(step, message):
    with pytest.raises(UsageError, match=message):
        spec = ElementwiseSpec(2, 2, (Values(-(1 << 31), (1 << 31) - 1),) * 2, (), (step,))
        elementwise_program(PYNQ, spec)
