"""How much every kernel of a product multiplies and moves, and how fast: points of a roofline."""

from collections.abc import Mapping
from math import prod
from typing import Any

from sqcompile.passes.entries import Entry
from sqcompile.report.graphs import Graphs
from sqcompile.report.layers import node_times

_SIZES = {"f32": 4, "f64": 8, "i8": 1, "u8": 1, "i32": 4, "i64": 8, "bool": 1}


def traffic(report: Mapping[str, Any], graphs: Graphs | None) -> list[dict[str, Any]]:
    """Points with kernel, where, measured, intensity (multiply-accumulates a byte of all tensors
    read and written once) and macs_per_s: of the CPU's measured kernels, of CUDA's estimates."""
    return [*_measured(report, graphs), *_estimated(report)]


def _measured(report: Mapping[str, Any], graphs: Graphs | None) -> list[dict[str, Any]]:
    times = node_times(report["timing"], graphs)
    nodes = graphs.compiled() if graphs else {}
    found = []
    for product in report["products"]:
        call = f"{product['pass']}/{product['node']}"
        if call in times and call in nodes and times[call] > 0:
            moved = _bytes(nodes[call], nodes, product["pass"])
            found.append(
                {
                    "kernel": f"{product['node']} ({product['module'] or 'model'})",
                    "where": f"{report['target']} {product['role'] or product['op']}",
                    "measured": True,
                    "intensity": product["macs"] / moved,
                    "macs_per_s": product["macs"] / times[call] * 1e3,
                }
            )
    return found


def estimated_kernels(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the first variant's kernels, which are what the page is about."""
    mode = report["variants"][0]["mode"]
    return [row for row in report["kernels"] if row["mode"] == mode]


def _estimated(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "kernel": row["kernel"],
            "where": row["estimate"]["device"],
            "measured": False,
            "intensity": row["macs"] / row["bytes"],
            "macs_per_s": row["macs"] / row["estimate"]["us"] * 1e6,
        }
        for row in estimated_kernels(report)
        if row["macs"] and row["bytes"]
    ]


def _bytes(node: Entry, nodes: Mapping[str, Entry], pass_: str) -> int:
    read = [nodes[f"{pass_}/{name}"] for name in dict.fromkeys(node.refs)]
    tensors = [tensor for entry in (node, *read) for tensor in entry.outputs]
    return sum(_SIZES[tensor.dtype] * prod(tensor.shape) for tensor in tensors)
