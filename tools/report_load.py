"""How long a report takes to open in Chromium, and how large it is.

python tools/report_load.py runs/resnet20/report.html
"""

import json
import shutil
from pathlib import Path
from statistics import median
from time import perf_counter

import click
from playwright.sync_api import Browser, sync_playwright

PATIENCE = 120_000
"""Milliseconds until a page that does not become ready is given up."""


@click.command()
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(page: Path, runs: int, json_file: Path | None) -> None:
    """Open PAGE in Debian's Chromium, each time in a fresh context, until its graph is drawn."""
    path = shutil.which("chromium")
    if path is None:
        raise click.ClickException("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        seconds = [opened(browser, page.resolve().as_uri()) for _ in range(runs)]
        browser.close()
    found = {"bytes": page.stat().st_size, "seconds": median(seconds), "slowest": max(seconds)}
    click.echo(
        f"{found['bytes'] / 1e6:.2f} MB, opens in {found['seconds']:.2f} s "
        f"(median of {runs}, slowest {found['slowest']:.2f} s)"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def opened(browser: Browser, address: str) -> float:
    """Seconds from asking for a page until its tables and its graph are there."""
    context = browser.new_context()
    tab = context.new_page()
    begun = perf_counter()
    tab.goto(address, wait_until="commit")
    tab.wait_for_selector("html[data-ready]", state="attached", timeout=PATIENCE)
    taken = perf_counter() - begun
    context.close()
    return taken


if __name__ == "__main__":
    main()
