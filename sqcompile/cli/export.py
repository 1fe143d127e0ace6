"""sqcompile export: a run folder's integer graph as a model for other engines."""

from typing import Any

import click

from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError

GRAPHS = ("eval", "forward", "backward")


@click.command(
    short_help="Write a run folder's integer graph as an ONNX model.",
    epilog="Exit codes: 2 no such graph in DIR, 4 ops without an exact ONNX form (all are listed), "
    "5 the package onnx is missing.",
)
@click.argument("folder", metavar="DIR")
@click.option("--onnx", "as_onnx", is_flag=True, help="The format; there is no other yet.")
@click.option("-o", "--output", "path", metavar="FILE.onnx", help="[default: DIR/GRAPH.onnx]")
@click.option(
    "--graph",
    type=click.Choice(GRAPHS),
    default="eval",
    show_default=True,
    help="eval: the forward of evaluation with its weights, for deployment. forward, backward: of "
    "a training step, to look at or to run.",
)
@click.option(
    "--inline",
    is_flag=True,
    help="Write the model's own functions as ONNX ops, for engines that do not read functions.",
)
@options.common
@click.pass_obj
def command(
    output: Output, folder: str, as_onnx: bool, path: str | None, graph: str, inline: bool
) -> None:
    """Write the integer graph of the run in DIR as an ONNX model.

    Nothing in DIR is executed. onnxruntime computes the bits of the step, with graph optimisations
    disabled; docs/onnx.md tells what changes with them.

    \b
      sqcompile export runs/digits --onnx -o digits.onnx
      sqcompile export runs/digits --onnx --graph backward
    """
    if not as_onnx:
        raise UsageError("say which format to write: --onnx")
    from sqcompile.onnx.export import export

    with output.status(f"writing {graph} of {folder}"):
        written = export(folder, path or f"{folder}/{graph}.onnx", graph=graph, inline=inline)
    for line in _lines(written):
        output.say(line)
    output.document(written)


def _lines(written: dict[str, Any]) -> list[str]:
    return [
        f"graph      {written['graph']}: {written['nodes']} nodes, "
        f"{written['functions']} functions, {written['bytes'] / 1e6:.1f} MB",
        f"inputs     {_few(written['inputs'])}",
        f"outputs    {_few(written['outputs'])}",
        f"written    {written['path']}",
    ]


def _few(names: list[str]) -> str:
    most = 6
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
