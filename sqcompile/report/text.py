"""A report in the terminal: rich tables and a few lines."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from sqcompile.report.format import big, dims, duration, share, size


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An unboxed table whose cells stay on one line."""
    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        result.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return result


def summary(data: dict[str, Any]) -> list[str]:
    """What was compiled, how much of it is in integers, and what backward keeps."""
    macs, saved = data["macs"], data["saved"]
    lines = [
        f"recipe     {data['recipe']['name']}, target {data['target']}, seed {data['seed']}, "
        f"inputs {', '.join(data['inputs'])}",
        f"products   {len(data['products'])}, {big(macs['total'])} multiply-accumulates a step, "
        f"{share(macs['integer'], macs['total'])} in integers",
        f"saved      {saved_line(saved)}",
    ]
    if data["kernels"]:
        lines.append(f"kernels    {kernels_line(data['kernels'])}")
    if data["accelerator"]:
        lines.append(f"on target  {accelerator_line(data)}")
    return lines + [verification_line(result) for result in data["verification"]]


def kernels_line(rows: list[dict[str, Any]]) -> str:
    """`12 for sm_80, sm_90: 3 on tensor cores, at most 96 registers, no spills`."""
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    functions = [one for row in rows for one in row["functions"]]
    spilled = sum(one["spill_bytes"] > 0 for one in functions)
    return (
        f"{len({row['kernel'] for row in rows})} for {', '.join(architectures)}: "
        f"{len({row['kernel'] for row in rows if row['tensor_cores']})} on tensor cores, "
        f"at most {max(one['registers'] for one in functions)} registers, "
        f"{f'{spilled} with' if spilled else 'no'} spills"
    )


def accelerator_line(data: dict[str, Any]) -> str:
    """`100 % of multiply-accumulates on pynq: 12.3 k cycles a step (0.1 ms), ...`."""
    macs, known = data["macs"], data["accelerator"]
    return (
        f"{share(macs['on_target'], macs['total'])} of multiply-accumulates on {known['name']}: "
        f"{big(known['cycles'])} cycles a step ({duration(known['milliseconds'])}), "
        f"GEMM at work in {share(known['utilisation'], 1)}, "
        f"{size(sum(known['bytes'].values()))} to and from DRAM"
    )


def saved_line(saved: dict[str, Any]) -> str:
    """`12.3 kB for backward, fp32 PyTorch 87 kB: 7.1x less`."""
    text = f"{size(saved['bytes'])} for backward"
    eager = saved["fp32_eager_bytes"]
    if eager is None:
        return text
    ratio = f": {eager / saved['bytes']:.1f}x less" if 0 < saved["bytes"] < eager else ""
    return f"{text}, fp32 PyTorch {size(eager)}{ratio}"


def verification_line(result: dict[str, Any]) -> str:
    """`verified   PASSED (train): 41 values equal bit for bit`."""
    if result["equal"]:
        what = f"PASSED ({result['mode']}): {result['values']} values equal bit for bit"
    else:
        what = f"FAILED ({result['mode']}): {len(result['different'])} of {result['values']} differ"
    return f"verified   {what}"


def products_table(data: dict[str, Any]) -> Table:
    """Every product: where, what it reads, how large."""
    result = table(
        "module", "role", "op", "operands", "groups", "shapes", "MACs", right=("groups", "MACs")
    )
    for p in data["products"]:
        result.add_row(
            p["module"] or "(model)",
            p["role"],
            p["op"],
            " x ".join(p["operands"]),
            str(p["groups"]),
            " , ".join(dims(shape) for shape in p["shapes"]),
            big(p["macs"]),
            style=None if p["integer"] else "red",
        )
    return result


def saved_table(data: dict[str, Any]) -> Table:
    """Every tensor that forward keeps for backward."""
    result = table("tensor", "module", "dtype", "shape", "size", "packed from", right=("size",))
    for t in data["saved"]["tensors"]:
        result.add_row(
            t["name"], t["module"], t["dtype"], dims(t["shape"]), size(t["bytes"]), t["of"]
        )
    return result


def layers_table(data: dict[str, Any]) -> Table:
    """What every module keeps for backward, beside fp32 PyTorch."""
    result = table("module", "size", "fp32 PyTorch", "less", right=("size", "fp32 PyTorch", "less"))
    for layer in data["saved"]["layers"]:
        ours, eager = layer["bytes"], layer["fp32_eager_bytes"]
        less = f"{eager / ours:.1f}x" if ours and eager else ""
        shown = "" if eager is None else size(eager)
        result.add_row(layer["module"] or "(model)", size(ours), shown, less)
    return result


def stages_table(
    data: dict[str, Any], changes: Mapping[str, Mapping[str, int]] | None = None
) -> Table:
    """Every pass: time, how many nodes the graph had after it, and how many of them it `changes`
    (by the stage's name and what happened to them)."""
    kinds = list(dict.fromkeys(kind for counts in (changes or {}).values() for kind in counts))
    result = table("stage", "time", "nodes", *kinds, right=("time", "nodes", *kinds))
    for stage in data["stages"]:
        spent = duration(stage["milliseconds"]) if stage["milliseconds"] else ""
        counts = (changes or {}).get(stage["name"], {})
        idle = bool(counts) and not any(counts.values())
        cells = [str(counts.get(kind) or "") for kind in kinds]
        result.add_row(
            stage["name"], spent, str(stage["nodes"]), *cells, style="dim" if idle else None
        )
    return result


def timing_table(timing: dict[str, Any]) -> Table:
    """Median and spread of every measured part, by number of threads."""
    result = table(
        "threads", "what", "median", "p10", "p90", "runs", right=("median", "p10", "p90", "runs")
    )
    for run in timing["runs"]:
        for name, row in run["rows"].items():
            result.add_row(
                str(run["threads"]),
                name,
                duration(row["median_ms"]),
                duration(row["p10_ms"]),
                duration(row["p90_ms"]),
                str(row["runs"]),
            )
    return result


def kernels_table(timing: dict[str, Any], most: int) -> Table:
    """The slowest kernels by number of threads, with their share of all kernels' time."""
    result = table(
        "threads", "kernel", "in", "calls", "time", "share", right=("calls", "time", "share")
    )
    for run in timing["runs"]:
        total = sum(row["milliseconds"] for row in run["kernels"])
        for row in run["kernels"][:most]:
            result.add_row(
                str(run["threads"]),
                row["kernel"],
                row["function"],
                str(row["calls"]),
                duration(row["milliseconds"]),
                share(row["milliseconds"], total),
            )
    return result


def training_table(training: dict[str, Any]) -> Table:
    """Loss and accuracy an epoch, the integer run beside fp32 when there is one."""
    names = list(training["runs"])
    columns = [f"{name} {what}" for name in names for what in ("loss", "accuracy")]
    result = table("epoch", *columns, right=("epoch", *columns))
    for epoch in range(training["epochs"]):
        cells = []
        for name in names:
            run = training["runs"][name]["epochs"][epoch]
            accuracy = run["accuracy"]
            cells += [f"{run['loss']:.4f}", "" if accuracy is None else f"{100 * accuracy:.2f} %"]
        result.add_row(str(epoch + 1), *cells)
    return result
