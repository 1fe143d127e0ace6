"""The products of whole training steps as code for GPUs: what ptxas and the disassembler say.

    python tools/cuda_table.py --models resnet20,gpt --write docs/cuda.md

The products of models of tools/step_models.py are compiled for every architecture; nothing is
run. The table has a row for each: the launch that multiplies. It fails when a register spills in
any launch, or a product does without the tensor cores.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one

from sqcompile import api
from sqcompile.backends import targets
from sqcompile.backends.cuda import architectures, sass
from sqcompile.backends.cuda.nvrtc import compile_all
from sqcompile.backends.cuda.report import Code, is_product, kernel_row
from sqcompile.backends.cuda.split import split
from sqcompile.backends.fusion import Plan
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.lower import KernelRecord
from sqcompile.recipe import Recipe

# isort: split
from step_models import MODELS

Row = dict[str, Any]
BEGIN = "<!-- written by tools/cuda_table.py -->"
END = "<!-- end -->"
_MATRIX, _DOT = "IMMA", "IDP"


Products = list[tuple[KernelRecord, list[Row]]]
"""Every product of a step, with the report's rows of it, one an architecture."""


def products(model: str, target: targets.Target) -> list[KernelRecord]:
    """The different products of a model's training step."""
    spec = MODELS[model]
    inputs, _ = spec.batch()
    parts = api.rewrite(spec.make().train(), (inputs,), {}, Recipe.load(spec.recipe)).parts
    found: dict[KernelSpec, KernelRecord] = {}
    for graph in (parts.forward, parts.backward):
        assert graph is not None
        for one, _ in Plan(graph.graph, target.kernels).specs.values():
            if is_product(one):
                found.setdefault(one, KernelRecord(f"product_{len(found)}", one.op, one))
    return list(found.values())


def step_rows(model: str, target: targets.Target) -> Products:
    """The products of a model's step as code for every architecture of a target."""
    records = products(model, target)
    rows: dict[str, list[Row]] = {record.name: [] for record in records}
    for machine in target.machines():
        for record, row in _rows(records, machine):
            rows[record.name].append(row)
    return [(record, rows[record.name]) for record in records]


def _rows(
    records: list[KernelRecord], machine: targets.Target
) -> Iterator[tuple[KernelRecord, Row]]:
    (architecture,) = architectures.parse(machine.arch)
    parts = {}
    with machine.compiled_for() as on:
        for record in records:
            function = machine.kernels[record.op].generate(record.spec)
            parts[record.name] = split(
                record.name, function.with_attr("global_symbol", record.name), on
            )
    sources = {name: part.source for name, part in parts.items()}
    compiled = {name: code for (name, _), code in compile_all(sources, [architecture]).items()}
    listed = sass.disassemble(
        {name: one.cubin for name, one in compiled.items()}, architecture.name
    )
    for record in records:
        part, made = parts[record.name], compiled[record.name]
        told = {
            "launches": [asdict(one) for one in part.launches],
            "workspaces": list(part.workspaces),
        }
        code = Code(made.source, made.ptx, made.usage, sass.instructions(listed[record.name]))
        yield record, kernel_row(architecture, record, told, code)


def multiplying(row: Row) -> Row:
    """The launch of a product that multiplies: the one with most shared memory of those that have
    products, or, where none has, the one with most registers."""
    return max(
        row["functions"],
        key=lambda one: (products_of(one) > 0, one["shared"], one["registers"]),
    )


def products_of(function: Row) -> int:
    """Instructions that multiply integers, by matrix or by four."""
    return sum(
        count
        for name, count in function["instructions"].items()
        if name.startswith((_MATRIX, _DOT))
    )


def instructions(function: Row) -> str:
    """Those instructions by kind: "16 IMMA"."""
    found = {
        kind: sum(n for name, n in function["instructions"].items() if name.startswith(kind))
        for kind in (_MATRIX, _DOT)
    }
    return ", ".join(f"{count} {kind}" for kind, count in found.items() if count) or "none"


def faults(kernels: Products) -> list[str]:
    """What must not be, of any kernel."""
    return [
        f"{row['architecture']} {record.name}: {fault}"
        for record, rows in kernels
        for row in rows
        for fault in row["faults"]
    ]


def shape(spec: KernelSpec) -> str:
    """The operands of a product in short: "128x32x32x3, 16x3x3x3"."""
    tensors = [tensor for _, tensor in spec.tensors()][:2]
    return ", ".join("x".join(map(str, one.shape)) for one in tensors)


def groups(spec: KernelSpec) -> str:
    """The number of group shifts, where there are any."""
    count = spec.get("groups") if "matmul" in spec.op else spec.get("shift_groups", 1)
    return str(count) if count > 1 else ""


def table(found: Mapping[str, Products]) -> str:
    """The table in Markdown, and what spills."""
    names = [row["architecture"] for _, rows in next(iter(found.values()))[:1] for row in rows]
    lines = [
        f"| step | product | operands | groups | shared memory | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    spills = 0
    for model, kernels in found.items():
        for record, rows in kernels:
            spills += sum(one["spill_bytes"] for row in rows for one in row["functions"])
            chosen = [multiplying(row) for row in rows]
            shared = sorted({one["shared"] for one in chosen})
            cells = [
                f"{one['registers']}, {instructions(one)}, {one['occupancy']['share']:.0%}"
                for one in chosen
            ]
            lines.append(
                f"| {model} | `{record.spec.short_name}` | {shape(record.spec)} "
                f"| {groups(record.spec)} | {' / '.join(map(str, shared))} | {' | '.join(cells)} |"
            )
    lines = list(dict.fromkeys(lines))  # products that differ in their epilogues alone
    lines += ["", f"Bytes of registers that spill in any launch of these kernels: {spills}."]
    return "\n".join(lines)


def written(page: str, text: str, begin: str = BEGIN) -> str:
    """A page with the text between its two marks."""
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise click.UsageError(f"the page has no place for the table: {begin} ... {END}")
    return f"{before}{begin}\n\n{text}\n\n{END}{after}"


@click.command()
@click.option("--models", default="resnet20,gpt", show_default=True, help="Of step_models.py.")
@click.option("--arch", default=architectures.DEFAULT, show_default=True)
@click.option("--int4", is_flag=True, help="With matrix instructions of 4 bits.")
@click.option("--write", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(models: str, arch: str, int4: bool, write: Path | None) -> None:
    """Print the table, or write it into a page."""
    target = targets.get("cuda", arch=arch, int4=int4)
    found = {model: step_rows(model, target) for model in models.split(",")}
    text = table(found)
    if write is None:
        print(text)
    else:
        write.write_text(written(write.read_text(), text))
    wrong = [line for kernels in found.values() for line in faults(kernels)]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
