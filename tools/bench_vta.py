"""How busy VTA's GEMM unit is with ResNet-20's 3x3 convolutions, by the simulator's cycle model.

    python tools/bench_vta.py
    python tools/bench_vta.py --hw pynq-int4 --images 16 --dram-latency 100 --json out.json

Every row is one product of a layer: fprop, dgrad or wgrad, in 4 bits with 4 groups of gradients,
and a batch of the protocol resnet20-cifar10 of tools/accuracy.py: 128 images.
Utilisation is tile operations of GEMM, resets left out, over all cycles of the program; beside it
stands the same product without double buffering: one buffer in each scratchpad, and the tiling that
is best then. MACs is the share of the multipliers' work that is no padding. Every program is
proven to be free of deadlock and portable before it counts. The lines below it are a matrix product
with groups: cycles for exponents that are known at run time alone, and for groups of known length,
and how long the host writes such a program; ReLU and requantisation of the first stage's
accumulators as programs of their own, and its ReLU in the product's program; and for every stage
the sums of channels that a batch norm starts from, in the fprop's program and as one of their own,
and what a norm's deviations would take there: two sums of max(x, t), t a vector over channels.
Nothing here was measured on hardware.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

from sqcompile.backends.vta import hardware, isa
from sqcompile.backends.vta.program import Program, elementwise_program, product_program
from sqcompile.backends.vta.spec import (
    ConvSpec,
    ElementwiseSpec,
    GemmSpec,
    Kind,
    Step,
    Values,
    relu,
    requantize,
)

STAGES = {16: 32, 32: 16, 64: 8}
"""Channels of a stage's layers, and the side of their images."""

SIGNED, UNSIGNED = Values.of(4, signed=True), Values.of(4, signed=False)
OPERANDS: dict[Kind, tuple[Values, Values, int]] = {
    "fprop": (UNSIGNED, SIGNED, 1),
    "dgrad": (SIGNED, SIGNED, 4),
    "wgrad": (SIGNED, UNSIGNED, 4),
}
"""First and second operand, and groups of the first."""


def layer(kind: Kind, channels: int, images: int) -> ConvSpec:
    """One product of a 3x3 layer with as many outputs as inputs."""
    side = STAGES[channels]
    image = (images, side, side, channels)
    weight = (channels, channels, 3, 3)
    return ConvSpec(kind, image, weight, image, (1, 1), (1, 1), (1, 1), 1, *OPERANDS[kind])


def measured(program: Program, latency: int) -> dict[str, Any]:
    """Cycles of a program that passes the checks."""
    program.check()
    cycles = program.cycles(latency)
    gemms = [one for one in program.decoded if isinstance(one, isa.Gemm)]
    operations = sum(one.count for one in gemms if not one.reset)
    chip = program.hardware
    multipliers = chip.batch * chip.block * chip.block
    return {
        "utilisation": operations / cycles.total,
        "macs": program.macs / (operations * multipliers),
        "cycles": cycles.total,
        "busy": {name: busy / cycles.total for name, busy in cycles.busy.items()},
        "instructions": len(program.decoded),
    }


def rows(chip: hardware.Hardware, images: int, latency: int) -> Iterator[dict[str, Any]]:
    """Every layer and product, with and without overlap."""
    for channels in STAGES:
        for kind in OPERANDS:
            spec = layer(kind, channels, images)
            both, alone = (
                measured(product_program(chip, spec, overlap), latency) for overlap in (True, False)
            )
            yield {"channels": channels, "product": kind, "overlap": both, "alone": alone}


SHIFTED = GemmSpec(512, 384, 384, SIGNED, SIGNED, groups=4)
"""A product with as many k in each of its groups."""


def shifts(chip: hardware.Hardware, latency: int) -> dict[str, int]:
    """Cycles of that product, by what is known of its exponents when it is compiled."""
    sorted_groups = replace(SHIFTED, counts=(SHIFTED.k // SHIFTED.groups,) * SHIFTED.groups)
    specs = {"nothing": SHIFTED, "lengths": sorted_groups}
    return {
        known: measured(product_program(chip, spec), latency)["cycles"]
        for known, spec in specs.items()
    }


def writing(chip: hardware.Hardware) -> float:
    """Seconds in which the host writes that program for other groups, once all is warm."""
    first, second, *rest = [SHIFTED.k // SHIFTED.groups] * SHIFTED.groups
    start = time.perf_counter()
    product_program(chip, replace(SHIFTED, counts=(first + 32, second - 32, *rest)))
    return time.perf_counter() - start


def steps(chip: hardware.Hardware, images: int, latency: int) -> dict[str, int]:
    """Cycles of steps behind the first stage's fprop as programs of their own."""
    channels, side = next(iter(STAGES.items()))
    largest = 9 * channels * UNSIGNED.high * SIGNED.high
    found = {}
    for name, what in (("ReLU", relu()), ("requantisation", requantize(7, 0, 15))):
        values = (Values(-largest, largest),)
        spec = ElementwiseSpec(images * side * side, channels, values, (), what)
        program = elementwise_program(chip, spec)
        program.check()
        found[name] = program.cycles(latency).total
    return found


def sums(chip: hardware.Hardware, images: int, latency: int) -> Iterator[dict[str, int]]:
    """Cycles of every stage's fprop alone, with the sums of its channels, of these as a program of
    their own, and of two sums of max(x, t)."""
    for channels, side in STAGES.items():
        spec = layer("fprop", channels, images)
        largest = 9 * channels * UNSIGNED.high * SIGNED.high
        values = Values(-largest, largest)
        apart = ElementwiseSpec(images * side * side, channels, (values,), (), (), sums=True)
        above = replace(apart, vectors=(values,), steps=(Step("max", "vector", 0),))
        programs = {
            "fprop": product_program(chip, spec),
            "together": product_program(chip, replace(spec, sums=True)),
            "sums": elementwise_program(chip, apart),
            "deviations": elementwise_program(chip, above),
        }
        for program in programs.values():
            program.check()
        cycles = {name: one.cycles(latency).total for name, one in programs.items()}
        yield {"channels": channels, **cycles, "deviations": 2 * cycles["deviations"]}


def relus(chip: hardware.Hardware, images: int, latency: int) -> dict[str, int]:
    """Cycles of the first stage's fprop with operands that have no offset, alone and with ReLU."""
    spec = replace(layer("fprop", next(iter(STAGES)), images), first=SIGNED)
    programs = {"fprop": spec, "with ReLU": replace(spec, relu=True)}
    return {
        name: measured(product_program(chip, one), latency)["cycles"]
        for name, one in programs.items()
    }


@click.command(help=__doc__)
@click.option("--hw", default="pynq-out32", show_default=True, metavar="NAME|FILE.json")
@click.option("--images", default=128, show_default=True, help="Of a batch.")
@click.option("--dram-latency", "latency", default=32, show_default=True, help="In cycles.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(hw: str, images: int, latency: int, json_file: Path | None) -> None:
    """Print the table."""
    chip = hardware.get(hw)
    table = Table(
        "layer", "product", "utilisation", "without", "MACs", "cycles", "LOAD", "COMPUTE", "STORE",
        title=f"{chip.name}, {1 << chip.log_bus_width}-bit port, {images} images, "
        f"DRAM answers after {latency} cycles",
    )  # fmt: skip
    found = list(rows(chip, images, latency))
    for row in found:
        side, both = STAGES[row["channels"]], row["overlap"]
        busy = [f"{both['busy'][name]:.0%}" for name in ("LOAD", "COMPUTE", "STORE")]
        table.add_row(
            f"{row['channels']} channels, {side}x{side}",
            row["product"],
            f"{both['utilisation']:.3f}",
            f"{row['alone']['utilisation']:.3f}",
            f"{both['macs']:.0%}",
            f"{both['cycles']:,}",
            *busy,
        )
    Console(width=100).print(table)
    known = shifts(chip, latency)
    told = ", ".join(f"{cycles:,} cycles with {what} known" for what, cycles in known.items())
    print(f"{SHIFTED.m} x {SHIFTED.k} x {SHIFTED.n}, {SHIFTED.groups} groups: {told}")
    seconds, alone = writing(chip), steps(chip, images, latency)
    print(f"written by the host in {seconds * 1e3:.0f} ms")
    told = ", ".join(f"{name} {cycles:,} cycles" for name, cycles in alone.items())
    print(f"accumulators of the first layer: {told}")
    fused = relus(chip, images, latency)
    told = ", ".join(f"{cycles:,} {name}" for name, cycles in fused.items())
    print(f"cycles of the first layer of signed inputs: {told}")
    norms = list(sums(chip, images, latency))
    for row in norms:
        print(
            f"{row['channels']} channels: fprop {row['fprop']:,} cycles, with sums "
            f"{row['together']:,}, apart {row['fprop'] + row['sums']:,}; "
            f"deviations {row['deviations']:,}"
        )
    if json_file:
        result = {"hardware": chip.name, "images": images, "rows": found, "shifts": known}
        result |= {"writing": seconds, "steps": alone, "relus": fused, "sums": norms}
        json_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
