"""sqcompile inspect: what was rewritten, from a run folder's records."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output

if TYPE_CHECKING:
    from sqcompile.report.graphview import Selection, View


@click.command(short_help="Show what was rewritten, stage by stage.")
@click.argument("folder", metavar="DIR", shell_complete=completing.folder)
@click.option(
    "--stage",
    "patterns",
    metavar="NAME",
    multiple=True,
    shell_complete=completing.stage,
    help="Print the graph after this pass; a pattern (fuse_*) or all; may be repeated.",
)
@click.option("--diff", is_flag=True, help="Print what each stage changed; alone, of all stages.")
@click.option(
    "--against",
    metavar="NAME",
    shell_complete=completing.stage,
    help="With --diff: compare with this stage.  [default: the one before]",
)
@click.option(
    "--context",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="With --diff: show N unchanged nodes around changes.",
)
@click.option(
    "--op",
    "ops",
    metavar="PATTERN",
    multiple=True,
    shell_complete=completing.op,
    help="Only nodes of this op: quantize, sq.conv_*, aten.*; may be repeated.",
)
@click.option(
    "--layer",
    "layers",
    metavar="PATTERN",
    multiple=True,
    shell_complete=completing.layer,
    help="Only nodes of this module and those in it: blocks.0, blocks.*.conv1; may be repeated.",
)
@click.option(
    "--pass",
    "part",
    type=click.Choice(["forward", "backward"]),
    help="Only nodes of the forward or backward pass.",
)
@click.option("--saved", is_flag=True, help="List what forward keeps for backward.")
@click.option(
    "--html", "as_html", is_flag=True, help="Write DIR/report.html again; print its path."
)
@options.common
@click.pass_obj
def command(
    output: Output,
    folder: str,
    patterns: tuple[str, ...],
    diff: bool,
    against: str | None,
    context: int,
    ops: tuple[str, ...],
    layers: tuple[str, ...],
    part: str | None,
    saved: bool,
    as_html: bool,
) -> None:
    """Print the stages, products and saved tensors of the run in DIR.

    Nothing in DIR is executed. Graphs read as Python, with the user's source lines; filters
    combine, and without --stage they show the two graphs that are compiled:

    \b
      sqcompile inspect runs/digits
      sqcompile inspect runs/digits --stage quantize_operands | less
      sqcompile inspect runs/digits --stage quantize_operands --diff
      sqcompile inspect runs/digits --layer stem --op "conv_*" --pass backward
      sqcompile inspect runs/digits --stage forward --json
    """
    from sqcompile.report.graphview import Selection

    if patterns or diff or ops or layers or part or against:
        selection = Selection(ops, layers, part or "")
        _graphs(output, folder, patterns, selection, diff or against is not None, against, context)
    else:
        _overview(output, folder, saved, as_html)


def _graphs(
    output: Output,
    folder: str,
    patterns: tuple[str, ...],
    selection: "Selection",
    diff: bool,
    against: str | None,
    context: int,
) -> None:
    """The stages that were asked for, whole or what changed in them."""
    from sqcompile.report import graphtext, graphview
    from sqcompile.runtime import stages

    known = stages.read(folder)
    selection.check(entry for entries in known.values() for entry in entries)
    if against is not None and against not in known:
        raise graphview.no_stage(known, against, folder)
    asked = patterns or (["all"] if diff else [selection.part or "*ward"])
    names = graphview.chosen(known, asked, folder)
    found = list(graphview.views(known, names, selection, against))
    shown = [view for view in found if not diff or len(names) == 1 or view.changes]
    if not output.as_json:
        for number, view in enumerate(shown):
            if number:
                output.say()
            if len(names) > 1 and not diff and not selection:
                output.say(f"# {view.name}")
            for line in graphtext.changes(view, context) if diff else graphtext.graph(view):
                output.say(line)
    output.document({"folder": folder, "stages": [view.to_json(diff) for view in found]})


def _overview(output: Output, folder: str, saved: bool, as_html: bool) -> None:
    from sqcompile.report import data, html, text
    from sqcompile.runtime import stages

    report = data.read(folder)
    if as_html:
        output.say(str(html.write(report, texts(Path(folder)), folder)))
        output.document({"html": str(Path(folder) / html.HTML)})
        return
    changes = changed(stages.read(folder))
    for line in text.summary(report):
        output.say(line)
    output.say()
    output.show(text.stages_table(report, changes))
    output.say()
    if saved:
        output.show(text.layers_table(report))
        output.say()
    output.show(text.saved_table(report) if saved else text.products_table(report))
    counted = [{**stage, **changes.get(stage["name"], {})} for stage in report["stages"]]
    output.document({**report, "stages": counted})


def changed(known: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many nodes every stage added, removed and changed, by its name."""
    from sqcompile.report.graphdiff import ADDED, CHANGED, REMOVED
    from sqcompile.report.graphview import Selection, views

    def counts(view: "View") -> dict[str, int]:
        return {kind: view.difference.count(kind) for kind in (ADDED, REMOVED, CHANGED)}

    return {
        view.name: counts(view) for view in views(known, list(known), Selection()) if view.against
    }


def texts(folder: Path) -> dict[str, str]:
    """The texts of the first variant's stages, by name, in order."""
    files = sorted(folder.glob("[0-9][0-9]_*.txt"))
    return {file.stem[3:]: file.read_text(encoding="utf-8") for file in files}
