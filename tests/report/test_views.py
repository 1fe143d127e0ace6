"""The report as text, and numbers as people read them."""

import re

import pytest
from rich.console import Console

from sqcompile.report import text
from sqcompile.report.data import report
from sqcompile.report.format import big, dims, duration, share, size

RUN = {"epochs": [{"loss": 0.5, "accuracy": 0.75}], "accuracy": 0.75, "step_ms": 12.0}
TIMING = {
    "runs": [
        {
            "threads": 2,
            "rows": {"forward": {"median_ms": 1.5, "p10_ms": 1.0, "p90_ms": 2.0, "runs": 20}},
        }
    ]
}


@pytest.fixture(scope="module")
def data(resnet):
    full = report(resnet, eager_layers={"stem": 10**6})
    full["training"] = {"epochs": 1, "runs": {"w4a4g4": RUN, "fp32": RUN}}
    full["timing"] = TIMING
    full["verification"] = [{"mode": "train", "equal": True, "values": 41, "different": []}]
    return full


def printed(renderable):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_summary_says_how_much_is_in_integers(data):
    lines = "\n".join(text.summary(data))
    assert "100 % in integers" in lines
    assert "fp32 PyTorch 1 MB" in lines
    assert "PASSED (train): 41 values equal bit for bit" in lines


def test_failed_verification_is_counted():
    result = {"mode": "train", "equal": False, "values": 41, "different": [{}, {}]}
    assert text.verification_line(result) == "verified   FAILED (train): 2 of 41 differ"


def test_tables_have_a_row_for_everything(data):
    assert printed(text.products_table(data)).count("\n") == len(data["products"]) + 1
    assert printed(text.saved_table(data)).count("\n") == len(data["saved"]["tensors"]) + 1
    layers = printed(text.layers_table(data))
    assert layers.count("\n") == len(data["saved"]["layers"]) + 1
    assert re.search(r"^stem .* 1 MB +[0-9.]+x", layers, re.MULTILINE)
    assert printed(text.stages_table(data)).count("\n") == len(data["stages"]) + 1
    assert "1.5 ms" in printed(text.timing_table(TIMING))
    assert printed(text.training_table(data["training"])).count("75.00 %") == 2


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(712), "712 B"),
        (size(1400), "1.4 kB"),
        (size(3.2e9), "3.2 GB"),
        (big(999), "999"),
        (big(1.4e6), "1.4 M"),
        (share(1, 1), "100 %"),
        (share(999_999, 1_000_000), "99.99 %"),
        (share(1, 3), "33.33 %"),
        (share(0, 0), "100 %"),
        (duration(0.1234), "0.123 ms"),
        (duration(2500), "2.5 s"),
        (dims([4, 1]), "4x1"),
        (dims([]), "scalar"),
    ],
)
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected
