"""What a new user waits for: docs/getting-started.md in an empty folder, step by step.

    python tools/first_five_minutes.py

makes an environment, installs this checkout with pip, writes the page's model.py, runs the page's
first sqcompile command with an empty build cache, and opens the report in headless Chromium. It
prints the seconds of each step, and the processor's seconds, which other work on the machine does
not lengthen. Fails when a step fails, or the report does not show the backward graph.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import click

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "getting-started.md"
MODEL = re.compile(r'^```python title="model.py"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```\n(sqcompile model\.py .*)$", re.MULTILINE)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAUNCHED = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000")


class Watch:
    """Steps with the seconds that they took, of the clock and of processors."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        start, used = perf_counter(), _processor()
        yield
        self.steps[name] = perf_counter() - start, _processor() - used
        click.echo(f"{name:<34}{self.steps[name][0]:8.1f} s{self.steps[name][1]:10.1f} s of CPU")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def from_page() -> tuple[str, list[str]]:
    """The page's model file, and its first command."""
    text = PAGE.read_text(encoding="utf-8")
    model, command = MODEL.search(text), COMMAND.search(text)
    assert model is not None and command is not None
    return model[1], shlex.split(command[1])


def runner(folder: Path) -> Callable[..., str]:
    """What runs a command in the folder, without this process's packages -> its output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["SQCOMPILE_CACHE_DIR"] = str(folder / "cache")

    def run(*words: str | Path) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise click.ClickException(f"{words[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    return run


@click.command(help=__doc__)
@click.option("--python", default="python3.11", show_default=True, help="Makes the environment.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Also write the seconds here.")
def main(python: str, out: str | None) -> None:
    """Follow the page."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise click.ClickException(f"no browser: install one of {', '.join(BROWSERS)}")
    model, command = from_page()
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="first-") as made:
        folder = Path(made)
        run, scripts = runner(folder), folder / ".venv" / "bin"
        with watch.step(f"{python} -m venv"):
            run(python, "-m", "venv", ".venv")
        with watch.step("pip install"):
            run(scripts / "pip", "install", "--quiet", ROOT)
        (folder / "model.py").write_text(model, encoding="utf-8")
        with watch.step(shlex.join(command)):
            run(scripts / command[0], *command[1:])
        report = folder / "runs" / "mine" / "report.html"
        with watch.step("the report in the browser"):
            shown = run(browser, *LAUNCHED, "--dump-dom", report.as_uri())
        if "conv_dgrad" not in shown:
            raise click.ClickException("the report does not show the backward graph")
    waited = sum(seconds for name, (seconds, _) in watch.steps.items() if name != "pip install")
    click.echo(f"all but pip: {waited:.1f} s; report.html shown")
    if out:
        Path(out).write_text(json.dumps(watch.steps, indent=1) + "\n")


if __name__ == "__main__":
    main()
