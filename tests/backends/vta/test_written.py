"""Products whose programs are written for the lengths of a run: exact, in the DRAM they are given,
never slower than shifted operands; and what of an artifact is refused."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from sqcompile.backends.vta import written
from sqcompile.backends.vta.conv import ConvForm
from sqcompile.backends.vta.gathered import GatheredForm
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.backends.vta.program import product_program, run
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.backends.vta.written import Written, cycles_of, proven
from sqcompile.errors import UsageError
from tests.backends.vta.test_conv_program import conv_spec
from tests.backends.vta.test_gathered import some_wgrad
from tests.backends.vta.test_sorted_groups import CHIPS, some_conv, some_gemm

S4, U4 = Values.of(4, True), Values.of(4, False)
INT4 = PRESETS["pynq-int4"]
CONV = conv_spec("dgrad", (2, 6, 6, 5), 40, (3, 3), ((2, 2), (1, 1), (1, 1), 1), S4, S4, 4)
GEMM = GemmSpec(40, 20, 100, S4, S4, groups=4)
SUMMED = replace(
    conv_spec(
        "fprop", (20, 9, 9, 100), 5, (3, 3), ((1, 1), (1, 1), (1, 1), 1), Values.of(8, True), S4, 4
    ),
    sums=True,
)
"""Sums of it take several chunks where all channels have the largest shift."""
WGRAD = conv_spec("wgrad", (3, 9, 9, 20), 24, (3, 3), ((2, 1), (1, 1), (1, 1), 1), S4, U4, 4)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("make", [some_gemm, some_conv, some_wgrad])
def test_every_step_has_a_program_for_its_lengths(chip, make):
    sorted_ = 0
    for seed in range(20, 28):
        spec, operands, expected = make(Random(seed))
        product = Written(CHIPS[chip], replace(spec, counts=None))
        program = product.program(product.room(operands[2]))
        np.testing.assert_array_equal(run(program, operands, seed=seed), expected)
        assert program.data_end <= product.dram
        assert program.cycles(32).total <= cycles_of(product.hardware, product.spec)
        sorted_ += program.form.groups is not None
    assert sorted_ >= 3


def test_exponents_that_are_all_equal_are_one_group():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-7, 8, (40, 100)), rng.integers(-7, 8, (100, 20))
    product = Written(INT4, GEMM)
    for exponent in range(4):
        exponents = np.full((1, 100), exponent, np.int8)
        room = product.room(exponents)
        assert room == tuple(112 * (group == exponent) for group in range(4))
        program = product.program(room)
        assert program.form.groups.planes[exponent] == 7
        np.testing.assert_array_equal(run(program, [a, b, exponents]), (a << 3 - exponent) @ b)


def test_lengths_in_the_same_planes_share_a_program(monkeypatch: pytest.MonkeyPatch):
    made = []

    def counted(hardware, spec):
        made.append(spec)
        return product_program(hardware, spec)

    monkeypatch.setattr(written, "product_program", counted)
    proven.cache_clear()
    product = Written(INT4, replace(GEMM, n=21))
    lengths = [(60, 20, 20, 0), (50, 25, 25, 0), (64, 18, 18, 0)]
    programs = [
        product.program(product.room(np.repeat(np.arange(4), counts)[None])) for counts in lengths
    ]
    assert programs[0] is programs[1] is programs[2]
    assert [one.counts for one in made] == [None, (64, 32, 32, 0)]
    again = product_program(INT4, programs[0].spec)
    assert (again.instructions, again.uops) == (programs[0].instructions, programs[0].uops)


def test_no_more_programs_are_kept_than_there_is_room_for():
    assert proven.cache_parameters()["maxsize"] == written.KEPT


def test_the_dram_of_a_product_holds_operands_of_any_lengths():
    rng = np.random.default_rng(1)
    for spec in (GEMM, CONV, replace(GEMM, batch=3), SUMMED, replace(GEMM, relu=True)):
        product = Written(INT4, spec)
        for _ in range(6):
            sets = rng.multinomial(spec.reduced, rng.dirichlet([0.5] * 4), size=3)
            room = product.rounded(tuple(map(int, sets.max(0))))
            assert product.program(room).data_end <= product.dram


PIXELS = {
    "as usual": ((8, 8, 8, 16), 16, (3, 3), ((1, 1), (1, 1), (1, 1), 1)),
    "rows that are short": ((3, 30, 3, 16), 8, (3, 2), ((1, 1), (1, 1), (1, 1), 1)),
    "one pixel an image": ((500, 1, 1, 40), 24, (1, 1), ((1, 1), (0, 0), (1, 1), 1)),
    "channel groups": ((4, 12, 12, 12), 12, (3, 3), ((1, 2), (1, 0), (1, 2), 3)),
}
"""Wgrads whose two forms have grids and results of other sizes."""


@pytest.mark.parametrize("chip", ["pynq-int4", "pynq-out32"])
@pytest.mark.parametrize("name", PIXELS)
def test_the_dram_of_a_wgrad_holds_both_of_its_forms(chip, name):
    spec = conv_spec("wgrad", *PIXELS[name], S4, U4, 4)
    product, k = Written(PRESETS[chip], spec), spec.reduced
    rng = np.random.default_rng(2)
    drawn = (rng.multinomial(k, rng.dirichlet([0.5] * 4)) for _ in range(4))
    extremes = [(k, 0, 0, 0), (0, 0, 0, k), (k - 3, 1, 1, 1)]
    forms = set()
    for counts in (*extremes, *(tuple(map(int, one)) for one in drawn)):
        program = product.program(product.rounded(counts))
        forms.add(type(program.form))
        assert program.data_end <= product.dram
        assert program.cycles(32).total <= cycles_of(product.hardware, spec)
    assert product.sorts or forms == {ConvForm}
    assert GatheredForm in forms or chip != "pynq-int4"


@pytest.mark.parametrize("spec", [GEMM, CONV, WGRAD, SUMMED, replace(GEMM, batch=2, relu=True)])
def test_a_product_survives_being_text(spec):
    product = Written(INT4, spec)
    assert Written.from_bytes(product.to_bytes(), "it") == product


WRONG = {
    "no JSON": (lambda found: None, "Expecting value"),
    "a key too many": (lambda found: found | {"code": 1}, "other keys"),
    "no such kind": (lambda found: found | {"kind": "Program"}, "no kind 'Program'"),
    "a field too few": (
        lambda found: found | {"spec": {"kind": "dgrad"}},
        "missing or unknown: channel_groups, counts,",
    ),
    "no size": (lambda found: _with(found, x=[2, 0, 6, 5]), r"x of its spec is \[2, 0, 6, 5\]"),
    "a float": (lambda found: _with(found, groups=4.0), "groups of its spec is 4.0"),
    "one group": (lambda found: _with(found, groups=1), "groups of its spec is 1"),
    "its lengths": (lambda found: _with(found, counts=[40]), r"counts of its spec is \[40\]"),
    "sums of a gradient": (lambda found: _with(found, sums=True), "sums are those of an fprop"),
    "no such convolution": (lambda found: _with(found, kind="grad"), "kind of its spec is 'grad'"),
    "sums of a wgrad": (
        lambda found: _with(found, kind="wgrad", sums=True),
        "sums are those of an fprop",
    ),
    "no zero": (lambda found: _with(found, first={"low": 1, "high": 7}), "first of its spec"),
    "other shapes": (lambda found: _with(found, y=[2, 4, 3, 40]), "shapes that are of no conv"),
    "no hardware": (lambda found: found | {"hardware": {"code": 1}}, "unexpected keyword"),
    "hardware of text": (
        lambda found: found | {"hardware": found["hardware"] | {"log_batch": "4"}},
        "it describes no product",
    ),
    "indices that do not fit": (
        lambda found: found | {"hardware": found["hardware"] | {"log_acc_buff_size": 30}},
        "it describes no product",
    ),
}


def _with(found, **fields):
    return found | {"spec": found["spec"] | fields}


@pytest.mark.parametrize("name", WRONG)
def test_what_describes_no_product_is_refused(name):
    spoil, said = WRONG[name]
    spoilt = spoil(json.loads(Written(INT4, CONV).to_bytes()))
    data = b"" if spoilt is None else json.dumps(spoilt).encode()
    with pytest.raises(UsageError, match="it describes no product") as refused:
        Written.from_bytes(data, "it")
    refused.match(said)
