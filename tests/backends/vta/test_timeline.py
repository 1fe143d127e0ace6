"""The picture of a step: how busy every lane is, and the SVG that shows it."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from sqcompile.backends.vta.graph.timeline import busy, lanes_of, picture
from sqcompile.backends.vta.hardware import PRESETS
from sqcompile.backends.vta.program import product_program
from sqcompile.backends.vta.simulator.timing import cycles, timeline
from sqcompile.backends.vta.spec import GemmSpec, Values
from sqcompile.report.timeline import svg


def counted(spans, total, columns):
    """`busy`, cycle by cycle."""
    at_work = np.zeros(total)
    for start, end in spans:
        at_work[start:end] = 1
    return at_work.reshape(columns, -1).mean(1)


def test_shares_of_columns_are_those_of_their_cycles():
    rng = np.random.default_rng(0)
    edges = np.sort(rng.choice(240, 40, replace=False))
    spans = [tuple(edges[i : i + 2]) for i in range(0, 40, 2)]
    for columns in (1, 8, 240):
        found = busy(spans[::-1], 240, columns)
        assert np.allclose(found, counted(spans, 240, columns))
    assert not busy([], 7, 3).any()


def test_a_timeline_is_what_the_cycles_are():
    hardware = PRESETS["pynq"]
    bits = Values.of(4, True)
    program = product_program(hardware, GemmSpec(32, 48, 64, bits, bits))
    spans = timeline(hardware, program.decoded, 32)
    taken = cycles(hardware, program.decoded, 32)
    assert sorted(span.number for span in spans) == list(range(len(program.decoded)))
    assert max(span.end for span in spans) == taken.total
    for module in {span.module for span in spans}:
        assert sum(s.end - s.start for s in spans if s.module is module) == taken.busy[module.name]
    once = picture([("a", taken.total, lanes_of(program, spans))])
    twice = picture([(name, taken.total, lanes_of(program, spans)) for name in "ab"])
    assert twice["marks"] == [{"name": "a", "start": 0}, {"name": "b", "start": taken.total}]
    assert twice["lanes"]["GEMM"][:300] == twice["lanes"]["GEMM"][300:]
    gemm = sum(taken.busy.values()) and np.mean(once["lanes"]["GEMM"]) * taken.total / 100
    assert abs(gemm - sum(e - s for lane, s, e in lanes_of(program, spans) if lane == "GEMM")) < 9


def test_the_picture_is_svg_with_names_and_marks():
    shown = {
        "cycles": 1234,
        "marks": [{"name": "forward/a<b", "start": 0}, {"name": "backward/c", "start": 617}],
        "lanes": {"LOAD": [0, 100, 100, 50], "STORE": [0, 0, 0, 0]},
    }
    root = ElementTree.fromstring(svg(shown))
    assert [title.text for title in root.iter("title")] == ["forward/a<b", "backward/c"]
    assert [one.text for one in root.iter("text")] == ["LOAD", "STORE", "0", "1.23 k cycles"]
    widths = [one.get("width") for one in root.iter("rect")]
    assert widths == ["810", "405.0", "202.5", "810"]  # background, two columns, one, background
