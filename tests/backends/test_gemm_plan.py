"""How operands of a product are stored, and where its group shifts go."""

from itertools import product

import pytest

from sqcompile.backends.cpu.gemm_plan import Form, plan
from sqcompile.ops.quantize import limits

KINDS = [(bits, signed) for bits in range(2, 9) for signed in (False, True)]


def stored(value: int, shift: int, form: Form) -> int:
    return (value << shift) + form.bias


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("groups", [1, 3, 4, 8])
def test_stored_values_fit_and_multiply_to_the_shifted_product(width: int, groups: int) -> None:
    for a_kind, b_kind in product(KINDS, KINDS):
        a, b = limits(*a_kind), limits(*b_kind)
        made = plan(a, b, groups, width)
        assert made.b.bias == 0
        assert made.a.unsigned != made.b.unsigned or width == 16
        if not made.sorted:
            assert made.a.shift + made.b.shift == groups - 1
        for s in range(groups):
            of_b = min(s, made.b.shift)
            of_a = 0 if made.sorted else s - of_b
            for x, y in product(a, b):
                first, second = stored(x, of_a, made.a), stored(y, of_b, made.b)
                for value, form in ((first, made.a), (second, made.b)):
                    low = 0 if form.unsigned else -(2 ** (width - 1))
                    assert low <= value < low + 2**width
                exact = (first - made.a.bias) * second
                assert exact == x * y << (of_a + of_b)
                assert abs(exact) <= made.step
                assert abs(made.a.bias * second) <= made.step


def test_an_unsigned_and_a_signed_operand_need_no_correction() -> None:
    assert plan((0, 255), (-127, 127), 1, 8).a == Form(unsigned=True, bias=0)
    assert plan((-127, 127), (0, 255), 1, 8).a == Form(unsigned=False, bias=0)
    assert plan((0, 127), (0, 255), 1, 8).a == Form(unsigned=False, bias=0)
    assert plan((-127, 127), (-127, 127), 1, 8).a == Form(unsigned=True, bias=128)
    assert plan((0, 255), (0, 255), 1, 8).a == Form(unsigned=False, bias=-128)


def test_shifts_go_to_the_packed_operand_first_and_to_both_when_they_must() -> None:
    four, six, eight = (-7, 7), (-31, 31), (-127, 127)
    assert (plan(eight, four, 4, 8).a.shift, plan(eight, four, 4, 8).b.shift) == (0, 3)
    assert (plan(six, six, 3, 8).a.shift, plan(six, six, 3, 8).b.shift) == (0, 2)
    assert (plan(six, six, 5, 8).a.shift, plan(six, six, 5, 8).b.shift) == (2, 2)
    assert plan(eight, eight, 2, 8).sorted
    assert not plan(eight, eight, 8, 16).sorted
