"""One row a module: products, bits, memory, errors and time of a step, side by side."""

from collections.abc import Mapping
from typing import Any

from sqcompile.report.graphs import Graphs

Row = dict[str, Any]


def kernel_times(timing: Mapping[str, Any] | None) -> tuple[int, dict[str, Row]]:
    """(threads, {"forward/kernel": row}) of the last run that timed kernels; (0, {}) without."""
    for run in reversed((timing or {}).get("runs", [])):
        if run.get("kernels"):
            return run["threads"], {f"{r['function']}/{r['kernel']}": r for r in run["kernels"]}
    return 0, {}


def node_times(timing: Mapping[str, Any] | None, graphs: Graphs | None) -> dict[str, float]:
    """Milliseconds of each call by its first node ("forward/mm_1"): a kernel's calls are equal."""
    found: dict[str, float] = {}
    _, times = kernel_times(timing)
    for kernel, calls in (graphs.calls if graphs else {}).items():
        for call in calls:
            row = times.get(f"{call.partition('/')[0]}/{kernel}")
            if row is not None:
                found[call.partition("+")[0]] = row["milliseconds"] / max(row["calls"], 1)
    return found


def layers(report: Mapping[str, Any], graphs: Graphs | None) -> list[Row]:
    """Rows of modules in the order of forward; None where something was not measured.

    weight, activation, gradient: the operands' bits as text; forward_macs, backward_macs; bytes,
    fp32_bytes: saved; sqnr: the least, in decibels, of what the module quantises, with `worst`, the
    tensor it is of; forward_ms, backward_ms: of kernels.
    """
    rows: dict[str, Row] = {}
    for product in report["products"]:
        _add_product(_row(rows, product["module"]), product)
    for layer in report["saved"]["layers"]:
        row = _row(rows, layer["module"])
        row["bytes"], row["fp32_bytes"] = layer["bytes"], layer["fp32_eager_bytes"]
    for tensor in report["tensors"] or ():
        row, loss = _row(rows, tensor["module"]), tensor["sqnr_db"]
        if loss is not None and (row["sqnr"] is None or loss < row["sqnr"]):
            row["sqnr"], row["worst"] = loss, tensor["name"]
    nodes = graphs.compiled() if graphs else {}
    for call, milliseconds in node_times(report["timing"], graphs).items():
        name = f"{call.partition('/')[0]}_ms"
        row = _row(rows, nodes[call].module if call in nodes else "")
        row[name] = (row[name] or 0) + milliseconds
    return list(rows.values())


def _row(rows: dict[str, Row], module: str) -> Row:
    empty = {"products": 0, "groups": 1, "forward_macs": 0, "backward_macs": 0, "bytes": 0}
    unknown = ("weight", "activation", "gradient", "fp32_bytes", "sqnr", "worst")
    times = ("forward_ms", "backward_ms")
    fresh = {"module": module, **empty, **dict.fromkeys((*unknown, *times))}
    return rows.setdefault(module, fresh)


def _add_product(row: Row, product: Mapping[str, Any]) -> None:
    row["products"] += 1
    row[f"{product['pass']}_macs"] += product["macs"]
    row["groups"] = max(row["groups"], product["groups"])
    if product["role"] == "fprop":
        row["activation"], row["weight"] = product["operands"]
    elif product["role"]:
        row["gradient"] = product["operands"][0]
