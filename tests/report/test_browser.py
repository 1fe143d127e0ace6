"""The page in Chromium: drawn, chosen, searched, sorted, in the dark, on a small screen."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from sqcompile.passes.pipeline import integer_training
from sqcompile.recipe import Recipe
from sqcompile.report import html
from sqcompile.report.data import read
from sqcompile.report.graphs import texts
from tests.conftest import require_tool

PHONE = {"width": 390, "height": 844}
CLAIMS = Path(__file__).resolve().parents[2] / "runs" / "claims"
PATIENCE = 60_000
"""Milliseconds: the machine may be busy with other things."""
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser():
    path = require_tool("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(run_folder):
    return html.write(read(run_folder), texts(run_folder), run_folder).as_uri()


@pytest.fixture
def opened(browser, address):
    """opened(**options) -> the page, ready; at the end nothing was loaded, nothing complained."""
    contexts, faults = [], []

    def opened(**options):
        contexts.append(browser.new_context(reduced_motion="reduce", **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _told(request.url, address, faults))
        page.goto(address)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def _told(url, address, faults):
    if url != address and not url.startswith(("data:", "blob:")):
        faults.append(url)


def choose_stage(page, number):
    page.locator("#stage").fill(str(number))


def test_a_module_is_opened_and_a_node_tells_all_that_is_known(opened):
    page = opened()
    page.locator(".shape.module", has_text="blocks.0").first.click()
    expect(page.locator("#panel h3")).to_have_text("blocks.0")
    page.locator("#panel").get_by_role("button", name="Open").click()
    expect(page.locator(".box text", has_text="blocks.0").first).to_be_visible()
    page.get_by_role("button", name="Ops").click()
    page.locator("#search").fill("conv_fprop_sums")
    page.locator("#search").press("Enter")
    panel = page.locator("#panel")
    expect(panel.locator("h3")).to_have_text("conv_fprop_sums")
    expect(panel).to_contain_text("self.stem(x)")
    expect(panel).to_contain_text("0.25 ms a call, 2 threads")
    panel.locator("details.listing summary").click()
    expect(panel.locator("pre.code")).to_contain_text("vpdpbusd")
    expect(page.locator(".shape.chosen")).to_have_count(1)


def test_a_gradient_shows_its_groups_and_its_plots(opened):
    page = opened(viewport={"width": 1300, "height": 900})
    page.locator("#search").fill("l1_batch_norm_backward_quantize")
    page.locator("#search").press("Enter")
    panel = page.locator("#panel")
    for text in ("SQNR", "scale", "Channels in each ShiftQuant group"):
        expect(panel).to_contain_text(text)
    assert panel.locator(".bars").count() >= 2
    panel.get_by_role("button", name="Plot channels and errors").first.click()
    for name in ("channels", "bits"):
        expect(page.locator(f'[data-plot="{name}"] .main-svg').first).to_be_visible()
    expect(page.locator('[data-plot="bits"]')).to_contain_text("as compiled")


def test_search_finds_modules_and_jumps_with_the_keyboard(opened):
    page = opened()
    page.keyboard.press("/")
    page.keyboard.type("blocks.1.conv1")
    expect(page.locator("#found li").first).to_contain_text("module")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#search")).to_have_attribute("aria-activedescendant", "found-1")
    page.keyboard.press("Enter")
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator("#panel")).to_contain_text("blocks.1.conv1")
    page.locator("#search").fill("no such thing")
    expect(page.locator("#found")).to_contain_text("nothing in this stage")


def test_the_slider_goes_through_the_passes_and_marks_what_changed(opened):
    page = opened()
    expect(page.locator("#stage-text")).to_contain_text("compiled")
    names = [one.name for one in integer_training(Recipe())]
    choose_stage(page, 1 + names.index("quantize_operands"))  # behind the captured graph
    expect(page.locator("#stage-text")).to_contain_text("quantize_operands")
    expect(page.locator("#panel")).to_contain_text("New:")
    assert page.locator(".shape.added").count() > 0
    page.locator("#earlier").click()
    expect(page.locator("#stage-text")).to_contain_text("fold_weight_scales")
    choose_stage(page, 1)
    expect(page.locator("#panel")).to_contain_text("Changes nothing of this model")
    assert page.locator(".shape.added").count() == 0


def test_keys_move_zoom_and_walk_along_edges(opened):
    page = opened()
    page.locator("#canvas").focus()
    before = page.locator("#world").get_attribute("transform")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    assert page.locator("#world").get_attribute("transform") != before
    page.keyboard.press("Enter")
    first = page.locator("#panel h3").text_content()
    page.keyboard.press("]")
    expect(page.locator("#panel h3")).not_to_have_text(first)
    page.keyboard.press("Escape")
    expect(page.locator(".shape.chosen")).to_have_count(0)


def test_tables_sort_filter_and_lead_to_the_graph(opened):
    page = opened()
    table = page.locator("#layers table")
    head = table.locator("th", has_text="saved")
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = table.locator("tbody td:nth-child(8)").evaluate_all("c => c.map(x => +x.dataset.v)")
    assert values == sorted(values, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator("#layers input").fill("blocks.0.conv2")
    expect(table.locator("tbody tr:visible")).to_have_count(1)
    table.locator("tbody tr:visible button").first.click()
    expect(page.locator("#panel h3")).to_have_text("blocks.0.conv2")


def test_plots_are_drawn_when_they_come_into_view_and_follow_the_theme(opened):
    page = opened(color_scheme="dark")
    assert page.locator(".main-svg").count() == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for name in ("memory", "roofline"):
        page.locator(f'[data-plot="{name}"]').scroll_into_view_if_needed()
        expect(page.locator(f'[data-plot="{name}"] .main-svg').first).to_be_visible()
    ink = "document.querySelector('[data-plot=memory] text').style.fill"
    before = page.evaluate(ink)
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.wait_for_function(f"{ink} !== '{before}'")


def test_a_small_screen_has_everything_and_does_not_scroll_sideways(opened):
    page = opened(viewport=PHONE, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".shape.module").first.tap()
    expect(page.locator("#panel h3")).to_be_visible()
    page.locator("#wide").tap()
    box = page.locator("#explorer").bounding_box()
    assert (box["width"], box["height"]) == (PHONE["width"], PHONE["height"])


def test_controls_have_names_and_contrast(opened):
    page = opened()
    assert page.evaluate(NAMELESS) == []
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        for name in ("ink", "soft", "accent", "good", "bad"):
            assert page.evaluate(CONTRAST, name) >= 4.5, (theme, name)


NAMELESS = """[...document.querySelectorAll("button, input, select")]
  .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length))
  .map((one) => one.outerHTML)"""
CONTRAST = """(name) => {
  const style = getComputedStyle(document.documentElement);
  const light = (colour) => {
    const parts = style.getPropertyValue(`--${colour}`).trim().match(/\\w\\w/g);
    const [r, g, b] = parts.map((hex) => parseInt(hex, 16) / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(name), light("paper")].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.claims
def test_the_report_of_resnet20_opens_at_once():
    """`make claims` has compiled it and measured this."""
    figures = json.loads((CLAIMS / "report-load.json").read_text())
    assert figures["bytes"] < 5e6
    assert figures["seconds"] < 2
