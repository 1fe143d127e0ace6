"""sqcompile inspect: what was rewritten, from a run folder's records."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output

if TYPE_CHECKING:
    from sqcompile.report.graphview import Selection, View
    from sqcompile.report.variants import Listed


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
@click.option(
    "--variant",
    "asked",
    metavar="N|MODE|all",
    shell_complete=completing.variant,
    help="The compiled form to show: its number, train, eval, or all.  [default: 0, the training "
    "step; with --json all]",
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
    asked: str | None,
    saved: bool,
    as_html: bool,
) -> None:
    """Print the stages, products and saved tensors of the run in DIR.

    Nothing in DIR is executed. Graphs read as Python, with the user's source lines; filters
    combine, and without --stage they show the two graphs that are compiled. A run has a variant for
    every mode and every set of shapes; the first is the training step.

    \b
      sqcompile inspect runs/digits
      sqcompile inspect runs/digits --stage quantize_operands | less
      sqcompile inspect runs/digits --stage quantize_operands --diff
      sqcompile inspect runs/digits --layer stem --op "conv_*" --pass backward
      sqcompile inspect runs/digits --variant eval --stage forward
      sqcompile inspect runs/digits --stage forward --json
    """
    from sqcompile.report import variants
    from sqcompile.report.graphview import Selection

    if as_html:
        _page(output, folder)
        return
    known = variants.listed(folder)
    looked_at = variants.chosen(known, asked or (variants.ALL if output.as_json else "0"))
    if patterns or diff or ops or layers or part or against:
        selection = Selection(ops, layers, part or "")
        if asked is None and (rest := variants.others(known, looked_at)):
            output.note(f"this is variant 0 ({known[0].what}); --variant shows {rest}, or all")
        diff = diff or against is not None
        _graphs(output, folder, looked_at, patterns, selection, diff, against, context)
    else:
        _overview(output, folder, known, looked_at, saved)


def _graphs(
    output: Output,
    folder: str,
    looked_at: "Sequence[Listed]",
    patterns: tuple[str, ...],
    selection: "Selection",
    diff: bool,
    against: str | None,
    context: int,
) -> None:
    """The stages of variants that were asked for, whole or what changed in them."""
    from sqcompile.report import graphview
    from sqcompile.runtime import stages

    held = {one: stages.read(one.place) for one in looked_at}
    known = {name: entries for one in held.values() for name, entries in one.items()}
    selection.check(entry for one in held.values() for entries in one.values() for entry in entries)
    if against is not None and against not in known:
        raise graphview.no_stage(known, against, folder)
    asked = patterns or (["all"] if diff else [selection.part or "*ward"])
    names = graphview.chosen(known, asked, folder)
    found = {
        one: list(graphview.views(own, [name for name in names if name in own], selection, against))
        for one, own in held.items()
        if against is None or against in own
    }
    if not output.as_json:
        _print(output, found, len(names) > 1, diff, context)
    told = [
        {**one.to_json(), "stages": [view.to_json(diff) for view in views]}
        for one, views in found.items()
    ]
    output.document({"folder": folder, "variants": told})


def _print(
    output: Output,
    found: "Mapping[Listed, Sequence[View]]",
    several: bool,
    diff: bool,
    context: int,
) -> None:
    """Graphs or changes as text, with the name of the variant where there are more, and of the
    stage where `several` were asked for. Of more stages, those that changed nothing are left out.
    """
    from sqcompile.report import graphtext

    lines = 0
    for one, views in found.items():
        shown = [view for view in views if not diff or not several or view.changes]
        if len(found) > 1 and shown:
            output.say(("\n" if lines else "") + f"## {one}")
        for number, view in enumerate(shown):
            if number:
                output.say()
            if several and not diff and not view.selection:
                output.say(f"# {view.name}")
            for line in graphtext.changes(view, context) if diff else graphtext.graph(view):
                output.say(line)
        lines += len(shown)


def _page(output: Output, folder: str) -> None:
    """Write report.html again."""
    from sqcompile.report import data, html

    path = html.write_again(data.read(folder), folder)
    output.say(str(path))
    output.document({"html": str(path)})


def _overview(
    output: Output,
    folder: str,
    known: "Sequence[Listed]",
    looked_at: "Sequence[Listed]",
    saved: bool,
) -> None:
    """What the run is, and stages and products of variants."""
    from sqcompile.report import data, text, variants
    from sqcompile.runtime import stages

    report = data.read(folder)
    for line in text.summary(report):
        output.say(line)
    if rest := variants.others(known, looked_at):
        shown = ", ".join(f"{one.number} ({one.what})" for one in looked_at)
        output.say(f"variants   {shown}; --variant shows {rest}, or all")
    told = list(report["variants"])
    for one in looked_at:
        changes = changed(stages.read(one.place))
        row = told[one.number]
        counted = [{**stage, **changes.get(stage["name"], {})} for stage in row["stages"]]
        told[one.number] = {**row, "stages": counted}
        _tables(output, row, changes, saved, str(one) if len(looked_at) > 1 else "")
    output.document({**report, "variants": told})


def _tables(
    output: Output,
    variant: dict[str, Any],
    changes: Mapping[str, Mapping[str, int]],
    saved: bool,
    title: str,
) -> None:
    """Stages and products, or what is saved, of a report's variant."""
    from sqcompile.report import text

    output.say()
    if title:
        output.say(title)
        output.say()
    output.show(text.stages_table(variant, changes))
    output.say()
    if not saved:
        output.show(text.products_table(variant))
    elif not variant["saved"]["tensors"]:
        output.say(f"{variant['mode']} keeps nothing for backward")
    else:
        output.show(text.layers_table(variant))
        output.say()
        output.show(text.saved_table(variant))


def changed(known: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many nodes every stage added, removed and changed, by its name."""
    from sqcompile.report.graphdiff import ADDED, CHANGED, REMOVED
    from sqcompile.report.graphview import Selection, views

    def counts(view: "View") -> dict[str, int]:
        return {kind: view.difference.count(kind) for kind in (ADDED, REMOVED, CHANGED)}

    return {
        view.name: counts(view) for view in views(known, list(known), Selection()) if view.against
    }
