"""tools/bench_vta.py: the utilisation that docs/vta.md quotes."""

import bench_vta
import pytest

from sqcompile.backends.vta import hardware


@pytest.fixture(scope="module")
def rows():
    return list(bench_vta.rows(hardware.get("pynq-out32"), images=16, latency=32))


def test_gemm_is_busy_for_four_fifths_of_the_time_in_all_3x3_layers(rows):
    assert len(rows) == 9
    assert all(row["overlap"]["utilisation"] >= 0.8 for row in rows)
    assert all(row["overlap"]["macs"] == 1 for row in rows)


def test_double_buffering_is_what_keeps_it_busy(rows):
    assert all(row["alone"]["utilisation"] < 0.8 for row in rows)
    gains = [row["overlap"]["utilisation"] / row["alone"]["utilisation"] for row in rows]
    assert min(gains) > 1.1


@pytest.mark.parametrize(
    ("kind", "images", "least"), [("fprop", 16, 0.87), ("dgrad", 16, 0.79), ("dgrad", 128, 0.81)]
)
def test_results_in_slices_leave_gemm_busy(kind, images, least):
    """The first stage on pynq: 9 products a result, and a shift or two."""
    spec = bench_vta.layer(kind, channels=16, images=images)
    program = bench_vta.product_program(hardware.get("pynq"), spec)
    assert bench_vta.measured(program, latency=32)["utilisation"] >= least


def test_a_relu_of_its_own_takes_longer_than_the_convolution_before_it():
    chip = hardware.get("pynq")
    spec = bench_vta.layer("fprop", channels=16, images=16)
    product = bench_vta.measured(bench_vta.product_program(chip, spec), latency=32)
    assert bench_vta.steps(chip, images=16, latency=32)["ReLU"] > product["cycles"]


@pytest.mark.parametrize(("name", "most"), [("pynq", 1.30), ("pynq-out32", 1.02)])
def test_sums_in_a_products_program_take_a_part_of_what_they_take_apart(name, most):
    rows = list(bench_vta.sums(hardware.get(name), images=16, latency=32))
    assert len(rows) == 3
    for row in rows:
        assert row["together"] < most * row["fprop"]
        assert row["together"] - row["fprop"] < 0.35 * row["sums"]
        assert row["deviations"] > 2 * row["sums"]


def test_a_relu_in_the_products_program_takes_a_part_of_one_of_its_own():
    chip = hardware.get("pynq")
    cycles = bench_vta.relus(chip, images=16, latency=32)
    alone = bench_vta.steps(chip, images=16, latency=32)["ReLU"]
    assert cycles["with ReLU"] - cycles["fprop"] < alone / 4


def test_known_groups_pay_where_shifts_do_not_fit_an_element():
    cycles = {
        name: bench_vta.shifts(hardware.get(name), 32) for name in ("pynq-out32", "pynq-int4-out32")
    }
    assert cycles["pynq-out32"]["nothing"] == cycles["pynq-out32"]["lengths"]
    assert cycles["pynq-int4-out32"]["lengths"] < 0.6 * cycles["pynq-int4-out32"]["nothing"]
