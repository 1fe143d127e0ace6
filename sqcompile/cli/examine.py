"""sqcompile examine: which ops of a model each target runs, before anything is compiled."""

from typing import TYPE_CHECKING

import click

from sqcompile.cli import completing, options
from sqcompile.cli.output import Output
from sqcompile.errors import UnsupportedOpError

if TYPE_CHECKING:
    from sqcompile.backends.targets import Target
    from sqcompile.examination import ModelOp, Place

_PLACES = 5
"""How many places of an op are listed; --json has all."""


@click.command(
    short_help="List supported and unsupported ops of a model.",
    epilog="Exit code 4 when a target does not run an op; ask about one with --target.",
)
@click.argument("model_file", metavar="MODEL.PY", shell_complete=completing.file)
@options.dims
@options.target_or_all
@options.common
@click.pass_obj
def command(
    output: Output,
    model_file: str,
    dims: dict[str, int],
    target_name: str | None,
    mcpu: str | None,
    arch: str | None,
    int4: bool,
    hw: str | None,
) -> None:
    """Say of every op that the model in MODEL.PY calls whether each target runs it, forward and
    backward; why not, where, and what to write in its place. MODEL.PY is executed, nothing is
    compiled.

    \b
      sqcompile examine model.py
      sqcompile examine model.py --target cpu --json
    """
    targets = options.chosen_targets(target_name, mcpu=mcpu, arch=arch, int4=int4, hw=hw)
    from sqcompile import api, modelfile
    from sqcompile.cli.compile import made

    model, inputs = made(modelfile.load(model_file, dims=dims), seed=0)
    with output.status(f"tracing {model_file}"):
        rows = api.examine(model, inputs, targets=targets)
    _show(output, rows, targets)
    output.document(
        {
            "targets": [target.name for target in targets],
            "supported": all(row.supported for row in rows),
            "ops": [row.to_json() for row in rows],
        }
    )
    if not all(row.supported for row in rows):
        click.get_current_context().exit(UnsupportedOpError.exit_code)


def _show(output: Output, rows: "list[ModelOp]", targets: "list[Target]") -> None:
    """The table, what is missing with its places, and a line a target."""
    from sqcompile.report.text import table

    shown = table("op", "count", *(target.name for target in targets), right=("count",))
    for row in rows:
        cells = [_cell(row.verdicts[target.name].runs_on, target) for target in targets]
        style = None if row.supported else "red"
        shown.add_row(row.op, str(len(row.places)), *cells, style=style)
    output.show(shown)
    for row in rows:
        if not row.supported:
            _tell(output, row)
    output.say()
    for target in targets:
        _conclude(output, rows, target)


def _cell(runs_on: str, target: "Target") -> str:
    """yes, no, or where an op runs that an accelerator leaves to another."""
    return {"": "no", target.name: "yes"}.get(runs_on, runs_on)


def _tell(output: Output, row: "ModelOp") -> None:
    """Why an op does not run, what to write in its place, and where it stands."""
    reasons: dict[str, list[str]] = {}
    for name, verdict in row.verdicts.items():
        for reason in verdict.reasons:
            reasons.setdefault(reason.replace(f" for target '{name}'", ""), []).append(name)
    output.say(f"\n{row.op}")
    for reason, names in reasons.items():
        output.say(f"  {reason} ({', '.join(names)})")
    output.say(f"  nearest supported: {row.nearest or 'none'}")
    for place in row.places[:_PLACES]:
        output.say(f"  {where(place)}")
    if len(row.places) > _PLACES:
        output.say(f"  and {len(row.places) - _PLACES} more places")


def where(place: "Place") -> str:
    """`model.py:12  x = self.conv(x)  (module: conv)`."""
    module = f"  (module: {place.module})" if place.module else ""
    return f"{place.line or '(no source line)'}{module}"


def _conclude(output: Output, rows: "list[ModelOp]", target: "Target") -> None:
    """`cpu: all 12 kinds of ops run`, and why an accelerator leaves products to the CPU."""
    from sqcompile.examination import missing

    lacking = len(missing(rows, target.name))
    count = f"{len(rows) - lacking} of {len(rows)}" if lacking else f"all {len(rows)}"
    output.say(f"{target.name}: {count} kinds of ops run")
    if not target.accelerates:
        return
    products = [row for row in rows if row.verdicts[target.name].runs_on == target.name]
    output.say(f"  {len(products)} of them on the accelerator, the others on the CPU beside it")
    for row in rows:
        for reason in row.verdicts[target.name].left:
            output.say(f"  {row.op} on the CPU: {reason}")
