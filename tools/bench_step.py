"""Whole training steps beside PyTorch's: forward, loss, backward and the SGD update.

    python tools/bench_step.py --json out.json
    python tools/bench_step.py --only resnet20 --threads 1 --kernels 20
    python tools/bench_step.py --only resnet20 --recipes w4a4g4,w4a4g4-limited --peers "fp32 eager"

Ours is the compiled step that passed verification, bit for bit, at the start of the run; one for
each recipe, and a row. Peers are fp32 and bf16 autocast, eager and torch.compile, images in both
memory formats. All of them take turns in this process with inputs of their own; the best step
counts, and the ratio is against the best peer. Cross-entropy runs in PyTorch for ours, inside the
compiled function for torch.compile.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import sqcompile  # before torch, so that OpenMP's workers sleep when they wait

# isort: split
import torch
import torch.nn.functional as F
from kernel_peak import Peak, dot_peak
from kernel_timing import keep_memory
from step_models import MODELS, StepModel
from torch import Tensor, nn

from sqcompile.report.products import products
from sqcompile.report.timing import step_kernels
from sqcompile.runtime import threads
from sqcompile.runtime.step import CompiledStep

Step = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One model with a number of threads: best times of a step in ms, ratio = best peer / ours."""

    name: str
    shape: str
    recipe: str
    threads: int
    ours_ms: float
    peers: Mapping[str, float]
    best_peer: str
    ratio: float


@dataclass(frozen=True)
class KernelShare:
    """A kernel's part of a step: ms of all its calls, and of the dot product's peak."""

    kernel: str
    function: str
    calls: int
    milliseconds: float
    share_of_peak: float


def training_step(model: Callable[[Tensor], Tensor], own: nn.Module, loss: "Loss") -> Step:
    """Forward, loss, backward and an SGD update of `own`'s parameters."""
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model).backward()
        optimizer.step()

    return step


Loss = Callable[[Callable[[Tensor], Tensor]], Tensor]


def cross_entropy(x: Tensor, y: Tensor) -> Loss:
    """Mean cross-entropy of a model's logits of x; they may have more than one token axis."""
    return lambda model: F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def peers(model: nn.Module, spec: StepModel, x: Tensor, y: Tensor, only: str) -> dict[str, Step]:
    """A step of PyTorch by its form, e.g. "bf16 compiled channels_last"."""
    found: dict[str, Step] = {}
    for layout in ("", " channels_last") if spec.images else ("",):
        for precision in ("fp32", "bf16"):
            for form in ("eager", "compiled"):
                name = f"{precision} {form}{layout}"
                if only in name:
                    found[name] = _peer(deepcopy(model), x, y, precision, form, layout)
    return found


def _peer(own: nn.Module, x: Tensor, y: Tensor, precision: str, form: str, layout: str) -> Step:
    if layout:
        own, x = own.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def loss(model: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return cross_entropy(x, y)(model)

    if form == "eager":
        return training_step(own, own, loss)
    compiled = torch.compile(lambda: loss(own), dynamic=False)
    return training_step(own, own, lambda _: compiled())


def best_steps(steps: Mapping[str, Step], seconds: float, rounds: int) -> dict[str, float]:
    """The best time of a step in ms, of each: they take turns, after two steps to warm up."""
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
        step()
    end = perf_counter() + seconds
    done = 0
    while done < rounds or perf_counter() < end:
        for name, step in steps.items():
            start = perf_counter()
            step()
            best[name] = min(best[name], (perf_counter() - start) * 1e3)
        done += 1
    return best


def compiled_step(recipe: str, model: nn.Module, x: Tensor) -> CompiledStep:
    """Compile and verify; raises ClickException where a bit differs."""
    step = sqcompile.compile(model, (x,), recipe=recipe)
    found = sqcompile.verify(step, (x,))
    if not found.equal:
        names = ", ".join(row.name for row in found.rows if not row.equal)
        raise click.ClickException(f"verification failed: {names}")
    return step


def shares(step: CompiledStep, peak: Peak, count: int) -> list[KernelShare]:
    """Every kernel of a step, slowest first."""
    variant = step.variants[0]
    assert variant.forward is not None and variant.backward is not None
    macs = {
        f"{which}/{product.node}": product.macs
        for which, graph in (("forward", variant.forward), ("backward", variant.backward))
        for product in products(graph, which)
    }
    work = {
        (record.name, which): sum(
            macs.get(node, 0) for node in record.nodes if node.startswith(which)
        )
        for record in variant.kernels
        for which in ("forward", "backward")
    }
    return [
        KernelShare(
            row.kernel,
            row.function,
            row.calls,
            row.milliseconds,
            2
            * work.get((row.kernel, row.function), 0)
            / row.milliseconds
            / 1e6
            / peak.gops
            / count,
        )
        for row in step_kernels(step, variant)
    ]


def kernel_table(rows: list[KernelShare], most: int) -> Table:
    """The slowest kernels."""
    total = sum(row.milliseconds for row in rows)
    table = Table("kernel", "in", "calls", "ms", "share", "of peak")
    for row in rows[:most]:
        table.add_row(
            row.kernel,
            row.function,
            str(row.calls),
            f"{row.milliseconds:.3f}",
            f"{row.milliseconds / total:.1%}",
            f"{row.share_of_peak:.0%}" if row.share_of_peak else "",
        )
    table.add_row("all", "", "", f"{total:.3f}", "", "")
    return table


def rows_of(
    name: str,
    recipes: list[str],
    counts: list[int],
    seconds: float,
    only: str,
    peak: Peak,
    most: int,
    console: Console,
) -> Iterator[tuple[Row, list[KernelShare]]]:
    """Measure one model by each recipe, with each number of threads."""
    spec = MODELS[name]
    torch.manual_seed(0)
    model = spec.make()
    x, y = spec.batch()
    others = peers(model, spec, x, y, only)
    ours = {}
    for recipe in recipes or [spec.recipe]:
        start = perf_counter()
        ours[recipe] = compiled_step(recipe, deepcopy(model), x)
        took = perf_counter() - start
        console.print(f"{name}, {recipe}: compiled and verified in {took:.1f} s")
    steps = {
        recipe: training_step(step, step, cross_entropy(x, y)) for recipe, step in ours.items()
    }
    for count in counts:
        threads.set_num_threads(count)
        times = best_steps(steps | others, seconds, rounds=5)
        peer_times = {form: times[form] for form in others}
        best = min(peer_times, key=lambda form: peer_times[form]) if others else ""
        for recipe, step in ours.items():
            ratio = times[best] / times[recipe] if best else 0.0
            kernels = shares(step, peak, count)
            console.print(kernel_table(kernels, most) if most else "")
            found = (name, spec.shape, recipe, count, times[recipe], peer_times, best, ratio)
            yield Row(*found), kernels


@click.command(help=__doc__)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE"
)
@click.option("--only", default=",".join(MODELS), show_default=True, metavar="NAME,...")
@click.option("--recipes", default="", metavar="NAME,...", help="In place of the model's own.")
@click.option("--peers", "form", default="", metavar="TEXT", help="Peers whose name has TEXT.")
@click.option("--threads", "counts", default="1,2", show_default=True, metavar="N,...")
@click.option("--seconds", default=20.0, show_default=True, help="For the turns of one row.")
@click.option("--kernels", "most", default=12, show_default=True, help="Show the slowest N.")
def main(
    json_file: Path | None,
    only: str,
    recipes: str,
    form: str,
    counts: str,
    seconds: float,
    most: int,
) -> None:
    """Measure, print a table, and write the rows."""
    for name in only.split(","):
        if name not in MODELS:
            raise click.BadParameter(f"no model '{name}'; there are {', '.join(MODELS)}")
    console = Console(width=140, highlight=False)
    kept = "" if keep_memory() else "; malloc gives memory back, peers pay page faults"
    peak = dot_peak()
    console.print(f"sqcompile {sqcompile.__version__}, torch {torch.__version__}; {peak}{kept}")
    entries = []
    # Every peer recompiles one function; beyond Dynamo's limit, peers would run eagerly.
    with torch._dynamo.config.patch(recompile_limit=64):
        for name in only.split(","):
            numbers = [int(one) for one in counts.split(",")]
            wanted = recipes.split(",") if recipes else []
            found = rows_of(name, wanted, numbers, seconds, form, peak, most, console)
            for row, kernels in found:
                forms = ", ".join(f"{peer} {ms:.1f}" for peer, ms in sorted(row.peers.items()))
                console.print(
                    f"{row.name}  {row.recipe}  {row.threads} thread(s)  "
                    f"ours {row.ours_ms:.1f} ms  {row.ratio:.2f}x {row.best_peer}  ({forms})"
                )
                entries.append(asdict(row) | {"kernels": [asdict(one) for one in kernels]})
            if json_file is not None:
                json_file.write_text(json.dumps(entries, indent=1))


if __name__ == "__main__":
    main()
