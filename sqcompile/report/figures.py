"""The plots of a page as plotly's plain data: {"data": traces, "layout": axes}, without colours.

Colours are names ("product", "soft") that the page gives its own for light and dark.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqcompile.report.graphs import Graphs
from sqcompile.report.layers import kernel_times, layers
from sqcompile.report.traffic import traffic

Figure = dict[str, Any]
MOST_LAYERS = 60
"""Bars of a plot by layer."""


def figures(report: Mapping[str, Any], graphs: Graphs | None) -> dict[str, Figure]:
    """Every plot that there is data for, by its name."""
    found = {
        "errors": _errors(report["tensors"] or []),
        "memory": _memory(report),
        "time": _time(report, graphs),
        "roofline": _roofline(report, graphs),
        "training": _training(report["training"]),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}, **more}


def _errors(tensors: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The signal-to-noise ratio of every quantised tensor, in the step's order, by kind."""
    measured = [t for t in tensors if t["sqnr_db"] is not None]
    if not measured:
        return None
    traces = []
    for kind in dict.fromkeys(t["kind"] for t in measured):
        chosen = [(n, t) for n, t in enumerate(measured) if t["kind"] == kind]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": kind,
                "x": [n for n, _ in chosen],
                "y": [t["sqnr_db"] for _, t in chosen],
                "text": [
                    f"{t['name']}<br>{t['module'] or '(model)'}, {t['bits']} bit, "
                    f"{t['groups']} groups"
                    for _, t in chosen
                ],  # fmt: skip
                "customdata": [t["name"] for _, t in chosen],
                "hovertemplate": "%{text}<br>%{y:.1f} dB<extra></extra>",
            }
        )
    return {"data": traces, "layout": _axes("tensors in the step's order", "SQNR (dB)")}


def _memory(report: Mapping[str, Any]) -> Figure | None:
    """Bytes kept for backward by layer, beside fp32's; the largest layers."""
    rows = [r for r in report["saved"]["layers"] if r["bytes"] or r["fp32_eager_bytes"]]
    if not rows:
        return None
    largest = sorted(rows, key=lambda r: -max(r["bytes"], r["fp32_eager_bytes"] or 0))
    kept = [r for r in rows if r in largest[:MOST_LAYERS]]
    names = [r["module"] or "(model)" for r in kept]
    traces = [_bars(report["recipe"]["name"], names, [r["bytes"] for r in kept], "product")]
    if report["saved"]["fp32_eager_bytes"] is not None:
        fp32 = [r["fp32_eager_bytes"] for r in kept]
        traces.insert(0, _bars("fp32 PyTorch", names, fp32, "soft"))
    layout = _axes("", "bytes kept for backward", barmode="group")
    layout["yaxis"] |= {"tickformat": "~s", "ticksuffix": "B"}
    return {"data": traces, "layout": layout}


def _bars(name: str, x: list[str], y: list[float], colour: str) -> dict[str, Any]:
    return {"type": "bar", "name": name, "x": x, "y": y, "marker": {"color": colour}}


def _time(report: Mapping[str, Any], graphs: Graphs | None) -> Figure | None:
    """Milliseconds of kernels by layer, forward and backward on each other."""
    rows = [r for r in layers(report, graphs) if r["forward_ms"] or r["backward_ms"]]
    if not rows:
        return None
    rows.sort(key=lambda r: -((r["forward_ms"] or 0) + (r["backward_ms"] or 0)))
    names = [r["module"] or "(model)" for r in rows[:MOST_LAYERS]]
    traces = [
        _bars(name, names, [r[f"{name}_ms"] or 0 for r in rows[:MOST_LAYERS]], colour)
        for name, colour in (("forward", "product"), ("backward", "quantise"))
    ]
    threads, _ = kernel_times(report["timing"])
    title = f"milliseconds a step, {threads} thread{'s' if threads > 1 else ''}"
    return {"data": traces, "layout": _axes("", title, barmode="stack")}


def _roofline(report: Mapping[str, Any], graphs: Graphs | None) -> Figure | None:
    """Kernels of products: multiply-accumulates a second against those a byte moved."""
    points = traffic(report, graphs)
    if not points:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"{name}, {'measured' if measured else 'estimated'}",
            "x": [p["intensity"] for p in chosen],
            "y": [p["macs_per_s"] / 1e9 for p in chosen],
            "text": [p["kernel"] for p in chosen],
            "hovertemplate": "%{text}<br>%{x:.1f} MAC/byte<br>%{y:.3g} GMAC/s<extra></extra>",
        }
        for name, measured in dict.fromkeys((p["where"], p["measured"]) for p in points)
        if (chosen := [p for p in points if p["where"] == name])
    ]
    roofs = (report["timing"] or {}).get("roofs")
    if roofs:
        traces.append(_roof(roofs, [p["intensity"] for p in points]))
    layout = _axes("multiply-accumulates a byte", "GMAC/s")
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    return {"data": traces, "layout": layout}


def _roof(roofs: Mapping[str, float], intensities: Sequence[float]) -> dict[str, Any]:
    ridge = roofs["macs_per_s"] / roofs["bytes_per_s"]
    ends = [min([*intensities, ridge / 10]), ridge, max([*intensities, ridge * 10])]
    heights = [min(x * roofs["bytes_per_s"], roofs["macs_per_s"]) / 1e9 for x in ends]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "roof, measured",
        "x": ends,
        "y": heights,
        "line": {"color": "soft", "dash": "dot"},
        "hoverinfo": "skip",
    }


def _training(training: Mapping[str, Any] | None) -> Figure | None:
    """The loss of every run by epoch, and the accuracy where it is known."""
    if not training:
        return None
    traces: list[dict[str, Any]] = []
    for name, run in training["runs"].items():
        epochs = list(range(1, len(run["epochs"]) + 1))
        base = {"type": "scatter", "mode": "lines+markers", "x": epochs, "legendgroup": name}
        traces.append({**base, "name": f"{name} loss", "y": [e["loss"] for e in run["epochs"]]})
        accuracies = [e["accuracy"] for e in run["epochs"]]
        if None not in accuracies:
            more = {"yaxis": "y2", "line": {"dash": "dot"}}
            traces.append({**base, "name": f"{name} accuracy", "y": accuracies, **more})
    layout = _axes("epoch", "loss")
    layout["yaxis2"] = {
        "title": {"text": "accuracy"},
        "overlaying": "y",
        "side": "right",
        "tickformat": ".0%",
        "showgrid": False,
    }
    return {"data": traces, "layout": layout}
