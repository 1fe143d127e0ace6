"""The page as a file: whole, offline, small, safe, and true to what the run folder holds."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pytest

from sqcompile.report import html
from sqcompile.report.data import read, report
from sqcompile.report.graphs import texts


@pytest.fixture(scope="module")
def page(run_folder):
    return html.write(read(run_folder), texts(run_folder), run_folder).read_text("utf-8")


def blob(page, name):
    text = re.search(rf'id="blob-{name}">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(text)))


class Checked(HTMLParser):
    """Fails on a tag that is not closed in order, or that would load something."""

    VOID = ("meta", "input")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.jumps = [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert "src" not in given and tag not in ("link", "img", "iframe", "object")
        if "href" in given:
            assert tag == "a" and given["href"].startswith("#")
            self.jumps.append(given["href"][1:])
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(page):
    parser = Checked()
    parser.feed(page)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert set(parser.jumps) <= set(parser.ids)
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert len(page) < 5e6


def test_the_same_folder_gives_the_same_page(page, run_folder):
    assert html.render(
        read(run_folder),
        texts(run_folder),
        html.read_graphs(run_folder, read(run_folder)),
        html.sources.listings(run_folder, read(run_folder)),
    ) == page  # fmt: skip


def test_every_stage_comes_back_as_it_was_printed(page, run_folder):
    whole = blob(page, "graphs")
    printed = texts(run_folder)
    for stage in whole["stages"][:-1]:
        assert along(stage["text"], whole["lines"]) == printed[stage["name"]].splitlines()
    last = whole["stages"][-1]
    both = "\n".join([printed["forward"], printed["backward"]]).splitlines()
    assert (last["name"], along(last["text"], whole["lines"])) == ("compiled", both)
    nodes = along(last["nodes"], whole["nodes"])
    assert nodes[last["begins"]][1] == "placeholder" and nodes[last["begins"] - 1][1] == "output"


def along(steps, values):
    place, found = 0, []
    for step in steps:
        place += step
        found.append(values[place])
    return found


def test_a_report_without_measurements_says_which_command_makes_them(resnet):
    page = html.render(report(resnet), {})
    for option in ("--verify", "--bench", "--stats"):
        assert f"sqcompile MODEL.PY {option}" in page
    assert "This folder has no graphs of this version" in page
    assert 'id="training"' not in page and "blob-graphs" not in page


def test_texts_are_in_the_page_where_graphs_are_not(resnet):
    printed = {stage.name: stage.text for stage in resnet.variants[0].stages}
    page = html.render(report(resnet), printed)
    assert page.count("<details data-stage") == len(resnet.variants[0].stages)
    assert "sq.conv_fprop" in page


def test_names_are_escaped(resnet):
    hostile = report(resnet) | {"unused_rules": ["</script><script>alert(1)</script>"]}
    assert "<script>alert" not in html.render(hostile, {"captured": "<script>alert(2)</script>"})


def with_accelerator(step, rows, **more):
    """A page whose accelerator has these programs, 10 cycles in all."""
    lanes = {"cycles": 10, "lanes": {"LOAD": [0, 100]}, "marks": [{"name": "p", "start": 0}]}
    counts = {"macs": 8, "cycles": 10, "utilisation": 0.5, "efficiency": 0.5, "bytes": {"inp": 8}}
    place = {"node": "forward/mm", "product": "forward/mm", "programs": ["p"], "module": "head"}
    place |= {"shifts": [None]}
    known = {"name": "pynq", "cycles": 10, "milliseconds": 0.1, "utilisation": 0.5, "left": {}}
    known |= {
        "dram_latency": 3,
        "timeline": lanes,
        "longest": lanes,
        "host": {"aten::add": 2},
        "norms": {},
    }
    known |= {"programs": [place | counts | row for row in rows]}
    known |= {"layers": [{"module": "head", "macs": 8, "cycles": 10}]}
    return html.render(report(step) | {"accelerator": known | more}, {})


def test_a_program_for_the_accelerator_is_drawn(resnet):
    page = with_accelerator(resnet, [{}])
    assert page.count('class="timeline"') == 2
    assert "aten::add</code> 2x" in page


def test_how_a_program_shifts_groups_is_told_with_what_that_was_chosen_from(resnet):
    cases = {"one": 1234567, "equal": 2000000, "most": 2345678}
    chosen = {"way": "sorted", "shifted": 2345678, "reason": ""}
    chosen |= {name: {"counts": [16, 0], "cycles": cycles} for name, cycles in cases.items()}
    alone = {"way": "shifted", "shifted": 99, "reason": "pixels < taps"}
    alone |= dict.fromkeys(cases)
    page = with_accelerator(
        resnet, [{"shifts": shifts} for shifts in ([chosen, None], [alone, alone], [None])]
    )
    table = re.search(r'aria-label="Programs".*?</table>', page, re.DOTALL)[0]
    first, second, third = re.findall(r"<tr><td>.*?</tr>", table, re.DOTALL)
    assert (
        '<td>sorted <span class="soft">2,345,678 shifted, 1,234,567 one group, 2,000,000 equal, '
        "2,345,678 most planes</span></td>" in first
    )
    cell = 'shifted <span class="soft">pixels &lt; taps</span>'
    assert f"<td>{cell}; {cell}</td>" in second
    assert "shifted" not in third and "sorted" not in third


def test_where_the_sums_of_norms_are_taken_is_told_with_the_reason(resnet):
    norms = {
        "forward": {"values": {"accelerator": 3, "host": 0, "why": ""}},
        "backward": {"gradients_times_values": {"accelerator": 0, "host": 2, "why": "x < y"}},
    }
    page = with_accelerator(resnet, [{}], norms=norms)
    table = re.search(r'aria-label="Sums of norms".*?</table>', page, re.DOTALL)[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)", row) for row in table.split("<tr>")[1:]]
    assert rows[-2:] == [
        ["forward", "values", "3", "0", ""],
        ["backward", "gradients times values", "0", "2", "x &lt; y"],
    ]
