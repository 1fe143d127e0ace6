"""report.html: one page that needs nothing else, from report.json and the graphs' texts."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sqcompile.report import format as shown
from sqcompile.report import text, timeline
from sqcompile.report.data import write_text

HTML = "report.html"


def render(data: dict[str, Any], graphs: dict[str, str]) -> str:
    """The page; `graphs` are the stages' texts by name, in order."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "size": shown.size,
        "big": shown.big,
        "duration": shown.duration,
        "dims": shown.dims,
    }
    template = files("sqcompile.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        data=data,
        graphs=graphs,
        share=shown.share,
        timeline=lambda picture: Markup(timeline.svg(picture)),
        saved_line=text.saved_line(data["saved"]),
        checks=[text.verification_line(result) for result in data["verification"]],
    )


def write(data: dict[str, Any], graphs: dict[str, str], folder: str | Path) -> Path:
    """Write report.html into a run folder; returns its path."""
    return write_text(Path(folder) / HTML, render(data, graphs))
