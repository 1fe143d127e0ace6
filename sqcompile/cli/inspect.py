"""sqcompile inspect: what was rewritten, from a run folder's texts."""

from difflib import get_close_matches
from pathlib import Path

import click

from sqcompile.cli import options
from sqcompile.cli.output import Output
from sqcompile.errors import UsageError


@click.command(short_help="Show what was rewritten, stage by stage.")
@click.argument("folder", metavar="DIR")
@click.option("--stage", metavar="NAME", help="Print the graph after this pass.")
@click.option("--saved", is_flag=True, help="List what forward keeps for backward.")
@click.option(
    "--html", "as_html", is_flag=True, help="Write DIR/report.html again; print its path."
)
@options.common
@click.pass_obj
def command(output: Output, folder: str, stage: str | None, saved: bool, as_html: bool) -> None:
    """Print the stages, products and saved tensors of the run in DIR.

    Nothing in DIR is executed. Graphs read as Python, with the user's source lines:

    \b
      sqcompile inspect runs/digits
      sqcompile inspect runs/digits --stage quantize_operands | less
    """
    from sqcompile.report import data, html, text

    report = data.read(folder)
    graphs = stages(Path(folder))
    if as_html:
        output.say(str(html.write(report, graphs, folder)))
        output.document({"html": str(Path(folder) / html.HTML)})
        return
    if stage is not None:
        output.say(_chosen(graphs, stage, folder).rstrip())
        output.document({"stage": stage, "text": graphs[stage]})
        return
    for line in text.summary(report):
        output.say(line)
    output.say()
    output.show(text.stages_table(report))
    output.say()
    if saved:
        output.show(text.layers_table(report))
        output.say()
    output.show(text.saved_table(report) if saved else text.products_table(report))
    output.document(report)


def stages(folder: Path) -> dict[str, str]:
    """The texts of the first variant's stages, by name, in order."""
    files = sorted(folder.glob("[0-9][0-9]_*.txt"))
    return {file.stem[3:]: file.read_text(encoding="utf-8") for file in files}


def _chosen(graphs: dict[str, str], name: str, folder: str) -> str:
    if name in graphs:
        return graphs[name]
    close = get_close_matches(name, graphs, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UsageError(f"{folder} has no stage '{name}'; {hint}it has {', '.join(graphs) or 'none'}")
