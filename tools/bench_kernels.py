"""Compiled CPU kernels beside what a PyTorch user would run instead.

    python tools/bench_kernels.py --json out.json
    python tools/bench_kernels.py --only gemm,conv_fprop --threads 1

Every row runs ours and its peers in turns in this process and takes the best of several rounds.
A peer counts in its fastest form (memory format, eager or compiled). The geometric mean of each
family and peer stands at the end, and the share of the measured peak of the dot product.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile  # before torch, so that OpenMP's workers sleep when they wait

# isort: split
from kernel_peak import dot_peak
from kernel_timing import MADE, Comparison, Row, compile_seconds, keep_memory, measure

from sqcompile.runtime import threads

FAMILIES = {
    "gemm": "kernels_gemm",
    "shift_gemm": "kernels_gemm",
    "gemm_bmm": "kernels_bmm",
    "quantize_gemm": "kernels_quantize_gemm",
    "quantize": "kernels_quantize",
    "conv_fprop": "kernels_conv",
    "conv_dgrad": "kernels_conv",
    "conv_wgrad": "kernels_conv",
    "l1_batch_norm": "kernels_norm",
    "l1_layer_norm": "kernels_norm",
    "l1_group_norm": "kernels_norm",
    "elementwise": "kernels_elementwise",
    "ordered_sum": "kernels_elementwise",
    "pool": "kernels_elementwise",
    "copy": "kernels_elementwise",
}
"""The module that has a family's comparisons: `comparisons(family)` yields them."""


def rows_of(families: Sequence[str], counts: Sequence[int], rounds: int) -> Iterator[Row]:
    """Every comparison of the families, measured with each number of threads."""
    for family in families:
        found: Iterator[Comparison] = import_module(FAMILIES[family]).comparisons(family)
        for comparison in found:
            for count in counts:
                yield from measure(comparison, count, rounds)


def _chosen(_: click.Context, __: click.Parameter, value: str | None) -> list[str]:
    names = list(FAMILIES) if value is None else value.split(",")
    for name in names:
        if name not in FAMILIES:
            raise click.BadParameter(f"no family '{name}'; there are {', '.join(FAMILIES)}")
    return names


@click.command(help=__doc__)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE"
)
@click.option("--only", callback=_chosen, metavar="FAMILY,...", help=", ".join(FAMILIES))
@click.option("--threads", "counts", default="1,2", show_default=True, metavar="N,...")
@click.option("--rounds", default=8, show_default=True, help="Turns; the best one counts.")
@click.option("--compile-times", is_flag=True, help="Compile every kernel once more, alone.")
def main(
    json_file: Path | None, only: list[str], counts: str, rounds: int, compile_times: bool
) -> None:
    """Measure, print a table, and write the rows."""
    numbers = [int(one) for one in counts.split(",")]
    kept = "" if keep_memory() else "; malloc gives memory back, peers pay page faults"
    peak = dot_peak()
    measured: list[Row] = []
    console = Console(width=140, highlight=False)
    console.print(f"sqcompile {sqcompile.__version__}; {peak}{kept}")
    for row in rows_of(only, numbers, rounds):
        measured.append(row)
        share = row.operations / row.ours / 1e6 / peak.gops / row.threads
        at = f"{share:6.0%} of peak" if row.operations else ""
        console.print(
            f"{row.name:14} {row.shape:34} {row.threads} thread(s) {row.ours:9.3f} ms  "
            f"{row.peer_name + ' ' + row.peer_form:24} {row.peer:9.3f} ms  {row.ratio:5.2f}x {at}"
        )
    console.print(_means(measured))
    if compile_times:
        console.print(_compile_times())
    if json_file is not None:
        json_file.write_text(json.dumps([_entry(row, peak.gops) for row in measured], indent=1))
    threads.set_num_threads(max(numbers))


def _entry(row: Row, gops: float) -> dict[str, object]:
    entry = asdict(row) | {"peer": row.peer, "unit": "ms"}
    if row.operations:
        entry["share_of_peak"] = row.operations / row.ours / 1e6 / gops / row.threads
    return entry


def _compile_times() -> Table:
    times = sorted(((compile_seconds(one), one) for one in MADE.values()), key=lambda p: -p[0])
    table = Table("kernel", "seconds", title=f"the slowest of {len(times)} kernels to compile")
    for seconds, record in times[:10]:
        operands = ", ".join(str(one) for _, one in record.spec.tensors())
        table.add_row(f"{record.op} {operands}", f"{seconds:.2f}")
    return table


def _means(measured: Sequence[Row]) -> Table:
    table = Table(
        "family", "threads", "peer", "rows", "geometric mean", "lowest", title="peer / ours"
    )

    def key(row: Row) -> tuple[str, int, str]:
        return row.name, row.threads, row.peer_name

    for (name, count, peer), group in groupby(sorted(measured, key=key), key=key):
        ratios = [row.ratio for row in group]
        mean = f"{geometric_mean(ratios):.2f}x"
        table.add_row(name, str(count), peer, str(len(ratios)), mean, f"{min(ratios):.2f}x")
    return table


if __name__ == "__main__":
    main()
