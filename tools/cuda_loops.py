"""The loop of weight gradients as machine code: instructions of bytes beside those of nibbles.

    python tools/cuda_loops.py --write docs/kernels-cuda.md

The weight gradients of a model of tools/step_models.py are compiled with and without `--int4`;
nothing is run. What a thread executes to multiply 128 pixels is counted in the loop over tiles: two
rounds of it with bytes, one with nibbles. Those that stay in bytes are left out.
"""

import sys
from collections import Counter
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one

from sqcompile.backends import targets
from sqcompile.backends.cuda import architectures, sass
from sqcompile.backends.cuda.gemm_shift import BYTE, NIBBLE
from sqcompile.backends.cuda.nvrtc import compile_all
from sqcompile.backends.cuda.split import split
from sqcompile.backends.lower import KernelRecord

# isort: split
from cuda_table import groups, products, shape, written

BEGIN = "<!-- written by tools/cuda_loops.py -->"
_SHOWN = ("IMMA", "LDSM", "LDG", "STS", "PRMT")
_OF_NIBBLES = ("IMMA.16864", "IMMA.8832")
Loops = dict[str, Counter[str]]
"""Instructions of a loop, by the product's name."""


def weight_gradients(model: str, target: targets.Target) -> list[KernelRecord]:
    """Those of a model's training step."""
    return [one for one in products(model, target) if "conv_wgrad" in one.op]


def loops(records: list[KernelRecord], arch: str, int4: bool) -> Loops:
    """The loop of every product on one architecture, an entry for each instruction."""
    target = targets.get("cuda", arch=arch, int4=int4)
    with target.compiled_for() as on:
        parts = {}
        for record in records:
            function = target.kernels[record.op].generate(record.spec)
            symbol = function.with_attr("global_symbol", record.name)
            parts[record.name] = split(record.name, symbol, on)
    sources = {name: part.source for name, part in parts.items()}
    compiled = compile_all(sources, [architectures.get(arch)])
    texts = sass.disassemble({name: code.cubin for (name, _), code in compiled.items()}, arch)
    found = {}
    for name, text in texts.items():
        (found[name],) = sass.tensor_loops(text).values()
    return found


def cell(found: Counter[str], rounds: int) -> str:
    """A loop in short, `rounds` times: "618: 32 IMMA, 16 LDSM"."""
    mixed: Counter[str] = Counter()
    for name, count in found.items():
        mixed[name.partition(".")[0]] += count * rounds
    counts = ", ".join(f"{mixed[name]} {name}" for name in _SHOWN)
    return f"{mixed.total()}: {counts}"


def table(records: list[KernelRecord], names: list[str]) -> str:
    """The table in Markdown."""
    heads = [f"{name} {kind}" for name in names for kind in ("bytes", "nibbles")]
    lines = [
        f"| gradient, input | groups | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    found = [(loops(records, name, False), loops(records, name, True)) for name in names]
    for record in records:
        cells = []
        for of_bytes, of_nibbles in found:
            if any(one.startswith(_OF_NIBBLES) for one in of_nibbles[record.name]):
                cells += [cell(of_bytes[record.name], BYTE // NIBBLE)]
                cells += [cell(of_nibbles[record.name], 1)]
        if cells:
            lines.append(f"| {shape(record.spec)} | {groups(record.spec)} | {' | '.join(cells)} |")
    return "\n".join(dict.fromkeys(lines))


@click.command()
@click.option("--model", default="resnet20", show_default=True, help="Of step_models.py.")
@click.option("--arch", default="sm_75,sm_80", show_default=True)
@click.option("--write", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(model: str, arch: str, write: Path | None) -> None:
    """Print the table, or write it into a page."""
    text = table(weight_gradients(model, targets.get("cuda", arch=arch)), arch.split(","))
    if write is None:
        print(text)
    else:
        write.write_text(written(write.read_text(), text, BEGIN))


if __name__ == "__main__":
    main()
