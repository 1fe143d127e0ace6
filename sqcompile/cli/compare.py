"""sqcompile compare: where two runs of one step part, and which quantisation costs most."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from sqcompile.debug.difference import NodeApart
    from sqcompile.debug.layers import Values
    from sqcompile.debug.sides import Subject
    from sqcompile.recipe import Recipe


def _words(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    return value.split(",") if value else []


@click.command(
    short_help="Find where two runs of a step differ, and which quantisation costs most.",
    epilog="Exit code 6: --targets found a kernel that differs from the reference graph.",
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@click.option(
    "--recipes",
    metavar="X,Y",
    callback=_words,
    help="Of a model file: compare two recipes, or fp32 (PyTorch) or float (the step before it is "
    "quantised) with one.  [default: fp32,w4a4g4]",
)
@click.option(
    "--targets",
    metavar="NAME,...",
    callback=_words,
    help="Of a model file: hold every kernel of these targets (cpu, vta) against the reference "
    "graph, node by node, with the last of --recipes.",
)
@click.option(
    "--bisect",
    is_flag=True,
    help="Raise one layer's weights, activations or gradients to 8 bits at a time, and find which "
    "cost most; propose rules and measure them.",
)
@click.option(
    "--rules",
    "most",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Changes that --bisect proposes, at most.",
)
@click.option(
    "-o",
    "--output",
    "written",
    metavar="FILE.json",
    help="Write the proposed recipe, for --recipe.",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Only the first so many rows of the batch: faster.  [default: all]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@options.common
@click.pass_obj
def command(
    output: Output,
    first: str,
    second: str | None,
    recipes: list[str],
    targets: list[str],
    bisect: bool,
    most: int,
    written: str | None,
    rows: int | None,
    seed: int,
) -> None:
    """Run one training step on both sides, with the same batch and draws, and compare layer by
    layer: forward outputs, input gradients, parameter gradients.

    A and B are run folders, or B is a recipe, fp32 or float, with A's weights. Or A is a model file
    alone, with --recipes or --targets. The model file, of which a folder keeps the path, is
    executed. The batch is the first of data(), with loss(), else example_inputs() and drawn
    gradients. Values come from the reference graphs, which kernels match bit for bit; --targets
    checks that they do.

    \b
      sqcompile compare runs/w4 runs/w8
      sqcompile compare runs/w4 fp32
      sqcompile compare model.py --recipes float,w4a4g4
      sqcompile compare model.py --targets cpu
      sqcompile compare model.py --bisect -o better.json
    """
    if written and not bisect:
        raise UsageError("-o writes what --bisect proposes: give --bisect")
    given, sides = _sides(first, second, recipes, seed, rows)
    if targets:
        _kernels(output, given[0], targets, sides[-1][1], seed)
        return
    if bisect:
        _bisect(output, given[-1], sides[-1][1], most, written)
        return
    (a, name_a), (b, name_b) = [
        _run(output, one, recipe, name) for one, (name, recipe) in zip(given, sides, strict=True)
    ]
    _tell(output, (name_a, a), (name_b, b))


def _sides(
    first: str, second: str | None, recipes: list[str], seed: int, rows: int | None
) -> "tuple[list[Subject], list[tuple[str, Recipe | str]]]":
    """What runs on each side, and by which recipe, with the names to show."""
    from sqcompile import modelfile
    from sqcompile.debug import sides
    from sqcompile.recipe import Recipe

    if not Path(first).is_dir():
        if second is not None:
            raise UsageError(f"{first} is a model file: name what to compare with --recipes X,Y")
        names = recipes or [sides.FP32, "w4a4g4"]
        if len(names) == 1:
            names = [sides.FP32, *names]
        if len(names) != 2:
            raise UsageError("--recipes takes two, e.g. fp32,w4a4g4")
        chosen = [_recipe(name) for name in names]
        one = sides.subject(modelfile.load(first), seed, rows=rows)
        return [one, one], list(zip(names, chosen, strict=True))
    if recipes:
        raise UsageError("a run folder has its recipe: give B as a folder, a recipe, fp32 or float")
    a = sides.run_folder(first)
    one = sides.subject(modelfile.load(str(a.model_file)), seed, a.state, rows)
    if second is not None and Path(second).is_dir():
        b = sides.run_folder(second)
        if b.model_file != a.model_file:
            raise UsageError(f"{first} and {second} come from two model files")
        return [one, sides.with_state(one, b.state)], [(first, a.recipe), (second, b.recipe)]
    other = _recipe(second or sides.FP32)
    name = other.name if isinstance(other, Recipe) else other
    return [one, one], [(name, other), (first, a.recipe)]


def _recipe(name: str) -> "Recipe | str":
    from sqcompile.debug import sides
    from sqcompile.recipe import Recipe

    if name in (sides.FP32, sides.FLOAT):
        return name
    try:
        return Recipe.load(name)
    except UsageError as error:
        raise UsageError(f"'{name}' is no run folder, fp32 or float, and {error}") from error


def _run(output: Output, one: "Subject", recipe: Any, name: str) -> "tuple[Values, str]":
    with output.status(f"one step: {name}"):
        return one.run(recipe), name


def _tell(output: Output, a: "tuple[str, Values]", b: "tuple[str, Values]") -> None:
    """The first value that differs, and the table of all."""
    from sqcompile.debug import difference, tables

    found = list(difference.layers(a[1], b[1]))
    output.say(f"{b[0]} beside {a[0]}: {len(found)} values of layers and parameters that both have")
    if a[1].loss is not None and b[1].loss is not None:
        output.say(f"loss       {a[1].loss:.6g} and {b[1].loss:.6g}")
    first = next(((point, one) for point, one in found if one.differing), None)
    if first is None:
        output.say("equal, bit for bit")
    else:
        point, one = first
        line = b[1].lines[point] or a[1].lines[point]
        output.say(f"first difference: {tables.point_line(point, one, line)}")
        output.show(tables.layers_table(found))
    totals = {kind: difference.total(a[1], b[1], kind) for kind in ("gradient", "result")}
    output.say(
        f"squared error relative to {a[0]}: gradients {totals['gradient']:.3g}, "
        f"results {totals['result']:.3g}"
    )
    output.document(
        {
            "a": a[0],
            "b": b[0],
            "loss": {"a": a[1].loss, "b": b[1].loss},
            "error": totals,
            "first": None if first is None else vars(first[0]),
            "values": [{**vars(point), **one.to_json()} for point, one in found],
        }
    )


def _kernels(output: Output, one: "Subject", targets: list[str], recipe: Any, seed: int) -> None:
    """Hold every kernel of each target against the reference graph."""
    from sqcompile.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise UsageError(f"{recipe} has no kernels: name a recipe, e.g. --recipes w4a4g4")
    document: dict[str, Any] = {}
    failed = []
    for name in targets:
        with output.status(f"compiling and running {recipe.name} for {name}"):
            found = _differing(one, name, recipe, seed)
        document[name] = [node.to_json() for node in found]
        if found:
            failed.append(f"{name}: {_first_lines(found)}")
        else:
            output.say(f"{name}: every kernel gives the bits of the reference graph")
    output.document({"recipe": recipe.name, "targets": document})
    if failed:
        raise VerificationError(
            "the first node that differs from the reference\n" + "\n".join(failed)
        )


def _first_lines(found: "list[NodeApart]") -> str:
    from sqcompile.debug.tables import node_lines

    lines = node_lines(found[0])
    more = f"\n  {len(found) - 1} nodes behind it differ too" if len(found) > 1 else ""
    return "\n".join(lines) + more


def _differing(one: "Subject", target: str, recipe: "Recipe", seed: int) -> "list[NodeApart]":
    from copy import deepcopy

    from sqcompile import api
    from sqcompile.debug.native import differing
    from sqcompile.debug.observe import drawn_tangents, program

    step = api.compile(deepcopy(one.model), one.call.args, target=target, recipe=recipe, seed=seed)
    variant = step.prepare(*one.call.args)
    values = step.values_of(variant, one.call.args, {})
    tangents = drawn_tangents(program(variant), seed)
    return list(differing(variant, values, one.call.rng, tangents))


def _bisect(output: Output, one: "Subject", recipe: Any, most: int, written: str | None) -> None:
    """Costs of layers and roles, a proposal, and what it was measured to give."""
    from sqcompile.debug import difference, tables
    from sqcompile.debug.bisect import Bisection, propose
    from sqcompile.debug.layers import GRADIENT, RESULT
    from sqcompile.debug.sides import FP32
    from sqcompile.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise UsageError(f"{recipe} is not quantised: name a recipe, e.g. --recipes w4a4g4")
    with output.status(f"bisecting {recipe.name}"):
        search = Bisection(one.step, one.call)
        eager = one.run(FP32)
        kinds = {"gradients": GRADIENT, "results": RESULT}
        fp32 = {name: difference.total(eager, search.exact, kind) for name, kind in kinds.items()}
        stages = list(search.stages(recipe))
        costs = search.costs(recipe, lambda place: output.detail(f"{place} with 8 bits"))
        proposal = propose(search, recipe, costs, most)
    before = search.error(recipe)
    output.say("squared error relative to the step in float, of one step on one batch:")
    output.show(tables.stages_table(stages, fp32))
    output.show(tables.costs_table(costs, before))
    document: dict[str, Any] = {
        "recipe": recipe.name,
        "error": before,
        "fp32": fp32,
        "stages": [vars(stage) for stage in stages],
        "costs": [vars(cost) for cost in costs],
        "proposal": None,
    }
    if proposal is None:
        output.say("no single change takes away 3 % of the error: nothing to propose")
    else:
        text = json.dumps(proposal.recipe.to_json(), indent=1)
        document["proposal"] = {"recipe": proposal.recipe.to_json(), "after": proposal.after}
        changed = ", ".join(f"{cost.layer or 'all'} {cost.role}" for cost in proposal.changed)
        output.say(f"8 bits for {changed}: measured error {proposal.after:.3g}, was {before:.3g}")
        _propose(output, text, written)
    output.document(document)


def _propose(output: Output, recipe: str, written: str | None) -> None:
    from sqcompile.report.data import write_text

    if written is None:
        output.say(recipe)
        output.say("-o FILE.json writes it; `sqcompile MODEL.PY --recipe FILE.json` takes it")
    else:
        output.say(f"written    {write_text(Path(written), recipe + chr(10))}")
