"""Times, rows, verdicts and the gate, on numbers that are known."""

import csv
import io
import json

import pytest

from sqcompile.bench.environment import differences, environment
from sqcompile.bench.saved import as_csv, read, rows
from sqcompile.bench.times import Times
from sqcompile.bench.verdict import bounds, compare, gate
from sqcompile.errors import UsageError


def times(middle, spread=0.1):
    return vars(
        Times(middle, middle - spread, middle + spread, 30, middle - spread, middle + spread)
    )


def measurement(ours=1.0, peer=2.0, product=0.5, spread=0.1):
    """A saved measurement of one step with one peer, one product and one kernel."""
    step = {f"w4a4g4 {part}": times(ours, spread) for part in ("forward", "backward", "step")}
    step |= {f"fp32 PyTorch {part}": times(peer) for part in ("forward", "backward", "step")}
    row = {"sqcompile": times(product, 0.01), "onnxruntime": times(1.0, 0.01)}
    product = {"product": "mm 2x2", "calls": 1, "macs": 8, "rows": row, "skipped": {}}
    kernel = {"kernel": "absmax", "function": "forward", "calls": 2, "milliseconds": 0.1}
    return {
        "kind": "sqcompile bench",
        "format": 1,
        "recipe": "w4a4g4",
        "environment": {"cpu": "a", "cores": 2},
        "runs": [
            {
                "threads": 2,
                "rows": step,
                "skipped": {},
                "products": [
                    {"product": "mm 2x2", "calls": 1, "macs": 8, "rows": row, "skipped": {}}
                ],
                "kernels": [{**kernel, **times(0.1, 0.01)}],
            }
        ],
    }


def test_percentiles_and_the_range_of_block_medians():
    found = Times.of([*[1e-3] * 6, *[2e-3] * 18, *[5e-3] * 6])
    assert (found.median_ms, found.runs) == (pytest.approx(2.0), 30)
    assert (found.low_ms, found.high_ms) == (pytest.approx(1.0), pytest.approx(5.0))
    assert found.p10_ms == pytest.approx(1.0) and found.p90_ms == pytest.approx(5.0)


def test_rows_have_the_ratio_of_a_peer_to_ours():
    found = {(row.part, row.who): row for row in rows(measurement())}
    assert found["step", "fp32 PyTorch"].ratio == 2.0
    assert found["step", "w4a4g4"].ratio is None
    assert found["mm 2x2", "onnxruntime"].ratio == 2.0
    assert found["step", "fp32 PyTorch"].name == "step / fp32 PyTorch / 2 threads"


def test_csv_has_every_row():
    table = list(csv.DictReader(io.StringIO(as_csv(measurement()))))
    assert len(table) == len(rows(measurement())) == 6 + 2 + 1
    assert table[0]["part"] == "forward" and float(table[0]["median_ms"]) == 1.0


@pytest.mark.parametrize(
    ("later", "spread", "verdict"),
    [(0.5, 0.1, "faster"), (1.5, 0.1, "slower"), (1.5, 0.6, "same"), (1.05, 0.1, "same")],
)
def test_a_verdict_is_by_the_ranges_not_by_a_percentage(later, spread, verdict):
    found = compare(measurement(), measurement(later, spread=spread))
    (step,) = [one for one in found if one.a.part == "step" and one.a.ours]
    assert (step.verdict, round(step.change, 3)) == (verdict, round(later - 1, 3))
    others = [one.verdict for one in found if not one.a.ours or one.a.kind != "step"]
    assert set(others) == {"same"}


def test_a_saved_measurement_bounds_its_ratios_with_slack(tmp_path):
    file = tmp_path / "before.json"
    file.write_text(json.dumps(measurement()))
    wanted = bounds(str(file), 0.1, [2])
    assert wanted == {
        "step / fp32 PyTorch / 2 threads": pytest.approx(1.8),
        "mm 2x2 / onnxruntime / 2 threads": pytest.approx(1.8),
    }
    assert all(one.passed for one in gate(measurement(), wanted))
    slower = gate(measurement(ours=2.0), wanted)
    assert [one.passed for one in slower] == [False, True]
    noisy = gate(measurement(ours=1.2, spread=0.4), wanted)
    assert noisy[0].ratio < 1.8 and noisy[0].passed


def test_what_was_not_measured_does_not_pass():
    (held,) = gate(measurement(), {"step / torch.compile / 2 threads": 0.001})
    assert held.ratio is None and not held.passed


def test_a_number_bounds_the_step_beside_fp32(tmp_path):
    assert bounds("1.5", 0.1, [1, 2]) == {
        "step / fp32 PyTorch / 1 thread": 1.5,
        "step / fp32 PyTorch / 2 threads": 1.5,
    }
    (tmp_path / "b.json").write_text('{"bounds": {"mm 2x2 / onnxruntime / 2 threads": 1.5}}')
    assert list(bounds(str(tmp_path / "b.json"), 0.1, [1]).values()) == [1.5]


@pytest.mark.parametrize("content", ["[]", '{"bounds": {}}', '{"bounds": {"a": "fast"}}', "{"])
def test_a_file_without_bounds_is_refused(tmp_path, content):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(UsageError):
        bounds(str(tmp_path / "b.json"), 0.1, [1])
    with pytest.raises(UsageError):
        read(tmp_path / "b.json")


def test_the_environment_names_machine_and_versions():
    found = environment()
    assert found["cores"] >= 1 and found["cpu"] and found["versions"]["torch"]
    assert json.loads(json.dumps(found)) == found
    assert differences(found, found) == []
    assert differences(found, {**found, "cores": 99}) == [f"cores: {found['cores']} and 99"]
