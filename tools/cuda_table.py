"""The products of whole training steps as code for GPUs: what ptxas and the disassembler say.

    python tools/cuda_table.py --models resnet20,gpt --write docs/cuda.md

Every kernel of the models of tools/step_models.py is compiled for every architecture; nothing is
run. The table has a row for each product: the launch that multiplies. It fails when a register
spills anywhere, or a product does without the tensor cores.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one

import sqcompile
from sqcompile.backends import targets
from sqcompile.backends.cuda import architectures
from sqcompile.backends.cuda.build import kernel_rows
from sqcompile.backends.cuda.report import is_product
from sqcompile.backends.kernels import KernelSpec
from sqcompile.backends.lower import KernelRecord

# isort: split
from step_models import MODELS

Row = dict[str, Any]
BEGIN = "<!-- written by tools/cuda_table.py -->"
END = "<!-- end -->"
_MATRIX, _DOT = "IMMA", "IDP"


def step_rows(model: str, target: targets.Target) -> list[tuple[KernelRecord, list[Row]]]:
    """Every kernel of a model's step, with the report's rows of it, one an architecture."""
    spec = MODELS[model]
    inputs, _ = spec.batch()
    step = sqcompile.compile(spec.make(), (inputs,), target=target, recipe=spec.recipe)
    (variant,) = step.variants
    rows = kernel_rows(variant.executable.binary, variant.kernels, {})
    return [
        (record, [row for row in rows if row["kernel"] == record.name])
        for record in variant.kernels
        if record.name in {row["kernel"] for row in rows}
    ]


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


def faults(kernels: Sequence[tuple[KernelRecord, list[Row]]]) -> list[str]:
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


def planes(spec: KernelSpec) -> str:
    """Groups of shifts, where there are any."""
    groups = spec.get("shift_groups") or (spec.get("groups") if "matmul" in spec.op else 1)
    return str(groups) if groups and groups > 1 else ""


def table(found: Mapping[str, Sequence[tuple[KernelRecord, list[Row]]]]) -> str:
    """The table in Markdown, and a line about all other kernels."""
    names = [row["architecture"] for _, rows in next(iter(found.values()))[:1] for row in rows]
    lines = [
        f"| step | product | operands | groups | shared memory | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    others, spills = 0, 0
    most = dict.fromkeys(names, 0)
    for model, kernels in found.items():
        for record, rows in kernels:
            spills += sum(one["spill_bytes"] for row in rows for one in row["functions"])
            if not is_product(record.spec):
                others += 1
                for row in rows:
                    used = max(one["registers"] for one in row["functions"])
                    most[row["architecture"]] = max(most[row["architecture"]], used)
                continue
            chosen = [multiplying(row) for row in rows]
            shared = sorted({one["shared"] for one in chosen})
            cells = [
                f"{one['registers']}, {instructions(one)}, {one['occupancy']['share']:.0%}"
                for one in chosen
            ]
            lines.append(
                f"| {model} | `{record.spec.short_name}` | {shape(record.spec)} "
                f"| {planes(record.spec)} | {' / '.join(map(str, shared))} | {' | '.join(cells)} |"
            )
    used = ", ".join(f"{most[name]} on {name}" for name in names)
    lines += ["", f"Bytes of spilled registers in all kernels: {spills}."]
    lines.append(f"The {others} other kernels of these steps have at most {used} registers.")
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """A page with the text between its two marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise click.UsageError(f"the page has no place for the table: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


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
