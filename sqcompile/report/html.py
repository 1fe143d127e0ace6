"""report.html: one page that needs nothing else, from the files of a run folder.

Its parts stand in `page/`: templates, a style sheet and ES modules, which an import map of data
addresses holds, so that the page is one file and the browser links the modules.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sqcompile.report import format as shown
from sqcompile.report import sources, stages, text, timeline
from sqcompile.report.data import write_text
from sqcompile.report.embed import packed, packed_json
from sqcompile.report.figures import figures
from sqcompile.report.graphs import Graphs, texts
from sqcompile.report.graphs import read as read_graphs
from sqcompile.report.layers import kernel_times, layers, node_times
from sqcompile.report.traffic import estimated_kernels

HTML = "report.html"
_FILTERS = {
    "size": shown.size,
    "big": shown.big,
    "duration": shown.duration,
    "dims": shown.dims,
}
_CAPTIONS = {
    "errors": "Signal over quantisation noise of every tensor",
    "memory": "Kept for backward, by layer",
    "time": "Time of kernels, by layer",
    "roofline": "Roofline of the products (of a CPU: a large copy, torch._int_mm)",
    "training": "Training",
}


def write(data: dict[str, Any], graphs: dict[str, str], folder: str | Path) -> Path:
    """Write report.html into a run folder, with its graphs and its kernels' listings where they are
    there; `graphs` are the stages' texts by name, in order. Returns the page's path."""
    path = Path(folder)
    listings = sources.listings(path, data)
    return write_text(path / HTML, render(data, graphs, read_graphs(path, data), listings))


def write_again(data: dict[str, Any], folder: str | Path) -> Path:
    """Write report.html of a run folder that has its graphs as text already."""
    return write(data, texts(Path(folder)), folder)


def render(
    data: dict[str, Any],
    texts: Mapping[str, str],
    graphs: Graphs | None = None,
    listings: Mapping[str, Sequence[sources.Listing]] | None = None,
) -> str:
    """The page; without `graphs` it has tables and texts."""
    template = _environment().get_template("page.html.j2")
    plots = figures(data, graphs)
    threads, times = kernel_times(data["timing"])
    rows = sorted(times.values(), key=lambda row: -row["milliseconds"])
    return template.render(
        data=data,
        graphs=texts,
        sections=_sections(data),
        checks=[
            text.verification_line(one)[len("verified") :].strip() for one in data["verification"]
        ],
        passed=all(one["equal"] for one in data["verification"]),
        step_time=_step_time(data),
        step_error=_step_error(data["tensors"] or []),
        layer_rows=layers(data, graphs),
        timed_kernels=rows,
        kernel_threads=threads,
        kernel_total=sum(row["milliseconds"] for row in rows),
        names=list(plots),
        captions=[(name, _CAPTIONS[name]) for name in plots],
        css=Markup(_part("style.css")),
        blobs=_blobs(data, texts, graphs, plots),
        listings=_script(sources.embedded(listings or {})),
        modules=_script({"imports": _modules()}),
    )


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_part),
    )
    environment.filters |= _FILTERS
    environment.globals |= {
        "share": shown.share,
        "timeline": lambda picture: Markup(timeline.svg(picture)),
    }
    return environment


def _part(name: str) -> str:
    return files("sqcompile.report").joinpath("page", name).read_text(encoding="utf-8")


def _modules() -> dict[str, str]:
    """The page's modules, "report/NAME.js", as data addresses."""
    folder = files("sqcompile.report").joinpath("page")
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".js"))
    encoded = {name: base64.b64encode(_part(name).encode()).decode() for name in names}
    return {
        f"report/{name}": f"data:text/javascript;base64,{code}" for name, code in encoded.items()
    }


def _script(data: Any) -> Markup:
    """JSON that may stand in a script element."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _blobs(
    data: Mapping[str, Any], texts: Mapping[str, str], graphs: Graphs | None, plots: dict[str, Any]
) -> dict[str, str]:
    """What the page's scripts unpack, each when it is needed."""
    found = {"report": packed_json(_facts(data, graphs))}
    if graphs is not None:
        found["graphs"] = packed_json(stages.embedded(graphs, texts, data["stages"]))
    if plots:
        found["figures"] = packed_json(plots)
        found["plotly"] = _plotly()
    return found


def _facts(data: Mapping[str, Any], graphs: Graphs | None) -> dict[str, Any]:
    """What the panel says of a node, and the plots of a tensor."""
    kept = ("target", "products", "saved", "tensors")
    return {
        **{name: data[name] for name in kept},
        "kernels": data["calls"],
        "times": node_times(data["timing"], graphs),
        "threads": kernel_times(data["timing"])[0],
        "programs": {
            row["product"]: row for row in (data["accelerator"] or {}).get("programs", ())
        },
        "estimates": [
            {
                "kernel": row["kernel"],
                "architecture": row["architecture"],
                "device": row["estimate"]["device"],
                "us": row["estimate"]["us"],
                "bound": row["estimate"]["bound"],
            }
            for row in estimated_kernels(data)
        ],
    }


@cache
def _plotly() -> str:
    """plotly.js, packed: it is unpacked when a plot comes into view."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def _sections(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the page can be jumped to."""
    listed = [
        ("graph", "Graph", True),
        ("layers", "Layers", True),
        ("plots", "Plots", True),
        ("training", "Training", data["training"]),
        ("time", "Time", data["timing"]),
        ("products", "Products", True),
        ("tensors", "Tensors", data["tensors"]),
        ("saved", "Saved", True),
        ("accelerator", "Accelerator", data["accelerator"]),
        ("kernels", "Kernels", data["kernels"]),
        ("stages-text", "Stages", True),
    ]
    return [(name, title) for name, title, there in listed if there]


def _step_time(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The step's median, with the most threads, beside PyTorch's."""
    name = data["recipe"]["name"]
    for run in reversed((data["timing"] or {}).get("runs", [])):
        rows = run["rows"]
        ours = rows.get(f"{name} step")
        if ours is not None:
            told = [f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"]
            told += [
                f"{other.removesuffix(' step')} {shown.duration(row['median_ms'])}: "
                f"{row['median_ms'] / ours['median_ms']:.2f}x"
                for other, row in rows.items()
                if other.endswith(" step") and row is not ours
            ]
            return {"median": ours["median_ms"], "text": ", ".join(told)}
    return None


def _step_error(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The median and the least signal over noise."""
    measured = [one for one in tensors if one["sqnr_db"] is not None]
    if not measured:
        return None
    least = min(measured, key=lambda one: one["sqnr_db"])
    return {
        "count": len(measured),
        "median": median(one["sqnr_db"] for one in measured),
        "least": least["sqnr_db"],
        "module": least["module"],
        "kind": least["kind"],
    }
